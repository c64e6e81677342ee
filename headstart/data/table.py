"""Tables of labelled images: finding the columns of paths, labels, splits and groups, and reading the rows."""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from typing import final

import numpy as np
from natsort import natsorted

from headstart.data.finding import Finding
from headstart.data.image_table import SPLIT_NAMES, ImageTable, KeepRows, TableRow, in_memory
from headstart.data.sources.addresses import name_of, parent_of
from headstart.data.sources.stores import store_of
from headstart.data.table_columns import (
    GROUP_COLUMNS,
    LABEL_COLUMNS,
    PATH_COLUMNS,
    SPLIT_COLUMNS,
    Columns,
    expected_columns,
    find_column,
)
from headstart.data.table_file import TableFile, read_table_file
from headstart.data.table_labels import CellSurvey, TableLabels
from headstart.data.table_paths import TablePaths
from headstart.errors import DataError


def read_table(file: str, columns: Columns | None = None, *, keep: KeepRows = in_memory) -> ImageTable:
    """Reads a CSV, TSV or Parquet table with a row per image, in two passes; only rows of repeated paths are in memory.

    Columns that are not named are found by the names in ``PATH_COLUMNS``, ``SPLIT_COLUMNS`` and ``GROUP_COLUMNS``,
    ignoring case. A column in ``LABEL_COLUMNS`` has one label per image. A column in ``LABELS_COLUMNS``, or with
    ``SEPARATOR`` in its cells, has any number, and rows of the same path are merged. Without either, indicator columns
    (``MARKS``) are the labels.

    Paths may use backslashes and may lack the file extension. Integers written as 0.0 and 1.0 become 0 and 1.

    Args:
        file: path of the table.
        columns: chosen columns; default: found by name.
        keep: takes the rows.

    Raises:
        DataError: the file or a column is missing, a split or an indicator is unknown, or a path has two labels.
    """
    if not store_of(file).is_file(file):
        raise DataError(f"{file}: no such table.")
    reading = _Reading(file, read_table_file(file), columns or Columns())
    return reading.listing(keep(reading.rows(), reading.labels.is_multi_label))


@final
class _Reading:
    """The second pass over a table, after a first one that found out how its cells are written.

    Args:
        file: its path.
        read: its text.
        chosen: columns.
    """

    def __init__(self, file: str, read: TableFile, chosen: Columns) -> None:
        self.file, self.read, self.findings = file, read, list(read.findings)
        place = {name: number for number, name in enumerate(read.names)}
        path = _path_column(file, read, chosen.path)
        split = find_column(file, read.names, chosen.split, SPLIT_COLUMNS, "split")
        group = find_column(file, read.names, chosen.group, GROUP_COLUMNS, "group")
        self.path = place[path]
        self.split, self.group = (None if name is None else place[name] for name in (split, group))
        surveys = {name: CellSurvey() for name in read.names if name != path}
        self.repeated = self._survey(surveys, may_repeat=path != read.image_column)
        self.labels = TableLabels(file, read, surveys, _label_column(read, chosen.label), (split, group), self.findings)
        self.files = TablePaths(parent_of(file))
        self.missing: dict[str, list[int]] = {"path": [], "label": [], "split": []}
        self.used = self.kept = self.unlabelled = 0
        self.seen: set[str] = set()

    def _survey(self, surveys: dict[str, CellSurvey], *, may_repeat: bool) -> frozenset[int]:
        """Looks at all cells; returns the hashes of paths that may occur more than once."""
        columns = [(self.read.names.index(name), survey) for name, survey in surveys.items()]
        hashes = array("q")
        for cells in self.read.rows():
            for place, survey in columns:
                survey.add(cells[place])
            if may_repeat and cells[self.path]:
                hashes.append(_path_hash(cells[self.path]))
        ascending = np.frombuffer(hashes, np.int64) if hashes else np.empty(0, np.int64)
        ascending.sort()
        return frozenset(ascending[1:][ascending[1:] == ascending[:-1]].tolist())

    def rows(self) -> Iterator[TableRow]:
        """The rows of the images; those of paths that may occur more than once come last."""
        held: dict[str, TableRow] = {}
        for number, cells in enumerate(self.read.rows(), start=self.read.first_row):
            if not any(cells):
                continue
            self.used += 1
            row = self._row(number, cells)
            if row is None:
                continue
            if not self.repeated or _path_hash(cells[self.path]) not in self.repeated:
                yield self._counted(row)
            else:
                first = held.get(row.path)
                held[row.path] = row if first is None else self.labels.together(number, first, row)
        yield from map(self._counted, held.values())

    def _row(self, number: int, cells: Sequence[str]) -> TableRow | None:
        """The image of a row; None if it lacks something."""
        written = cells[self.path]
        has_split = self.split is None or bool(cells[self.split])
        if lacks := _lacks(written, self.labels.is_labelled(cells), has_split):
            self.missing[lacks].append(number)
            return None
        split = "" if self.split is None else _split_value(self.file, number, cells[self.split])
        group = "" if self.group is None else cells[self.group]
        return TableRow(self.files.find(written), self.labels.of(number, cells), split, group)

    def _counted(self, row: TableRow) -> TableRow:
        self.kept += 1
        self.unlabelled += not row.labels
        self.seen.update(row.labels)
        return row

    def listing(self, rows: tuple[TableRow, ...]) -> ImageTable:
        """The table, after the rows were taken.

        Args:
            rows: that stay in memory.
        """
        self.findings += _incomplete(self.file, self.missing, self.used)
        if not self.kept:
            raise DataError(f"{self.file}: no row with a path and a label.")
        self.findings += self.files.findings(self.file)
        if self.unlabelled:
            message = f"{self.unlabelled:,} of {self.kept:,} images have no label; they are used as images without any"
            self.findings.append(Finding("no-label", "note", f"{message} label"))
        return ImageTable(
            rows,
            tuple(natsorted(self.labels.names or self.seen)),
            self.labels.is_multi_label,
            self.split is not None,
            self.group is not None,
            tuple(self.findings),
            self.labels.spellings,
        )


def _path_hash(written: str) -> int:
    """A number that is equal for all ways to write a path that ``TablePaths`` reads as one."""
    text = written.replace("\\", "/")
    if not written.isascii() or text != written:
        plain = unicodedata.normalize("NFD", re.sub(r"\\x[89a-f][0-9a-f]", "", written)).replace("\\", "/")
        text = plain.encode("ascii", "ignore").decode()
    stem, _, suffix = text.rpartition(".")
    return hash(text if not stem or "/" in suffix else stem)


def table_paths(file: str) -> Iterator[str]:
    """The paths in a table, in its order; labels are not needed.

    Raises:
        DataError: the file cannot be read, or has no path column.
    """
    read, files = read_table_file(file), TablePaths(parent_of(file))
    place = read.names.index(_path_column(file, read, ""))
    return (files.find(cells[place]) for cells in read.rows() if cells[place])


def _path_column(file: str, read: TableFile, chosen: str) -> str:
    column = find_column(file, read.names, chosen, PATH_COLUMNS, "path") if chosen or not read.image_column else None
    column = column or read.image_column or None
    if column is None:
        raise DataError(f"{file}: no path column. {expected_columns(read.names, PATH_COLUMNS, 'path')}.")
    return column


def _label_column(read: TableFile, chosen: str) -> str:
    """The chosen label column, or the one that the file declares if no column for one label has a usual name."""
    if chosen or any(name.lower() in LABEL_COLUMNS for name in read.names):
        return chosen
    return read.label_column


def _lacks(path: str, has_label: bool, has_split: bool) -> str:
    """What a row lacks: "path", "label", "split", or "" for nothing."""
    return "path" if not path else "label" if not has_label else "" if has_split else "split"


def _incomplete(file: str, missing: dict[str, list[int]], rows: int) -> list[Finding]:
    """Findings about ignored rows. Rows without a split are ignored on purpose in the ``split.csv`` of a run."""
    found = []
    lost = {what: numbers for what, numbers in missing.items() if numbers and what != "split"}
    if lost:
        count = sum(map(len, lost.values()))
        words = " and ".join(f"{len(numbers):,} have no {what}" for what, numbers in lost.items())
        message = f"{name_of(file)}: {count:,} of {rows:,} rows are left out: {words}"
        if len(lost) == 1:
            message = f"{name_of(file)}: {count:,} of {rows:,} rows have no {next(iter(lost))} and are left out"
        items = [(number, what) for what, numbers in lost.items() for number in numbers]
        rows_lost = tuple(f"row {number}: no {what}" for number, what in sorted(items))
        found.append(Finding("incomplete-row", "serious", message, rows_lost))
    if missing["split"]:
        message = f"{name_of(file)}: {len(missing['split']):,} of {rows:,} rows have no split; left out"
        found.append(
            Finding("row-without-split", "note", message, tuple(f"row {number}" for number in missing["split"]))
        )
    return found


def _split_value(file: str, number: int, value: str) -> str:
    try:
        return SPLIT_NAMES[value.lower()]
    except KeyError:
        names = ", ".join(SPLIT_NAMES)
        raise DataError(f"{file}, row {number}: split is {value!r}. Expected one of {names}.") from None
