"""The table of labels that ``headstart train`` reads: written atomically, read again after edits by hand."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import final

from headstart.data.label_cells import join_labels
from headstart.errors import OutputError
from headstart.files import csv_text, not_written, text_bytes, write_atomically
from headstart.labelling.label_state import LabelState

Row = tuple[str, tuple[str, ...], str, str, str]
"""Path, labels, split, source and time."""


def table_text(rows: Iterable[Row], *, multi_label: bool) -> str:
    """The content of a table with the columns path, label, split, source and time.

    With several labels per image the second column is called "labels", as ``headstart train`` expects it.
    """
    kept = list(rows)
    cells = join_labels([row[1] for row in kept]) if multi_label else [row[1][0] for row in kept]
    header = ("path", "labels" if multi_label else "label", "split", "source", "time")
    return csv_text([header, *((row[0], cell, *row[2:]) for row, cell in zip(kept, cells, strict=True))])


@final
class LabelTable:
    """A CSV file with a row for each labelled image.

    Args:
        file: its path.
        multi_label: whether images have any number of labels; images answered with none of the classes are then rows
            without a label.

    Attributes:
        kept: copy of a table that another program changed while the session was open; None if there was none.
    """

    def __init__(self, file: Path, *, multi_label: bool) -> None:
        self.file, self.multi_label = file, multi_label
        self.kept: Path | None = None
        self._written = ""

    def text(self, state: LabelState) -> str:
        """The content of the file, in the order of the paths."""
        kinds = ("label", "none") if self.multi_label else ("label",)
        rows = (
            (path, answer.labels, state.split_of(path), answer.source, answer.time)
            for path, answer in state.answers.items()
            if answer.kind in kinds
        )
        return table_text(sorted(rows), multi_label=self.multi_label)

    def write(self, text: str) -> None:
        """Replaces the file; one that another program changed since the last call is kept, see ``keep_aside``.

        Raises:
            OutputError: it cannot be written.
        """
        data = text_bytes(text)
        try:
            if self._written and self.digest() not in ("", self._written, hashlib.sha256(data).hexdigest()):
                self.keep_aside()
            write_atomically(self.file, data)
            self._written = hashlib.sha256(data).hexdigest()
        except OSError as error:
            raise OutputError(f"{not_written(self.file, error)}; the label itself is in the journal.") from error

    def keep_aside(self) -> None:
        """Renames the file to NAME.edited.csv, with a number if there is one already.

        Raises:
            OutputError: it cannot be renamed.
        """
        names = itertools.chain([".edited.csv"], (f".edited-{number}.csv" for number in itertools.count(2)))
        self.kept = next(file for name in names if not (file := self.file.with_suffix(name)).exists())
        try:
            os.replace(self.file, self.kept)
        except OSError as error:
            raise OutputError(not_written(self.kept, error)) from error

    def digest(self) -> str:
        """Hash of the file; "" if it does not exist."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest() if self.file.exists() else ""

    @staticmethod
    def digest_of(text: str) -> str:
        """``digest`` after ``write``."""
        return hashlib.sha256(text_bytes(text)).hexdigest()
