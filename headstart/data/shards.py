"""Data in archives and shards: what is in one archive, and the data set that several files make together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from natsort import natsorted

from headstart.data.class_folders import class_folders, listed, visible_folders
from headstart.data.file_tree import NameTree, camera_raw, images_below, is_hidden, is_image_name
from headstart.data.finding import Finding
from headstart.data.image_table import SPLIT_NAMES, ImageTable, KeepRows, Spellings, TableRow, in_memory
from headstart.data.sources.addresses import (
    join,
    join_member,
    name_of,
    parent_of,
    suffix_of,
)
from headstart.data.sources.containers import close_container, open_container
from headstart.data.sources.interface import Contents
from headstart.data.table import read_table, table_paths
from headstart.data.table_columns import Columns
from headstart.data.table_file import COLUMN_FILES, TABLE_SUFFIXES
from headstart.data.webdataset import is_webdataset, webdataset_rows
from headstart.errors import DataError, UnreadableImage

SHARD_SUFFIXES: Final = (".tar", *COLUMN_FILES)
"""Suffixes of files that a folder of shards consists of."""

AFTER_DAMAGE: Final = "(files after the damage)"
"""Member that stands for the files of a damaged archive that are lost; there is none of this name."""

_SPLIT: Final = re.compile(rf"({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})(?![a-z])", re.IGNORECASE)
"""Start of the name of a shard, or of its folder, that says to which split it belongs: ``train-00000.tar``."""


def archive_rows(address: str, *, min_classes: int = 2, keep: KeepRows = in_memory) -> ImageTable:
    """The labelled images of a tar or zip file; paths are relative to its folder: ``flowers.zip::roses/0.jpg``.

    Images with a label member beside them are WebDataset samples; otherwise the folders in the archive are classes. A
    single folder that everything is in, as archivers add it, is passed over.

    Args:
        address: path or URL.
        min_classes: minimum number of classes.
        keep: takes the rows.

    Raises:
        DataError: it is damaged from the start, or has no labelled images.
    """
    contents, name = _contents(address), name_of(address)
    if not contents.names:
        raise DataError(f"{address}: the archive is empty.")
    if is_webdataset(contents):
        listing = webdataset_rows(contents, name)
        if not listing.rows:
            raise DataError(f"{address}: no sample has both an image and a label. {listing.findings[0].items[0]}.")
    else:
        tree = NameTree(contents.names)
        inside = _only_folder(tree) if min_classes > 1 else ""
        listing = _labelled_by_folders(tree, address, name, inside)
    rows = (replace(row, path=join_member(name, row.path)) for row in listing.rows)
    return replace(listing, rows=keep(rows, listing.is_multi_label), findings=(*contents.findings, *listing.findings))


def _labelled_by_folders(tree: NameTree, address: str, name: str, inside: str) -> ImageTable:
    try:
        return class_folders(tree, address, name, inside=inside)
    except DataError as error:
        if "no images found" not in str(error) or not images_below(tree)[0]:
            raise
        raise DataError(
            f"{address}: the images have no label. Expected a folder per class in the archive, or beside each image a "
            "file of the same name with the suffix .cls, .txt or .json."
        ) from error


def _only_folder(tree: NameTree) -> str:
    """The folder that everything is in, with class or split folders in it; "" for the top."""
    inside, folders = "", visible_folders(tree)
    while len(folders) == 1 and folders[0].lower() not in SPLIT_NAMES:
        inside = f"{inside}/{folders[0]}" if inside else folders[0]
        if any(map(is_image_name, tree.files(inside))):
            return ""
        folders = visible_folders(tree, inside)
    return inside if folders else ""


def shards_among(names: Iterable[str]) -> list[str]:
    """The shards among the names of files below a folder, in natural order: those at the top, or a folder deep."""
    return natsorted(
        name
        for name in names
        if suffix_of(name) in SHARD_SUFFIXES and name.count("/") <= 1 and not any(map(is_hidden, name.split("/")))
    )


def shard_rows(
    base: str, shards: Sequence[str], columns: Columns | None = None, *, keep: KeepRows = in_memory
) -> ImageTable:
    """The labelled images of several archives or tables together.

    Names, or folders, that start with train, val or test give the splits.

    Args:
        base: folder of the shards.
        shards: their paths, relative to it.
        columns: chosen columns of tables.
        keep: takes the rows of each shard.

    Raises:
        DataError: a shard cannot be used; some shards have a split and others none; or only some have several labels.
    """
    listings = [_shard(base, shard, columns, keep) for shard in shards]
    if len({listing.is_multi_label for listing in listings}) > 1:
        few = [shard for shard, one in zip(shards, listings, strict=True) if one.is_multi_label]
        raise DataError(f"{base}: {listed(few)} have any number of labels per image, the other shards one label.")
    lacking = [shard for shard, one in zip(shards, listings, strict=True) if not one.has_splits]
    if 0 < len(lacking) < len(shards):
        raise DataError(
            f"{base}: no split in the name of {listed(lacking)}, but in those of other shards. Rename them."
        )
    spellings = Spellings()
    for one in listings:
        for name, written in one.spellings.seen.items():
            spellings.seen.setdefault(name, set()).update(written)
    return ImageTable(
        rows=tuple(row for one in listings for row in one.rows),
        classes=tuple(natsorted({name for one in listings for name in one.classes})),
        is_multi_label=listings[0].is_multi_label,
        has_splits=not lacking,
        has_groups=any(one.has_groups for one in listings),
        findings=tuple(_merged(finding for one in listings for finding in one.findings)),
        spellings=spellings,
    )


def _merged(findings: Iterable[Finding]) -> list[Finding]:
    return list(dict.fromkeys(findings))


def _shard(base: str, shard: str, columns: Columns | None, keep: KeepRows) -> ImageTable:
    """The images of a shard; splits in it come first, then that of its name."""
    address, folder, split = join(base, shard), shard.rpartition("/")[0], split_of(shard)

    def placed(rows: Iterable[TableRow], is_multi_label: bool) -> tuple[TableRow, ...]:
        moved = (replace(r, path=join(folder, r.path) if folder else r.path, split=r.split or split) for r in rows)
        return keep(moved, is_multi_label)

    if suffix_of(address) in COLUMN_FILES:
        listing = read_table(address, columns, keep=placed)
    else:
        listing = archive_rows(address, min_classes=1, keep=placed)
        if keep is not in_memory:
            close_container(address)
    return replace(listing, has_splits=listing.has_splits or bool(split))


def split_of(shard: str) -> str:
    """The split that the name of a shard, or its folder, starts with; "" for none."""
    folder, _, name = shard.rpartition("/")
    found = _SPLIT.match(name) or _SPLIT.match(folder.rpartition("/")[2])
    return SPLIT_NAMES[found[1].lower()] if found else ""


def images_in(address: str) -> Iterator[str]:
    """Addresses of the images in an archive or a table, in natural order; labels are not needed.

    The last one of a damaged archive stands for the files after the damage: reading it says why they are missing.

    Raises:
        DataError: it cannot be read, or has no images.
    """
    is_table = suffix_of(address) in TABLE_SUFFIXES
    if is_table:
        found = (join(parent_of(address), path) for path in table_paths(address))
    else:
        found = (join_member(address, name) for name in _images_of_archive(_contents(address)))
    first = next(found, None)
    if first is None:
        raise DataError(f"{address}: no images in this {'table' if is_table else 'archive'}.")
    yield first
    yield from found


def _images_of_archive(contents: Contents) -> Iterator[str]:
    images, others = images_below(NameTree(contents.names))
    yield from natsorted([*images, *camera_raw(images, others)])
    if any(finding.kind == "damaged-archive" for finding in contents.findings):
        yield AFTER_DAMAGE


def _contents(address: str) -> Contents:
    try:
        return open_container(address).contents
    except UnreadableImage as error:
        raise DataError(f"{address}: {error.reason}.") from error
