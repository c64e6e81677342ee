"""Features in shards: reads what ``headstart extract --out FOLDER`` wrote, a shard at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from natsort import natsorted

from headstart.cache.keys import KEY_BYTES
from headstart.data.image_table import SPLITS
from headstart.data.label_cells import SEPARATOR
from headstart.distributed.shard_tables import FeatureType
from headstart.distributed.shards import read_manifest
from headstart.errors import DataError
from headstart.extras import importing_extra
from headstart.files import UserPath, user_path

Features = npt.NDArray[np.float32]

READ_AHEAD = 2
"""Shards that are read while one is worked on."""


@dataclass(frozen=True)
class ShardedFeatures:
    """Features and labels of N images, in the order of their shards. Labels are in memory, features are not.

    Attributes:
        folder: of the shards.
        files: Parquet files.
        sizes: rows of each file.
        length: D, features of an image.
        dtype: of the features in the files.
        network: description of the network that computed them, see ``work.network_description``.
        labels: (N,) int64, indices into ``classes``; or, for multi-label data, (N, classes) of 0 and 1.
        classes: names in natural order.
        splits: (N,) int8, indices into ``SPLITS``; -1 where the data have none.
        keys: (N, 16) uint8 content hashes.
        groups: N names; "" for none; None if no image has one.
    """

    folder: Path
    files: tuple[Path, ...]
    sizes: tuple[int, ...]
    length: int
    dtype: FeatureType
    network: dict[str, Any]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    splits: npt.NDArray[np.int8]
    keys: npt.NDArray[np.uint8]
    groups: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of labels."""
        return self.labels.ndim == 2

    def batches(self, wanted: npt.NDArray[np.bool_]) -> Iterator[Features]:
        """(n, D) float32 features of the wanted images, shard by shard; the next ones are read meanwhile.

        Args:
            wanted: (N,) which images.
        """
        ends = np.cumsum(self.sizes)
        parts = [wanted[end - size : end] for end, size in zip(ends, self.sizes, strict=True)]
        work = ((file, part) for file, part in zip(self.files, parts, strict=True) if part.any())
        with ThreadPoolExecutor(READ_AHEAD) as readers:
            following = deque(readers.submit(self._read, *item) for item in islice(work, READ_AHEAD))
            while following:
                batch = following.popleft().result()
                following.extend(readers.submit(self._read, *item) for item in islice(work, 1))
                yield batch

    def read(self, places: Sequence[int] | npt.NDArray[np.int64]) -> Features:
        """(K, D) float32 features of some images, in ascending order of their places."""
        wanted = np.zeros(len(self), dtype=bool)
        wanted[places] = True
        return np.concatenate([np.empty((0, self.length), np.float32), *self.batches(wanted)])

    def paths(self, places: npt.NDArray[np.int64]) -> list[str]:
        """Paths of some images, in ascending order of their places."""
        found, ascending = list[str](), np.sort(places)
        for end, size, file in zip(np.cumsum(self.sizes), self.sizes, self.files, strict=True):
            inside = ascending[(ascending >= end - size) & (ascending < end)] - (end - size)
            if len(inside):
                found += _columns_of(file, size, "path")["path"].take(inside).to_pylist()
        return found

    def first_by_content(self, wanted: npt.NDArray[np.bool_], most: int) -> npt.NDArray[np.int64]:
        """Places of the wanted images with the smallest content hashes, at most ``most``, ascending."""
        places = np.flatnonzero(wanted)
        order = np.lexsort(self.keys[places].T[::-1])
        return np.sort(places[order[:most]])

    def _read(self, file: Path, part: npt.NDArray[np.bool_]) -> Features:
        import pyarrow as pa

        column = _columns_of(file, len(part), "features")["features"]
        if column.type != pa.list_(_number_type(self.dtype), self.length):
            raise _damaged(file)
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        rows = flat.reshape(-1, self.length)
        wanted: Features = (rows if part.all() else rows[part]).astype(np.float32)
        return wanted


def open_sharded_features(folder: UserPath) -> ShardedFeatures:
    """Opens a folder of features: everything but the features is read.

    Args:
        folder: as written by ``bulk.extract_shards``; finished.

    Raises:
        OutputError: it is no such folder, or not finished.
        DataError: it has predictions, no images, or a file is damaged.
        MissingExtra: pyarrow is not installed.
    """
    root = user_path(folder)
    with importing_extra("parquet", "reading shards"):
        import pyarrow as pa
        from pyarrow import parquet

    manifest = read_manifest(root)
    if "features" not in manifest["work"]:
        raise DataError(f"{root}: has predictions. Give the output of headstart extract.")
    if not manifest["rows"]:
        raise DataError(f"{root}: has no images.")
    files, dtype = [root / shard["file"] for shard in manifest["shards"]], manifest["work"]["features"]
    found, length = _Columns(), 0
    for file, shard in zip(files, manifest["shards"], strict=True):
        try:
            kind = parquet.read_schema(file).field("features").type
            length = length or kind.list_size
        except (OSError, ValueError, pa.ArrowException, KeyError, AttributeError) as error:
            raise _damaged(file) from error
        if kind != pa.list_(_number_type(dtype), length):
            raise _damaged(file)
        try:
            found.add(_columns_of(file, shard["rows"], "key", "label", "split", "group"))
        except ValueError as error:  # a content hash that is none
            raise _damaged(file) from error
    labels, classes = found.labels()
    return ShardedFeatures(
        folder=root,
        files=tuple(files),
        sizes=tuple(found.sizes),
        length=length,
        dtype=dtype,
        network={name: value for name, value in manifest["work"].items() if name != "features"},
        labels=labels,
        classes=classes,
        splits=np.concatenate(found.splits),
        keys=np.concatenate(found.keys),
        groups=tuple(found.groups) if any(found.groups) else None,
    )


def _columns_of(file: Path, rows: int, *names: str) -> Any:
    """Columns of a shard's table, whose checksums are verified; read by the calling thread alone.

    Raises:
        DataError: the file is damaged or missing.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(file, columns=list(names), use_threads=False, page_checksum_verification=True)
        table.validate(full=True)  # shards of earlier versions have no checksums, and may have text that is not UTF-8
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(file) from error
    # the schema has no checksum
    kinds = {field.name: field.type for field in table.schema}
    if (
        table.num_rows != rows
        or kinds.keys() != set(names)
        or any(kind != pa.string() for name, kind in kinds.items() if name != "features")
    ):
        raise _damaged(file)
    return table


def _number_type(dtype: FeatureType) -> Any:
    """The Arrow type of a feature."""
    import pyarrow as pa

    return {"float16": pa.float16(), "float32": pa.float32()}[dtype]


def _damaged(file: Path) -> DataError:
    return DataError(
        f"{file}: damaged or missing. Remove it if it is there, and run the command that wrote the folder again."
    )


class _Columns:
    """The columns of all shards, with each cell of labels stored once."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.codes: list[npt.NDArray[np.int64]] = []
        self.cells: dict[str, int] = {}
        self.splits: list[npt.NDArray[np.int8]] = []
        self.keys: list[npt.NDArray[np.uint8]] = []
        self.groups: list[str] = []
        self.seen_groups: dict[str, str] = {}

    def add(self, table: Any) -> None:
        """Takes a shard's columns key, label, split and group."""
        number = {name: place for place, name in enumerate(SPLITS)}
        cells, splits = table["label"].to_pylist(), table["split"].to_pylist()
        self.sizes.append(table.num_rows)
        self.codes.append(np.array([self.cells.setdefault(cell, len(self.cells)) for cell in cells], np.int64))
        self.splits.append(np.array([number.get(split, -1) for split in splits], np.int8))
        keys = bytes.fromhex("".join(table["key"].to_pylist()))
        self.keys.append(np.frombuffer(keys, np.uint8).reshape(-1, KEY_BYTES))
        self.groups += [self.seen_groups.setdefault(group, group) for group in table["group"].to_pylist()]

    def labels(self) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
        """Labels of all images, and the classes."""
        codes = np.concatenate(self.codes)
        if not any(SEPARATOR in cell for cell in self.cells):
            classes = tuple(natsorted(self.cells))
            number = {name: place for place, name in enumerate(classes)}
            return np.array([number[cell] for cell in self.cells])[codes], classes
        split = [[name for name in cell.split(SEPARATOR) if name] for cell in self.cells]
        classes = tuple(natsorted({name for names in split for name in names}))
        number = {name: place for place, name in enumerate(classes)}
        rows = np.zeros((len(split), len(classes)), np.int64)
        for row, names in zip(rows, split, strict=True):
            row[[number[name] for name in names]] = 1
        return rows[codes], classes
