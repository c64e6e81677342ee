"""Listing of a source: its labelled images, or the addresses of its images. Images are not opened here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from headstart.data.class_folders import class_folders, listed, visible_folders
from headstart.data.file_tree import FileTree, LocalTree, NamesSeen, NameTree, is_image_name, lone_camera_raw
from headstart.data.image_table import ImageTable, KeepRows, in_memory
from headstart.data.natural_order import in_natural_order
from headstart.data.shards import archive_rows, images_in, shard_rows, shards_among
from headstart.data.sources.addresses import (
    ARCHIVE_SUFFIXES,
    CONTAINER_SUFFIXES,
    absolute,
    is_container,
    is_glob,
    is_url,
    join,
    name_of,
    parent_of,
    relative_to,
    scheme_of,
    split_address,
    suffix_of,
    user_address,
)
from headstart.data.sources.containers import refuse_compressed
from headstart.data.sources.stores import store_of
from headstart.data.table import read_table
from headstart.data.table_columns import Columns
from headstart.data.table_file import COLUMN_FILES, TABLE_SUFFIXES
from headstart.errors import DataError, OptionError
from headstart.files import UserPath


@dataclass(frozen=True)
class Listing:
    """The labelled images of a source.

    Attributes:
        root: path or URL of the folder, table or archive, or the pattern of shards, as given.
        base: absolute path or URL of the folder that the paths are relative to.
        table: the images, in any order.
    """

    root: str
    base: str
    table: ImageTable


def list_source(source: UserPath, columns: Columns, *, min_classes: int, keep: KeepRows = in_memory) -> Listing:
    """The labelled images of a folder, a table, an archive or shards, see ``dataset.open_data``.

    Args:
        source: path, pattern or URL.
        columns: chosen columns of a table.
        min_classes: minimum number of classes; multi-label data need one label.
        keep: takes the rows, see ``KeepRows``.

    Raises:
        DataError, SourceError, MissingExtra, OptionError: see ``dataset.open_data``.
    """
    address = user_address(source)
    if suffix_of(address) in TABLE_SUFFIXES and not is_glob(address) and _is_file(address):
        return list_table(address, columns, min_classes=min_classes, keep=keep)
    shards = _shards(address)
    if columns.as_options() and not any(suffix_of(shard) in COLUMN_FILES for shard in shards):
        what = "a folder" if os.path.isdir(address) else "no table"
        raise OptionError(f"{next(iter(columns.as_options()))}: applies only to a table, and {address} is {what}.")
    if shards:
        base = parent_of(address) if is_glob(address) else address
        table = shard_rows(base, [relative_to(shard, base) for shard in shards], columns, keep=keep)
        return _listing(address, base, table, min_classes)
    if suffix_of(address) in ARCHIVE_SUFFIXES and _is_file(address):
        table = archive_rows(address, min_classes=min_classes, keep=keep)
        return _listing(address, parent_of(address), table, min_classes)
    if scheme_of(address) in ("http", "https") and suffix_of(address) in (*TABLE_SUFFIXES, *CONTAINER_SUFFIXES):
        raise DataError(f"{address}: not found, or refused by the server. Check the address.")
    if not is_url(address) and os.path.isfile(address):
        refuse_compressed(address)
        raise DataError(
            f"{address}: expected a folder of images, an archive ({', '.join(ARCHIVE_SUFFIXES)}), or a table ending in "
            f"{', '.join(TABLE_SUFFIXES)}."
        )
    if is_url(address) or os.path.isdir(address):
        return list_folder(address, min_classes=min_classes, keep=keep)
    raise DataError(f"{address}: no such folder or table.")


def list_table(file: str, columns: Columns, *, min_classes: int, keep: KeepRows = in_memory) -> Listing:
    """The labelled images of a table, see ``table.read_table``."""
    return _listing(file, parent_of(file), read_table(file, columns, keep=keep), min_classes)


def list_folder(root: str, *, min_classes: int, keep: KeepRows = in_memory) -> Listing:
    """The labelled images of class folders; of a folder at a URL also those of shards.

    Raises:
        DataError: the folder does not exist, has no images or too few classes, or mixes split and class folders.
    """
    if not is_url(root):
        if not os.path.isdir(root):
            raise DataError(f"{root}: no such folder.")
        return _listing(root, root, class_folders(LocalTree(Path(root)), root, name_of(root), keep=keep), min_classes)
    names = store_of(root).files_below(root)
    if not names:
        raise DataError(f"{root}: no such file or folder, or an empty one. Check the address.")
    shards = _unless_class_folders(root, names)
    if shards:
        table = shard_rows(root, [relative_to(shard, root) for shard in shards], keep=keep)
    else:
        table = class_folders(NameTree(names), root, name_of(root), keep=keep)
    return _listing(root, root, table, min_classes)


def _listing(root: str, base: str, table: ImageTable, min_classes: int) -> Listing:
    """A listing with enough classes."""
    if isinstance(min_classes, bool) or not hasattr(min_classes, "__index__") or min_classes < 1:
        raise OptionError(f"min_classes {min_classes!r}: expected a whole number of at least 1.")
    classes = table.classes
    if len(classes) < (1 if table.is_multi_label else min_classes):
        damage = "".join(f" {found.message}." for found in table.findings if found.severity == "serious")
        if not classes:
            raise DataError(f"{root}: no labelled images found.{damage}")
        deeper = _deeper(base, classes[0]) if base == root else ""
        raise DataError(f"{root}: found one class, {listed(classes)}; a classifier needs at least two.{deeper}{damage}")
    return Listing(root, absolute(base), table)


def _is_file(address: str) -> bool:
    return store_of(address).is_file(address)


def _shards(address: str) -> list[str]:
    """Addresses of the shards that a pattern or a folder consists of; [] for anything else.

    Raises:
        DataError: no file matches the pattern, or others than shards.
    """
    if is_glob(address):
        found = _matches(address)
        if others := [name_of(path) for path in found if not is_container(path)]:
            raise DataError(f"{address}: matches {listed(others)}. Expected {', '.join(CONTAINER_SUFFIXES)} files.")
        return found
    if is_url(address) or not os.path.isdir(address):
        return []
    tree = LocalTree(Path(address))
    folders = ("", *visible_folders(tree))
    return _unless_class_folders(address, (os.path.join(at, name) for at in folders for name in tree.files(at)))


def _matches(pattern: str) -> list[str]:
    """Addresses of the files that match a pattern.

    Raises:
        DataError: there is none.
    """
    found = store_of(pattern).matches(pattern)
    if not found:
        raise DataError(f"{pattern}: no file matches this pattern.")
    return found


def _unless_class_folders(address: str, names: Iterable[str]) -> list[str]:
    """The shards among the files of a folder; [] if an image is in a folder below it, as in a class folder."""
    candidates = []
    for name in names:
        if "/" in name and is_image_name(name):
            return []
        if is_container(name):
            candidates.append(name)
    return [join(address, name) for name in shards_among(candidates)]


def find_images(path: UserPath) -> list[str]:
    """``iter_images`` in a list."""
    return list(iter_images(path))


def iter_images(path: UserPath) -> Iterator[str]:
    """Addresses of the images of a folder, an archive, a table or shards in natural order; or a single file.

    A single file may have any suffix. Camera raw files without an image of the same name are included, so that their
    predictions say why they cannot be read.

    Raises:
        DataError: the folder, archive or table contains no images; it is compressed; or no file matches the pattern.
        SourceError: its storage cannot be reached.
    """
    address = user_address(path)
    if not is_source(address):
        refuse_compressed(address)
        yield address
    elif is_glob(address):
        for match in _matches(address):
            yield from iter_images(match)
    elif suffix_of(address) in (*TABLE_SUFFIXES, *ARCHIVE_SUFFIXES) and (is_url(address) or os.path.isfile(address)):
        yield from images_in(address)
    else:
        tree = NameTree(store_of(address).files_below(address)) if is_url(address) else LocalTree(Path(address))
        others = NamesSeen()
        names = in_natural_order(_images_of(tree, others))
        first = next(names, None)
        if first is not None:
            yield from (join(address, name) for name in (first, *names))
            return
        shards = shards_among(others.containers)
        if not shards:
            raise DataError(f"{address}: no images in this folder.")
        for shard in shards:
            yield from images_in(join(address, shard))


def _images_of(tree: FileTree, others: NamesSeen) -> Iterator[str]:
    """Images of a tree, and camera raw files without an image of the same name, in any order.

    Args:
        tree: the files.
        others: takes the other names.
    """
    for name in tree.files_below(""):
        if is_image_name(name):
            yield name
        else:
            others.add(name)
    yield from lone_camera_raw(tree, others.camera_raw)


def is_source(path: UserPath) -> bool:
    """Whether a path or URL may have any number of images: a folder, an archive, a table or a pattern."""
    address = user_address(path)
    if split_address(address)[1]:
        return False
    if is_glob(address):
        return True
    is_collection = suffix_of(address) in (*TABLE_SUFFIXES, *ARCHIVE_SUFFIXES)
    if not is_url(address):
        return os.path.isdir(address) or (is_collection and os.path.isfile(address))
    return is_collection or (scheme_of(address) not in ("http", "https") and not is_image_name(address))


def _deeper(root: str, only: str) -> str:
    if is_url(root) or not os.path.isdir(inner := os.path.join(root, only)):
        return ""
    return f" Did you mean {inner}?" if len(visible_folders(LocalTree(Path(inner)))) > 1 else ""
