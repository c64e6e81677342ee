"""Labelled images as a listing gives them: rows of paths, labels, splits and groups, and spellings of class names."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, final

from natsort import natsorted

from headstart.data.finding import Finding

SPLITS: Final = ("train", "val", "test")

MISSING_VALUES: Final = frozenset({"nan", "null", "<na>", "n/a", "#n/a", "nat"})
"""What programs write for a missing label, in lower case. "none" and "na" may well be classes."""

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


KeepRows = Callable[[Iterable[TableRow], bool], tuple[TableRow, ...]]
"""Takes rows of a listing, and whether an image may have any number of labels; returns the rows that stay in memory:
all, as ``in_memory`` does, or none."""


def in_memory(rows: Iterable[TableRow], _is_multi_label: bool) -> tuple[TableRow, ...]:
    """Keeps all rows, see ``KeepRows``."""
    return tuple(rows)


@dataclass(frozen=True)
class ImageTable:
    """Labelled images as a table, or a folder, lists them.

    Attributes:
        rows: one per path; () if they went to another place, see ``KeepRows``.
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
            shown = "".join(c for c in name if unicodedata.category(c) != "Cf")  # zero-width characters
            key = unicodedata.normalize("NFKC", shown).casefold()
            alike.setdefault(re.sub(r"[\s_-]+", " ", key).strip(), []).append(name)
        if groups := [", ".join(names) for names in alike.values() if len(names) > 1]:
            more = "; ..." if len(groups) > 1 else ""
            message = (
                f"{len(groups):,} group(s) of class names differ only in case, spacing, invisible characters or "
                f"Unicode form: {groups[0]}{more}. They stay separate classes; rename them if they mean one class"
            )
            found.append(Finding("similar-class-names", "warning", message, tuple(groups)))
        if missing := [name for name in natsorted(self.seen) if name.casefold() in MISSING_VALUES]:
            message = (
                f"{len(missing):,} class name(s) look like missing values: {', '.join(missing)}. Remove the images, or "
                "rename the class if it is one"
            )
            found.append(Finding("missing-value-class", "warning", message, tuple(missing)))
        return found
