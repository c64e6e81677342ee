"""Prediction tables: CSV, JSON and Parquet."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..data.label_cells import join_labels
from ..extras import importing_extra
from ..figures import percent_text
from ..files import csv_text, json_text, output_file, printable, text_bytes, unicode_text
from ..prediction import Prediction

TABLE_FORMATS = (".csv", ".json", ".parquet")


def prediction_document(prediction: Prediction) -> dict[str, Any]:
    """One prediction as a JSON document; label and probability are null if the image cannot be read.

    "answer" is the label, "unsure" or "none of these", see ``Prediction.answer``. Of multi-label models, "labels" are
    the predicted labels.
    """
    read = prediction.label is not None
    document = {
        "path": prediction.path,
        "label": prediction.label,
        "probability": prediction.probability if read else None,
        "answer": prediction.answer,
        "outlier": prediction.outlier,
        "top": _pairs(prediction.top),
        "error": prediction.error,
    }
    return document if prediction.labels is None else document | {"labels": _pairs(prediction.labels)}


def _pairs(ranked: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"label": label, "probability": chance} for label, chance in ranked]


def prediction_line(prediction: Prediction) -> str:
    """Path and predicted labels of an image, as one line of text."""
    return f"{printable(prediction.path)}\t{answer_text(prediction)}"


def answer_text(prediction: Prediction) -> str:
    """Predicted labels with probabilities, or the reason why there are none."""
    if prediction.label is None:
        return prediction.error or ""

    def words(pairs: Iterable[tuple[str, float]]) -> str:
        return "  ".join(f"{label} {percent_text(probability)}" for label, probability in pairs)

    if prediction.answer not in (prediction.label, ""):
        return f"{prediction.answer} (nearest: {words(prediction.top)})"
    if prediction.labels is None:
        return words(prediction.top)
    return words(prediction.labels) or f"none of the labels (nearest: {words(prediction.top)})"


def write_predictions(file: Path, predictions: Sequence[Prediction], *, excel: bool = False) -> None:
    """Writes one row for each prediction, in order, also for images that cannot be read.

    Columns of CSV and Parquet: path, label, probability, label2, probability2 and so on for further classes, answer
    (the label, "unsure" or "none of these"), outlier and error. Of multi-label models, labels follows path.

    Args:
        file: to write, .csv, .json or .parquet.
        predictions: of N images.
        excel: write a .csv file that Excel opens correctly in any language: UTF-16 with a byte order mark and tabs
            between the cells, since separator and decimal sign of other files depend on the language; for the same
            reason probabilities and outlier scores are whole per cent. ``read_table`` reads it as well.

    Raises:
        OutputError: another file ending, or the file cannot be written.
    """
    with output_file(file, TABLE_FORMATS) as partial:
        if file.suffix.lower() == ".json":
            partial.write_text(json_text([prediction_document(p) for p in predictions], indent=1), encoding="utf-8")
        elif file.suffix.lower() == ".csv":
            columns = prediction_columns(predictions)
            rows = zip(*columns.values(), strict=True)
            cells = [list(columns), *([_text(cell, excel=excel) for cell in row] for row in rows)]
            partial.write_bytes(_excel_bytes(cells) if excel else text_bytes(csv_text(cells)))
        else:
            with importing_extra("parquet", f"writing {file}"):
                import pyarrow as pa
                from pyarrow import parquet

            columns = prediction_columns(predictions)
            columns["path"] = [unicode_text(path) for path in columns["path"]]
            schema = pa.schema(list(column_types(columns).items()))
            parquet.write_table(pa.table(columns, schema=schema), partial, write_page_checksum=True)


def _text(cell: str | float | None, *, excel: bool) -> str:
    if excel and isinstance(cell, float):
        return f"{100 * cell:.0f}%"
    return "" if cell is None else str(cell)


def _excel_bytes(cells: Sequence[Sequence[str]]) -> bytes:
    text = csv_text(cells, separator="\t", line_end="\r\n")
    return codecs.BOM_UTF16_LE + unicode_text(text).encode("utf-16-le")


def prediction_columns(predictions: Sequence[Prediction], *, listed: int | None = None) -> dict[str, list[Any]]:
    """Columns of a table of predictions, by name, see ``write_predictions``.

    Args:
        predictions: of N images.
        listed: number of classes that have columns; default: the most that a prediction lists.
    """
    columns: dict[str, list[Any]] = {"path": [p.path for p in predictions]}
    if any(p.labels is not None for p in predictions):
        given = join_labels([[label for label, _ in p.labels or ()] for p in predictions])
        columns["labels"] = [cells if p.error is None else None for cells, p in zip(given, predictions, strict=True)]
    listed = max((len(p.top) for p in predictions), default=0) if listed is None else listed
    for place in range(max(1, listed)):
        number = "" if place == 0 else str(place + 1)
        ranked = [p.top[place] if place < len(p.top) else (None, None) for p in predictions]
        columns[f"label{number}"] = [label for label, _ in ranked]
        columns[f"probability{number}"] = [chance for _, chance in ranked]
    columns["answer"] = [p.answer for p in predictions]
    columns["outlier"] = [p.outlier for p in predictions]
    columns["error"] = [p.error for p in predictions]
    return columns


def column_types(columns: Iterable[str]) -> dict[str, Any]:
    """Name of a column of ``prediction_columns`` -> its Arrow type."""
    import pyarrow as pa

    def is_number(name: str) -> bool:
        return name.startswith("probability") or name == "outlier"

    return {name: pa.float64() if is_number(name) else pa.string() for name in columns}
