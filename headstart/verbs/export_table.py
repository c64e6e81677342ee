"""Export of a model to every format, as one table: what works, how exact, how large and how fast."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.cache.entries import size_text
from headstart.data.dataset import Dataset
from headstart.errors import ExportError, MissingExtra, OptionError, OutputError
from headstart.exports.formats.registry import FORMATS
from headstart.exports.parity import FormatResult
from headstart.figures import interval_text, percent_text
from headstart.files import json_text, not_written, user_path, write_atomically
from headstart.model import Model
from headstart.progress import Progress, SilentProgress
from headstart.runs.folder import EXPORTS_FILE
from headstart.verbs.export import write_compared
from headstart.verbs.export_images import ExportReference, Source, is_run, reference_for
from headstart.verbs.report import report

TABLE_FILE = "exports.md"
"""The table in the folder of the exports, as Markdown; as JSON beside it and in the run folder."""


@dataclass(frozen=True)
class ExportRow:
    """A format in the table.

    Attributes:
        name: of the format and the variant, such as "onnx int8".
        file: what was written; None if nothing was.
        result: the comparison with the model; None if nothing was written.
        reason: why nothing was written; "" otherwise.
    """

    name: str
    file: Path | None
    result: FormatResult | None
    reason: str = ""

    def cells(self) -> list[str]:
        """The cells of ``ExportTable.HEADER``."""
        if self.result is None:
            return [self.name, "-", "-", "-", "-", "-", "-", "-", self.reason]
        one = self.result
        return [
            self.name,
            size_text(one.bytes) if one.bytes else "-",
            "-" if one.clear is None else f"{one.same:,}/{one.clear:,}",
            "-" if one.largest is None else f"{one.largest:.1e}",
            f"{percent_text(one.accuracy)} ({one.correct:,}/{one.images:,})",
            interval_text(one.low, one.high),
            f"{one.rate:.0f}",
            "-" if one.load_seconds is None else f"{one.load_seconds:.2f} s",
            "" if self.file is None else self.file.name,
        ]


@dataclass(frozen=True)
class ExportTable:
    """A model and its exports; result of ``export_all``.

    Attributes:
        rows: the model, then each format and variant.
        images: number and origin of the images compared on, in words.
        folder: with the exported files, ``exports.md`` and ``exports.json``.
    """

    HEADER = [  # noqa: RUF012
        "format", "size", "same answer", "largest difference", "accuracy", "95 % CI", "images/s", "load", "file",
    ]  # fmt: skip

    rows: tuple[ExportRow, ...]
    images: str
    folder: Path

    def as_json(self) -> dict[str, Any]:
        """A JSON document."""
        rows = [
            {
                "name": row.name,
                "file": None if row.file is None else row.file.name,
                "reason": row.reason,
                "result": None if row.result is None else row.result.as_json(),
                "cells": row.cells(),
            }
            for row in self.rows
        ]
        return {"images": self.images, "header": self.HEADER, "rows": rows}

    def as_markdown(self) -> str:
        """A table in Markdown."""
        lines = [self.HEADER, ["-"] * len(self.HEADER), *(row.cells() for row in self.rows)]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"{table}\n\nCompared on {self.images}.\n"


def export_all(
    model: Source | Model,
    *,
    out: Source | None = None,
    data: Source | Dataset | None = None,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> ExportTable:
    """Exports a model to every format and variant, and compares each with the model on the same images.

    A format that cannot express the model, differs from it, or needs an extra or packages that are not installed has a
    row with the reason. The table is written into the folder, and for a run into its report.

    Args:
        model: a run folder, a model file, ``hf://OWNER/NAME``, or a loaded model.
        out: the folder to write; ``exports`` in the run folder if None.
        data: see ``export``.
        device: device of the model: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder; the default one if None.
        progress: receives messages and the progress of each task.

    Raises:
        OptionError: ``out`` is needed.
        OutputError: the folder cannot be written.
        DataError: there are no readable images to compare on.
        RunError: the model has no run folder and ``data`` is None.

    Examples:
        >>> from headstart.verbs import export_all
        >>> table = export_all("runs/flowers", out="exports")
        >>> [row.name for row in table.rows][:3]
        ['model', 'onnx', 'onnx int8']
    """
    progress = progress or SilentProgress()
    run = user_path(model) if is_run(model) else None
    if out is None and run is None:
        raise OptionError("the model is not in a run folder. Give the folder to write (option out).")
    folder = run / "exports" if out is None and run is not None else user_path(out or "")
    reference = reference_for(model, data, calibrate=True, device=device, cache=cache, progress=progress)
    rows = (ExportRow("model", None, reference.row), *_rows(reference, folder, progress))
    words = re.sub(r"^([\w ]+ of )?.*[/\\]", r"\1", reference.images.words)  # the report has no path of this machine
    images = f"{reference.row.images:,} images, {words}"
    table = ExportTable(rows, images, folder)
    document = json_text(table.as_json(), indent=1).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / EXPORTS_FILE, document)
        write_atomically(folder / TABLE_FILE, table.as_markdown().encode())
        if run is not None:
            write_atomically(run / EXPORTS_FILE, document)
    except OSError as error:
        raise OutputError(f"{not_written(folder, error)}, or name another folder.") from error
    if run is not None:
        report(run, progress=progress)
    return table


def _rows(reference: ExportReference, folder: Path, progress: Progress) -> Iterator[ExportRow]:
    """Every format and variant, in the order of the registry."""
    for form in FORMATS.values():
        for variant in ("", *form.variants):
            name = f"{form.name} {variant}".strip()
            file = folder / form.file_name("model", variant)
            try:
                form.require()
                if form.environment and not form.environment.is_ready:
                    raise MissingExtra(
                        f"its packages are not installed yet; headstart export --to {form.name} does that"
                    )
                done = write_compared(
                    reference, form.name, variant, file, allow_loss=False, progress=progress, may_download=False
                )
            except (ExportError, MissingExtra) as error:
                progress.say(f"{name}: {error}")
                yield ExportRow(name, None, None, str(error))
            else:
                result, reason = (
                    (None, f"{file.name}: not verified: {done.unverified}")
                    if done.unverified
                    else (done.formats[-1], "")
                )
                yield ExportRow(name, file, result, reason)
