"""Tables of images: which columns hold paths, labels, splits and groups, and what stands in their rows."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from natsort import natsorted

from headstart.errors import DataError

SPLIT_NAMES: Final = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Names of folders, or values of a table's split column, and the split that they mean (case does not matter)."""

PATH_COLUMNS: Final = (
    "path",
    "file",
    "filename",
    "filepath",
    "file_path",
    "image",
    "image_path",
    "image_file",
)
LABEL_COLUMNS: Final = ("label", "class", "class_name", "category", "target")
LABELS_COLUMNS: Final = ("labels", "tags", "classes", "categories", "targets")
"""Names of a column whose cells hold any number of labels."""

SPLIT_COLUMNS: Final = ("split", "set", "subset")
GROUP_COLUMNS: Final = ("group", "group_id")

SEPARATOR: Final = "|"
"""Between the labels of one image, where a table is written."""

SEPARATORS: Final = (SEPARATOR, ";", ",")
"""Between the labels of one cell: the first of these that the column has anywhere, or else blanks."""

TABLE_SUFFIXES: Final = (".csv", ".tsv", ".parquet")

MARKS: Final = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
"""Cells of a column that says of each image whether it bears the label after which the column is named."""

SHARE_OF_MARKS: Final = 0.5
"""Of a column's cells that must be marks, for the rest to be mistakes and the column one of labels."""


@dataclass(frozen=True)
class TableRow:
    """An image.

    Attributes:
        path: as it stands there.
        labels: that it bears; one where the table has a label for each image.
        split: "train", "val" or "test"; "" where the table has no such column.
        group: likewise.
    """

    path: str
    labels: tuple[str, ...]
    split: str
    group: str


@dataclass(frozen=True)
class ImageTable:
    """What a table says.

    Attributes:
        rows: each path once.
        classes: names of the labels, in natural order.
        several: whether an image may bear any number of labels.
        has_splits: whether there is such a column.
        has_groups: likewise.
        notes: what was found and not used, a sentence each.
    """

    rows: tuple[TableRow, ...]
    classes: tuple[str, ...]
    several: bool
    has_splits: bool
    has_groups: bool
    notes: tuple[str, ...]


def read_table(file: Path) -> ImageTable:
    """Reads a CSV, TSV or Parquet table with a path and labels in each row, and perhaps a split and a group.

    Columns go by the names in ``PATH_COLUMNS``, ``SPLIT_COLUMNS`` and ``GROUP_COLUMNS`` (case does not matter). A
    column named in ``LABEL_COLUMNS`` holds the one label of each image. One named in ``LABELS_COLUMNS`` holds any
    number of them, and the rows of one path are taken together. Where there is neither, columns of ``MARKS`` are
    labels, of which an image may bear any number.

    Raises:
        DataError: no such file, columns missing, a split or a mark that is not known, or one path with two labels.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such table.")
    columns = _read_columns(file)
    path_column = _column(columns, PATH_COLUMNS)
    if path_column is None:
        raise DataError(f"{file}: no path column. {_expected(columns, PATH_COLUMNS)}.")
    split_column, group_column = _column(columns, SPLIT_COLUMNS), _column(columns, GROUP_COLUMNS)
    notes: list[str] = []
    labels = _Labels(file, columns, [path_column, split_column, group_column], notes)
    rows: dict[str, TableRow] = {}
    for place, path in enumerate(columns[path_column]):
        if not any(cells[place] for cells in columns.values()):
            continue
        number = place + 2
        if missing := "path" if not path else "label" if not labels.known(place) else "":
            notes.append(f"{file.name}, row {number}: no {missing}; left out")
            continue
        if split_column and not columns[split_column][place]:
            notes.append(f"{file.name}, row {number}: no split; left out")
            continue
        split = _split_value(file, number, columns[split_column][place]) if split_column else ""
        row = TableRow(path, labels.of(place), split, columns[group_column][place] if group_column else "")
        rows[path] = labels.together(number, rows[path], row) if path in rows else row
    if not rows:
        raise DataError(f"{file}: no row with a path and a label.")
    if bare := sum(not row.labels for row in rows.values()):
        notes.append(f"{bare:,} of {len(rows):,} images bear no label: taken as pictures that show none of them")
    return ImageTable(
        tuple(rows.values()),
        tuple(natsorted(labels.names or {label for row in rows.values() for label in row.labels})),
        labels.several,
        split_column is not None,
        group_column is not None,
        tuple(notes),
    )


def joined(labels: Sequence[Sequence[str]]) -> list[str]:
    """Cells of a column of labels, from which ``read_table`` reads the same again."""
    cells = [SEPARATOR.join(own) for own in labels]
    if any(SEPARATOR in cell for cell in cells):
        return cells
    return [cell and cell + SEPARATOR for cell in cells]  # else another separator might be taken for one


class _Labels:
    """The labels of a table's rows, however they stand there.

    Args:
        file: for errors.
        columns: by name.
        taken: names of columns that hold something else.
        notes: are added to.

    Attributes:
        several: whether an image may bear any number.
        names: of all labels, where the columns name them.
    """

    def __init__(
        self, file: Path, columns: dict[str, list[str]], taken: Sequence[str | None], notes: list[str]
    ) -> None:
        self.file, self.columns = file, columns
        self.one, self.list = _column(columns, LABEL_COLUMNS), _column(columns, LABELS_COLUMNS)
        self.names: tuple[str, ...] = ()
        self.several = self.one is None
        self.separator: str | None = None
        if self.one is not None:
            return
        if self.list is not None:
            cells = columns[self.list]
            self.separator = next((sign for sign in SEPARATORS if any(sign in cell for cell in cells)), None)
            if self.separator is None and any(re.search(r"\s", cell) for cell in cells):
                notes.append(f"{file.name}: labels in {self.list!r} are taken to have blanks between them")
            return
        others = [name for name in columns if name not in taken]
        self.names = tuple(name for name in others if _are_marks(columns[name]))
        if not self.names:
            raise DataError(
                f"{file}: no label column. {_expected(columns, LABEL_COLUMNS)}; for any number of labels to an image "
                f"{', '.join(LABELS_COLUMNS[:2])}, with {SEPARATOR} between them, or a column of 0 and 1 for each."
            )
        if strange := next((name for name in self.names if SEPARATOR in name), ""):
            raise DataError(f"{file}: a label is named {strange!r}; {SEPARATOR} stands between labels. Rename it.")
        if unused := [name for name in others if name not in self.names]:
            notes.append(f"{file.name}: column(s) {', '.join(unused)} not used: not of 0 and 1")

    def known(self, place: int) -> bool:
        """Whether a row says what the image bears; of several labels, none is an answer too."""
        return self.one is None or bool(self.columns[self.one][place])

    def of(self, place: int) -> tuple[str, ...]:
        if self.one is not None:
            return (unicodedata.normalize("NFC", self.columns[self.one][place]),)
        if self.list is not None:
            cell = unicodedata.normalize("NFC", self.columns[self.list][place])
            return tuple(dict.fromkeys(part.strip() for part in cell.split(self.separator) if part.strip()))
        found = []
        for name in self.names:
            cell = self.columns[name][place].lower()
            if cell not in MARKS:
                raise DataError(f"{self.file}, row {place + 2}: {name!r} is {cell!r}. Expected 0 or 1.")
            if MARKS[cell]:
                found.append(name)
        return tuple(found)

    def together(self, number: int, first: TableRow, second: TableRow) -> TableRow:
        """Two rows of one path: what both say."""
        if self.list is not None and (first.split, first.group) == (second.split, second.group):
            labels = tuple(dict.fromkeys((*first.labels, *second.labels)))
            return TableRow(first.path, labels, first.split, first.group)
        if first != second:
            said = [", ".join(row.labels) + (f" ({row.split})" if row.split else "") for row in (first, second)]
            raise DataError(
                f"{self.file}, row {number}: {first.path} stands twice, as {said[0]!r} and as {said[1]!r}. Keep the "
                "row that is right" + ("." if self.several else ", or name the column labels if it bears both.")
            )
        return first


def _are_marks(cells: Sequence[str]) -> bool:
    given = [cell.lower() for cell in cells if cell]
    return sum(cell in MARKS for cell in given) > SHARE_OF_MARKS * max(1, len(given))


def _read_columns(file: Path) -> dict[str, list[str]]:
    """Column name -> its cells, without blanks around them."""
    if file.suffix.lower() == ".parquet":
        return _read_parquet(file)
    delimiter = "\t" if file.suffix.lower() == ".tsv" else None
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
            first = handle.readline()
            handle.seek(0)
            delimiter = delimiter or max(",;\t", key=first.count)
            rows = list(csv.reader(handle, delimiter=delimiter))
    except (OSError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as a table: {error}.") from error
    if not rows or not rows[0]:
        raise DataError(f"{file}: empty. Expected a header with the columns path and label.")
    header = [cell.strip() for cell in rows[0]]
    for number, row in enumerate(rows[1:], start=2):
        if row and len(row) != len(header):
            raise DataError(f"{file}, row {number}: {len(row)} cells where the header has {len(header)}.")
    return {name: [row[i].strip() if row else "" for row in rows[1:]] for i, name in enumerate(header)}


def _read_parquet(file: Path) -> dict[str, list[str]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as Parquet: {error}.") from error
    return {name: [_cell(value) for value in table.column(name).to_pylist()] for name in table.column_names}


def _cell(value: object) -> str:
    """A Parquet table may hold a list of labels."""
    if isinstance(value, list):
        return SEPARATOR.join(map(str, value)) + SEPARATOR
    return "" if value is None else str(value)


def _column(columns: Iterable[str], names: Sequence[str]) -> str | None:
    return next((column for name in names for column in columns if column.lower() == name), None)


def _expected(columns: Iterable[str], names: Sequence[str]) -> str:
    return f"Found: {', '.join(columns)}. Expected one named {', '.join(names)}"


def _split_value(file: Path, number: int, value: str) -> str:
    try:
        return SPLIT_NAMES[value.lower()]
    except KeyError:
        known = ", ".join(SPLIT_NAMES)
        raise DataError(f"{file}, row {number}: split is {value!r}. Expected one of {known}.") from None
