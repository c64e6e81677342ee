"""Labels of tables, in any of the supported layouts: a column of labels, of several labels, or one for each label."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, final

from headstart.data.finding import Finding
from headstart.data.image_table import Spellings, TableRow
from headstart.data.label_cells import SEPARATOR
from headstart.data.sources.addresses import name_of
from headstart.data.table_columns import LABEL_COLUMNS, LABELS_COLUMNS, expected_columns, find_column
from headstart.data.table_file import TableFile
from headstart.errors import DataError

SEPARATORS: Final = (SEPARATOR, ";", ",")
"""Separators of labels in a cell: the first that occurs anywhere in the column, or else blanks."""

MARKS: Final = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
"""Cells of an indicator column, which says whether an image has the label that the column is named after."""

SHARE_OF_MARKS: Final = 0.5
"""Share of indicator cells from which a column is an indicator column, and other cells in it are errors."""

MOST_SEEN: Final = 1000
"""Different cells of a column that are looked at once only."""

_WHOLE_NUMBER: Final = re.compile(r"(-?\d+)(\.0+)?")
_BLANK: Final = re.compile(r"\s")


@final
class CellSurvey:
    """What the cells of a column look like; any number of cells takes the same memory.

    Attributes:
        num_given: cells that are not empty.
        num_marks: indicator cells.
        separators: those of ``SEPARATORS`` that occur.
        has_blanks: whether a cell has blanks within it.
        are_whole: whether all cells that are not empty are whole numbers.
        have_fraction: whether one is written as 0.0.
    """

    def __init__(self) -> None:
        self.num_given = self.num_marks = 0
        self.separators: set[str] = set()
        self.has_blanks = self.have_fraction = False
        self.are_whole = True
        self._seen: set[str] = set()

    def add(self, cell: str) -> None:
        """Takes a cell."""
        if not cell:
            return
        self.num_given += 1
        self.num_marks += cell in MARKS or cell.lower() in MARKS
        if cell in self._seen:
            return
        if len(self._seen) < MOST_SEEN:
            self._seen.add(cell)
        self.separators.update(sign for sign in SEPARATORS if sign in cell)
        self.has_blanks = self.has_blanks or _BLANK.search(cell) is not None
        whole = _WHOLE_NUMBER.fullmatch(cell) if self.are_whole else None
        self.are_whole = whole is not None
        self.have_fraction = self.have_fraction or bool(whole and whole[2])


@final
class TableLabels:
    """The labels of a table's rows, in any of the supported layouts.

    Args:
        file: for errors.
        read: the text of the table.
        surveys: of the columns but that of paths.
        chosen: name of the label column; "": found by name.
        taken: names of columns with other content.
        findings: list to append to.

    Attributes:
        is_multi_label: whether an image may have any number of labels.
        names: labels of indicator columns; () for other layouts.
        spellings: of the labels.
    """

    def __init__(
        self,
        file: str,
        read: TableFile,
        surveys: Mapping[str, CellSurvey],
        chosen: str,
        taken: Sequence[str | None],
        findings: list[Finding],
    ) -> None:
        self.file, self.surveys, self.taken, self.spellings = file, surveys, taken, Spellings()
        place = {name: number for number, name in enumerate(read.names)}
        one = find_column(file, read.names, chosen, LABEL_COLUMNS, "label")
        several = None if chosen else find_column(file, read.names, "", LABELS_COLUMNS, "label")
        if one is not None and self._is_list(one, read, is_chosen=bool(chosen)):
            one, several = None, one
        names: tuple[str, ...] = ()
        self.is_multi_label = one is None
        self.separator: str | None = None
        self.has_fractions = False
        if one is not None:
            self._read_whole_numbers(one, findings)
        elif several is not None:
            self._find_separator(several, findings)
        else:
            names = self._find_indicators(read.names, findings)
        self._one, self._several = [None if column is None else place[column] for column in (one, several)]
        self.names = names
        self._marks = [(name, place[name]) for name in names]

    def _survey(self, column: str) -> CellSurvey:
        """Of a column; an empty one for the column of paths."""
        return self.surveys.get(column) or CellSurvey()

    def _is_list(self, column: str, read: TableFile, *, is_chosen: bool) -> bool:
        """Whether a column has any number of labels per cell: by its type, or if it was chosen by name or content."""
        if column in read.list_columns or column == read.label_column:
            return column in read.list_columns
        return is_chosen and (column.lower() in LABELS_COLUMNS or SEPARATOR in self._survey(column).separators)

    def is_labelled(self, cells: Sequence[str]) -> bool:
        """Whether a row has a label; in multi-label data an empty cell means no labels."""
        return self._one is None or bool(cells[self._one])

    def of(self, number: int, cells: Sequence[str]) -> tuple[str, ...]:
        """The labels of a row.

        Args:
            number: of the row, for errors.
            cells: of all columns.
        """
        if self._one is not None:
            cell = cells[self._one]
            return (self.spellings.name(cell.partition(".")[0] if self.has_fractions else cell),)
        if self._several is not None:
            parts = (part.strip() for part in cells[self._several].split(self.separator))
            return tuple(dict.fromkeys(self.spellings.name(part) for part in parts if part))
        found = []
        for name, place in self._marks:
            cell = cells[place].lower()
            if cell not in MARKS:
                raise DataError(f"{self.file}, row {number}: {name!r} is {cell!r}. Expected 0 or 1.")
            if MARKS[cell]:
                found.append(self.spellings.name(name))
        return tuple(found)

    def _find_separator(self, column: str, findings: list[Finding]) -> None:
        survey = self._survey(column)
        self.separator = next((sign for sign in SEPARATORS if sign in survey.separators), None)
        if self.separator is None and survey.has_blanks:
            message = f"{name_of(self.file)}: labels in {column!r} are split at spaces"
            findings.append(Finding("label-format", "note", message))

    def _find_indicators(self, columns: Sequence[str], findings: list[Finding]) -> tuple[str, ...]:
        candidates = [name for name in self.surveys if name not in self.taken]
        names = tuple(name for name in candidates if _are_marks(self.surveys[name]))
        if not names:
            raise DataError(
                f"{self.file}: no label column. {expected_columns(columns, LABEL_COLUMNS, 'label')}; for any number of "
                f"labels per image {', '.join(LABELS_COLUMNS[:2])}, separated by {SEPARATOR}, or a column of 0 and 1 "
                "for each label."
            )
        if ambiguous := next((name for name in names if SEPARATOR in name), ""):
            raise DataError(
                f"{self.file}: the label {ambiguous!r} contains {SEPARATOR}, which separates labels. Rename it."
            )
        if unused := [name for name in candidates if name not in names]:
            message = f"{name_of(self.file)}: column(s) {', '.join(unused)} not used: the cells are not 0 or 1"
            findings.append(Finding("unused-columns", "note", message))
        return names

    def _read_whole_numbers(self, column: str, findings: list[Finding]) -> None:
        """Undoes pandas, which turns a column of integers with missing values into floats."""
        survey = self._survey(column)
        if not survey.are_whole or not survey.have_fraction:
            return
        self.has_fractions = True
        message = f"{name_of(self.file)}: labels in {column!r} such as 0.0 are read as integers such as 0"
        findings.append(Finding("label-format", "note", message))

    def together(self, number: int, first: TableRow, second: TableRow) -> TableRow:
        """Merges two rows of one path."""
        if self._several is not None and (first.split, first.group) == (second.split, second.group):
            labels = tuple(dict.fromkeys((*first.labels, *second.labels)))
            return TableRow(first.path, labels, first.split, first.group)
        if first != second:
            said = [", ".join(row.labels) + (f" ({row.split})" if row.split else "") for row in (first, second)]
            raise DataError(
                f"{self.file}, row {number}: {first.path} occurs twice, as {said[0]!r} and as {said[1]!r}. Keep the "
                "correct row" + ("." if self.is_multi_label else ", or name the column labels if both are correct.")
            )
        return first


def _are_marks(survey: CellSurvey) -> bool:
    return survey.num_marks > SHARE_OF_MARKS * max(1, survey.num_given)
