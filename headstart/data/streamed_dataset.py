"""Labelled images, or paths, in any number: listed once, kept in a file beyond some thousand, and read in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import final

from headstart.data.image_table import SPLITS, TableRow
from headstart.data.label_cells import SEPARATOR
from headstart.data.listing import is_source, iter_images, list_source
from headstart.data.natural_order import RowSpool, natural_place_text
from headstart.data.sources.addresses import absolute, join, parent_of, split_address, user_address
from headstart.data.table_columns import Columns
from headstart.files import UserPath


@final
class StreamedDataset:
    """The images of ``dataset.open_data``, in the same order, without a list of them in memory.

    Args:
        source: path, pattern or URL.
        columns: chosen columns of a table.
        min_classes: minimum number of classes.

    Attributes:
        root: the source.
        findings: what was ignored, and what was read differently from how it is written.

    Raises:
        DataError, SourceError, MissingExtra, OptionError: see ``dataset.open_data``.
        CacheError: the cache folder, where the list is kept meanwhile, cannot be written.
    """

    def __init__(self, source: UserPath, columns: Columns | None = None, *, min_classes: int = 2) -> None:
        self._rows, self._has_separator = RowSpool(), False
        listing = list_source(source, columns or Columns(), min_classes=min_classes, keep=self._keep)
        self.root, self._base, self._is_multi_label = listing.root, listing.base, listing.table.is_multi_label
        self.findings = (*listing.table.findings, *listing.table.spellings.findings())

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[str, str, str, str]]:
        """Address, label, split and group of each image; the label is a cell as ``table.join_labels`` gives it."""
        end = SEPARATOR if self._is_multi_label and not self._has_separator else ""
        for path, label, split, group in self._rows:
            yield join(self._base, path), label and label + end, split, group

    def _keep(self, rows: Iterable[TableRow], is_multi_label: bool) -> tuple[TableRow, ...]:
        """See ``image_table.KeepRows``."""
        places: dict[str, str] = {"": ""}
        for row in rows:
            labels = sorted(row.labels, key=natural_place_text) if len(row.labels) > 1 else row.labels
            label = SEPARATOR.join(labels)
            if is_multi_label:
                self._has_separator = self._has_separator or SEPARATOR in label
            elif label not in places:
                places[label] = natural_place_text(label)
            split = str(SPLITS.index(row.split)) if row.split else ""
            key = f"{split}{'' if is_multi_label else places[label]}{natural_place_text(row.path)}"
            self._rows.add(key, (row.path, label, row.split, row.group))
        return ()


@final
class StreamedPaths:
    """The addresses of ``listing.iter_images`` for several sources, one after the other.

    Args:
        sources: files, folders, archives, tables and patterns.

    Attributes:
        sources: absolute addresses of the folders, archives, tables and patterns; of a single file, that of its folder.

    Raises:
        DataError, SourceError, MissingExtra: see ``listing.iter_images``.
        CacheError: the cache folder, where the list is kept meanwhile, cannot be written.
    """

    def __init__(self, sources: Iterable[UserPath]) -> None:
        self._rows = RowSpool()
        given = [user_address(source) for source in sources]
        found = (one if is_source(one) else parent_of(split_address(one)[0]) for one in given)
        self.sources = tuple(dict.fromkeys(map(absolute, found)))
        for source in given:
            for address in iter_images(source):
                self._rows.add("", (address,))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return (row[0] for row in self._rows)
