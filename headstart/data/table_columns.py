"""Columns of tables: their usual names, and those that are chosen by name."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from headstart.errors import DataError

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


def find_column(file: str, columns: Iterable[str], chosen: str, names: Sequence[str], what: str) -> str | None:
    """The chosen column, or one of a usual name; None if there is none."""
    if not chosen:
        return next((column for name in names for column in columns if column.lower() == name), None)
    name = unicodedata.normalize("NFC", chosen)
    found = next((column for column in columns if column == name), None)
    found = found or next((column for column in columns if column.lower() == name.lower()), None)
    if found is None:
        raise DataError(f"{file}: no column {chosen!r}, given as --{what}-column. Found: {', '.join(columns)}.")
    return found


def expected_columns(columns: Iterable[str], names: Sequence[str], what: str) -> str:
    """The end of a message about a column that is missing."""
    return f"Found: {', '.join(columns)}. Expected one named {', '.join(names)}, or name it with {_option(what)}"


def _option(what: str) -> str:
    others = ", ".join(f"--{name}-column" for name in asdict(Columns()) if name != what)
    return f"--{what}-column (likewise {others}; in Python {what}_column)"
