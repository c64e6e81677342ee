"""Tables of labelled images: finding the columns of paths, labels, splits and groups, and reading the rows."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, final

from natsort import natsorted

from headstart.data.finding import Finding
from headstart.data.image_formats import SUFFIXES
from headstart.data.table_file import LIST_SEPARATOR, read_table_file
from headstart.errors import DataError
from headstart.files import path_of

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
"""Folder name, or value of a split column, in lower case -> the split."""

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
"""Names of a column with any number of labels per cell."""

SPLIT_COLUMNS: Final = ("split", "set", "subset")
GROUP_COLUMNS: Final = ("group", "group_id")

SEPARATOR: Final = LIST_SEPARATOR
"""Separator of the labels of an image in tables that Headstart writes."""

SEPARATORS: Final = (SEPARATOR, ";", ",")
"""Separators of labels in a cell: the first that occurs anywhere in the column, or else blanks."""

MARKS: Final = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
"""Cells of an indicator column, which says whether an image has the label that the column is named after."""

SHARE_OF_MARKS: Final = 0.5
"""Share of indicator cells from which a column is an indicator column, and other cells in it are errors."""

_WHOLE_NUMBER: Final = re.compile(r"(-?\d+)(\.0+)?")


@dataclass(frozen=True)
class Columns:
    """Columns of a table, by name.

    Attributes:
        path: column of paths; "" for the first of ``PATH_COLUMNS`` that the table has.
        label: likewise, of ``LABEL_COLUMNS`` or ``LABELS_COLUMNS``.
        split: likewise, of ``SPLIT_COLUMNS``.
        group: likewise, of ``GROUP_COLUMNS``.
    """

    path: str = ""
    label: str = ""
    split: str = ""
    group: str = ""

    def as_options(self) -> dict[str, str]:
        """The arguments of ``open_data`` for these columns, without empty ones."""
        return {f"{name}_column": column for name, column in asdict(self).items() if column}


@dataclass(frozen=True)
class TableRow:
    """A row: an image.

    Attributes:
        path: as in the table.
        labels: of the image; exactly one for single-label data.
        split: "train", "val" or "test"; "" without such a column.
        group: name of the group; "" without such a column.
    """

    path: str
    labels: tuple[str, ...]
    split: str
    group: str


@dataclass(frozen=True)
class ImageTable:
    """Labelled images as a table, or a folder, lists them.

    Attributes:
        rows: one per path.
        classes: names of the labels, in natural order.
        is_multi_label: whether an image may have any number of labels.
        has_splits: whether it gives splits.
        has_groups: whether it gives groups.
        findings: what was ignored, and what was read differently from how it is written.
        spellings: of the class names.
    """

    rows: tuple[TableRow, ...]
    classes: tuple[str, ...]
    is_multi_label: bool
    has_splits: bool
    has_groups: bool
    findings: tuple[Finding, ...]
    spellings: Spellings


@final
@dataclass(frozen=True)
class Spellings:
    """Spellings of class names.

    Attributes:
        seen: name in Unicode's composed form (NFC) -> its spellings in the data.
    """

    seen: dict[str, set[str]] = field(default_factory=dict)

    def name(self, written: str) -> str:
        """The class of a spelling. Folder names that are not UTF-8 are read as cp1252."""
        try:
            written.encode()
        except UnicodeEncodeError:
            raw = os.fsencode(written)
            written = raw.decode("cp1252", errors="backslashreplace")
        name = unicodedata.normalize("NFC", written)
        self.seen.setdefault(name, set()).add(written)
        return name

    def findings(self) -> list[Finding]:
        """Class names that were merged, or that probably mean one class."""
        found = []
        if forms := [name for name, written in natsorted(self.seen.items()) if len(written) > 1]:
            message = (
                f"{len(forms):,} class name(s) occur in two Unicode forms, which look alike; both are read as one class"
            )
            found.append(Finding("unicode-form", "note", message, tuple(forms)))
        alike: dict[str, list[str]] = {}
        for name in natsorted(self.seen):
            key = unicodedata.normalize("NFKC", name).casefold()
            alike.setdefault(re.sub(r"[\s_-]+", " ", key).strip(), []).append(name)
        if groups := [", ".join(names) for names in alike.values() if len(names) > 1]:
            message = (
                f"{len(groups):,} group(s) of class names differ only in case, spacing or Unicode form: {groups[0]}"
                f"{'; ...' if len(groups) > 1 else ''}. They stay separate classes; rename them if "
                "they mean one class"
            )
            found.append(Finding("similar-class-names", "warning", message, tuple(groups)))
        return found


def read_table(file: Path, columns: Columns | None = None) -> ImageTable:
    """Reads a CSV, TSV or Parquet table with a row per image.

    Columns that are not named are found by the names in ``PATH_COLUMNS``, ``SPLIT_COLUMNS`` and ``GROUP_COLUMNS``,
    ignoring case. A column in ``LABEL_COLUMNS`` has one label per image. A column in ``LABELS_COLUMNS``, or with
    ``SEPARATOR`` in its cells, has any number, and rows of the same path are merged. Without either, indicator columns
    (``MARKS``) are the labels.

    Paths may use backslashes and may lack the file extension. Integers written as 0.0 and 1.0 become 0 and 1.

    Args:
        file: path of the table.
        columns: chosen columns; default: found by name.

    Raises:
        DataError: the file or a column is missing, a split or an indicator is unknown, or a path has two labels.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such table.")
    read, chosen = read_table_file(file), columns or Columns()
    cells, findings = read.columns, list(read.findings)
    path_column = _path_column(file, cells, chosen.path)
    split_column = _column(file, cells, chosen.split, SPLIT_COLUMNS, "split")
    group_column = _column(file, cells, chosen.group, GROUP_COLUMNS, "group")
    labels = _Labels(file, cells, chosen.label, [path_column, split_column, group_column], read.first_row, findings)
    files = _Files(file.parent)
    rows: dict[str, TableRow] = {}
    missing: dict[str, list[int]] = {"path": [], "label": [], "split": []}
    used = 0
    for place, written in enumerate(cells[path_column]):
        if not any(column[place] for column in cells.values()):
            continue
        used += 1
        number = place + read.first_row
        if lacks := _lacks(written, labels.is_labelled(place), not split_column or bool(cells[split_column][place])):
            missing[lacks].append(number)
            continue
        split = _split_value(file, number, cells[split_column][place]) if split_column else ""
        path = files.find(written)
        row = TableRow(path, labels.of(place), split, cells[group_column][place] if group_column else "")
        rows[path] = labels.together(number, rows[path], row) if path in rows else row
    findings += _incomplete(file, missing, used)
    if not rows:
        raise DataError(f"{file}: no row with a path and a label.")
    findings += [*files.findings(file), *_without_labels(rows)]
    return ImageTable(
        tuple(rows.values()),
        tuple(natsorted(labels.names or {label for row in rows.values() for label in row.labels})),
        labels.is_multi_label,
        split_column is not None,
        group_column is not None,
        tuple(findings),
        labels.spellings,
    )


def _path_column(file: Path, cells: dict[str, list[str]], chosen: str) -> str:
    column = _column(file, cells, chosen, PATH_COLUMNS, "path")
    if column is None:
        raise DataError(f"{file}: no path column. {_expected(cells, PATH_COLUMNS, 'path')}.")
    return column


def _without_labels(rows: dict[str, TableRow]) -> list[Finding]:
    count = sum(not row.labels for row in rows.values())
    message = f"{count:,} of {len(rows):,} images have no label; they are used as images without any label"
    return [Finding("no-label", "note", message)] if count else []


def join_labels(labels: Sequence[Sequence[str]]) -> list[str]:
    """Cells of a column of labels that ``read_table`` reads back unchanged."""
    cells = [SEPARATOR.join(names) for names in labels]
    if any(SEPARATOR in cell for cell in cells):
        return cells
    return [cell and cell + SEPARATOR for cell in cells]  # or a comma in a label would be read as a separator


class _Labels:
    """The labels of a table's rows, in any of the supported layouts.

    Args:
        file: for errors.
        columns: name -> cells.
        chosen: name of the label column; "": found by name.
        taken: names of columns with other content.
        first_row: see ``TableFile``.
        findings: list to append to.

    Attributes:
        is_multi_label: whether an image may have any number of labels.
        names: labels of indicator columns; () for other layouts.
        spellings: of the labels.
    """

    def __init__(
        self,
        file: Path,
        columns: dict[str, list[str]],
        chosen: str,
        taken: Sequence[str | None],
        first_row: int,
        findings: list[Finding],
    ) -> None:
        self.file, self.columns, self.first_row, self.spellings = file, columns, first_row, Spellings()
        self.one: str | None
        self.list: str | None
        if chosen:
            name = _column(file, columns, chosen, LABEL_COLUMNS, "label")
            assert name is not None
            is_list = name.lower() in LABELS_COLUMNS or any(SEPARATOR in cell for cell in columns[name])
            self.one, self.list = (None, name) if is_list else (name, None)
        else:
            self.one = _column(file, columns, "", LABEL_COLUMNS, "label")
            self.list = _column(file, columns, "", LABELS_COLUMNS, "label")
        self.names: tuple[str, ...] = ()
        self.is_multi_label = self.one is None
        self.separator: str | None = None
        if self.one is not None:
            self._read_whole_numbers(self.one, findings)
        elif self.list is not None:
            self._find_separator(self.list, findings)
        else:
            self._find_indicators([name for name in columns if name not in taken], findings)

    def is_labelled(self, place: int) -> bool:
        """Whether a row has a label; in multi-label data an empty cell means no labels."""
        return self.one is None or bool(self.columns[self.one][place])

    def of(self, place: int) -> tuple[str, ...]:
        if self.one is not None:
            return (self.spellings.name(self.columns[self.one][place]),)
        if self.list is not None:
            parts = (part.strip() for part in self.columns[self.list][place].split(self.separator))
            return tuple(dict.fromkeys(self.spellings.name(part) for part in parts if part))
        found = []
        for name in self.names:
            cell = self.columns[name][place].lower()
            if cell not in MARKS:
                raise DataError(f"{self.file}, row {place + self.first_row}: {name!r} is {cell!r}. Expected 0 or 1.")
            if MARKS[cell]:
                found.append(self.spellings.name(name))
        return tuple(found)

    def _find_separator(self, column: str, findings: list[Finding]) -> None:
        cells = self.columns[column]
        self.separator = next((sign for sign in SEPARATORS if any(sign in cell for cell in cells)), None)
        if self.separator is None and any(re.search(r"\s", cell) for cell in cells):
            message = f"{self.file.name}: labels in {column!r} are split at spaces"
            findings.append(Finding("label-format", "note", message))

    def _find_indicators(self, candidates: Sequence[str], findings: list[Finding]) -> None:
        self.names = tuple(name for name in candidates if _are_marks(self.columns[name]))
        if not self.names:
            raise DataError(
                f"{self.file}: no label column. {_expected(self.columns, LABEL_COLUMNS, 'label')}; for any number of "
                f"labels per image {', '.join(LABELS_COLUMNS[:2])}, separated by {SEPARATOR}, or a column of 0 and 1 "
                "for each label."
            )
        if ambiguous := next((name for name in self.names if SEPARATOR in name), ""):
            raise DataError(
                f"{self.file}: the label {ambiguous!r} contains {SEPARATOR}, which separates labels. Rename it."
            )
        if unused := [name for name in candidates if name not in self.names]:
            message = f"{self.file.name}: column(s) {', '.join(unused)} not used: the cells are not 0 or 1"
            findings.append(Finding("unused-columns", "note", message))

    def _read_whole_numbers(self, column: str, findings: list[Finding]) -> None:
        """Undoes pandas, which turns a column of integers with missing values into floats."""
        found = [_WHOLE_NUMBER.fullmatch(cell) for cell in self.columns[column] if cell]
        if not all(found) or not any(match and match[2] for match in found):
            return
        self.columns[column] = [cell.partition(".")[0] for cell in self.columns[column]]
        message = f"{self.file.name}: labels in {column!r} such as 0.0 are read as integers such as 0"
        findings.append(Finding("label-format", "note", message))

    def together(self, number: int, first: TableRow, second: TableRow) -> TableRow:
        """Merges two rows of one path."""
        if self.list is not None and (first.split, first.group) == (second.split, second.group):
            labels = tuple(dict.fromkeys((*first.labels, *second.labels)))
            return TableRow(first.path, labels, first.split, first.group)
        if first != second:
            said = [", ".join(row.labels) + (f" ({row.split})" if row.split else "") for row in (first, second)]
            raise DataError(
                f"{self.file}, row {number}: {first.path} occurs twice, as {said[0]!r} and as {said[1]!r}. Keep the "
                "correct row" + ("." if self.is_multi_label else ", or name the column labels if both are correct.")
            )
        return first


def _are_marks(cells: Sequence[str]) -> bool:
    given = [cell.lower() for cell in cells if cell]
    return sum(cell in MARKS for cell in given) > SHARE_OF_MARKS * max(1, len(given))


@final
class _Files:
    """Finds the files of a table's paths.

    Args:
        base: folder that relative paths start at.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.turned: list[str] = []
        self.completed: list[str] = []
        self._listed: dict[str, dict[str, list[str]]] = {}

    def find(self, written: str) -> str:
        """The path as written if the file exists, else the path of the one file that it probably means.

        For example with slashes instead of backslashes, with the missing extension, or in another Unicode form. A path
        that matches no file, or more than one, stays as written.
        """
        if os.path.exists(os.path.join(self.base, written)):
            return written
        if (path := path_of(os.path.join(self.base, written))) != os.path.join(self.base, written):
            return os.path.relpath(path, self.base) if not os.path.isabs(written) else path
        path = written.replace("\\", "/")
        if path != written and os.path.exists(os.path.join(self.base, path)):
            self.turned.append(written)
            return path
        folder, name = os.path.split(path)
        fitting = self._names(folder).get(unicodedata.normalize("NFC", name), [])
        if len(fitting) != 1:
            return written
        (self.turned if path != written else self.completed).append(written)
        return os.path.join(folder, fitting[0])

    def findings(self, file: Path) -> list[Finding]:
        """Paths that were read differently from how they are written."""
        found = []
        for written, what in (
            (self.turned, "contain backslashes, which are read as slashes"),
            (self.completed, "lack the file's extension or use another Unicode form; the matching file is used"),
        ):
            if written:
                message = f"{file.name}: {len(written):,} path(s) {what}"
                found.append(Finding("path-spelling", "note", message, tuple(written)))
        return found

    def _names(self, folder: str) -> dict[str, list[str]]:
        """Names of image files, with and without suffix, in Unicode's composed form -> the files."""
        if folder not in self._listed:
            names: dict[str, list[str]] = {}
            try:
                files = os.listdir(os.path.join(self.base, folder))
            except OSError:
                files = []
            for file in files:
                stem, ending = os.path.splitext(unicodedata.normalize("NFC", file))
                if ending.lower() in SUFFIXES:
                    names.setdefault(stem, []).append(file)
                    names.setdefault(stem + ending, []).append(file)
            self._listed[folder] = names
        return self._listed[folder]


def _lacks(path: str, has_label: bool, has_split: bool) -> str:
    """What a row lacks: "path", "label", "split", or "" for nothing."""
    return "path" if not path else "label" if not has_label else "" if has_split else "split"


def _incomplete(file: Path, missing: dict[str, list[int]], rows: int) -> list[Finding]:
    """Findings about ignored rows. Rows without a split are ignored on purpose in the ``split.csv`` of a run."""
    found = []
    lost = {what: numbers for what, numbers in missing.items() if numbers and what != "split"}
    if lost:
        count = sum(map(len, lost.values()))
        words = " and ".join(f"{len(numbers):,} have no {what}" for what, numbers in lost.items())
        message = f"{file.name}: {count:,} of {rows:,} rows are left out: {words}"
        if len(lost) == 1:
            message = f"{file.name}: {count:,} of {rows:,} rows have no {next(iter(lost))} and are left out"
        items = [(number, what) for what, numbers in lost.items() for number in numbers]
        rows_lost = tuple(f"row {number}: no {what}" for number, what in sorted(items))
        found.append(Finding("incomplete-row", "serious", message, rows_lost))
    if missing["split"]:
        message = f"{file.name}: {len(missing['split']):,} of {rows:,} rows have no split; left out"
        found.append(
            Finding("row-without-split", "note", message, tuple(f"row {number}" for number in missing["split"]))
        )
    return found


def _column(file: Path, columns: Iterable[str], chosen: str, names: Sequence[str], what: str) -> str | None:
    """The chosen column, or one of a usual name; None if there is none."""
    if not chosen:
        return next((column for name in names for column in columns if column.lower() == name), None)
    name = unicodedata.normalize("NFC", chosen)
    found = next((column for column in columns if column == name), None)
    found = found or next((column for column in columns if column.lower() == name.lower()), None)
    if found is None:
        raise DataError(f"{file}: no column {chosen!r}, given as --{what}-column. Found: {', '.join(columns)}.")
    return found


def _expected(columns: Iterable[str], names: Sequence[str], what: str) -> str:
    return f"Found: {', '.join(columns)}. Expected one named {', '.join(names)}, or name it with {_option(what)}"


def _option(what: str) -> str:
    others = ", ".join(f"--{name}-column" for name in asdict(Columns()) if name != what)
    return f"--{what}-column (likewise {others}; in Python {what}_column)"


def _split_value(file: Path, number: int, value: str) -> str:
    try:
        return SPLIT_NAMES[value.lower()]
    except KeyError:
        names = ", ".join(SPLIT_NAMES)
        raise DataError(f"{file}, row {number}: split is {value!r}. Expected one of {names}.") from None
