"""Rows of fixed shape on disk, found by the content hash of the image that they were made from.

One folder holds one kind of row (the pixels for one preprocessing, the features of one backbone, ...):

    about.json   what made the rows; the folder's name is a hash of it
    rows.bin     the rows, one behind the other
    keys.bin     16 bytes a row: the content hash of its image, in the same order

Both files only grow. A batch is appended rows first, keys last, so a row exists once its key does: a process that is
killed loses the batch that it was writing and nothing else, and the torn tail is cut off by the next writer. Rows are
shared by every run on the same images, whatever their folder, names or labels.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs
from filelock import FileLock

from headstart.errors import CacheError
from headstart.files import write_atomically

KEY_BYTES = 16


def cache_root() -> Path:
    """The folder that holds every cache: ``$HEADSTART_CACHE``, or the platform's own place for caches."""
    named = os.environ.get("HEADSTART_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("headstart"))


def content_key(data: bytes) -> bytes:
    """The 16-byte content hash (BLAKE2b) of a file's bytes, by which everything made from it is found."""
    return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()


def describe_key(about: dict[str, Any]) -> str:
    """A 24-digit name for a JSON-able description, the same on every machine and in every process."""
    text = json.dumps(about, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


class RowStore:
    """Rows of one dtype and shape, appended once and read by content hash.

    Args:
        kind: what the rows are ("pixels", "features", ...); the name of the folder above this store's own.
        about: everything that made the rows, JSON-able; two stores share rows only where it is equal.
        dtype: of one element (may be a structured dtype).
        shape: of one row, without the row axis.
        root: the cache folder; ``cache_root()`` where it is not given.

    Raises:
        CacheError: the folder cannot be made or read.
    """

    def __init__(
        self,
        kind: str,
        about: dict[str, Any],
        *,
        dtype: npt.DTypeLike,
        shape: tuple[int, ...] = (),
        root: Path | None = None,
    ) -> None:
        self.about = about
        self.dtype = np.dtype(dtype)
        self.shape = shape
        self.row_bytes = self.dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        self.folder = (root or cache_root()) / kind / describe_key(about)
        self._index: dict[bytes, int] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "about.json").exists():
                write_atomically(self.folder / "about.json", json.dumps(about, indent=1).encode())
            self._refresh()
        except OSError as error:
            raise self._cache_error(error) from error

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: bytes) -> bool:
        return key in self._index

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """The positions in ``keys`` that have no row yet; of equal keys only the first position."""
        first: dict[bytes, int] = {}
        for position, key in enumerate(keys):
            if key not in self._index:
                first.setdefault(key, position)
        return list(first.values())

    def append(self, keys: Sequence[bytes], rows: npt.NDArray[Any]) -> None:
        """Adds rows, in one step that is either seen whole or not at all.

        Args:
            keys: n content hashes of 16 bytes; those that the store holds already are skipped.
            rows: (n, *shape) of the store's dtype.

        Raises:
            CacheError: the disk is full, or the folder cannot be written.
        """
        if rows.shape != (len(keys), *self.shape) or rows.dtype != self.dtype:
            raise ValueError(f"expected {(len(keys), *self.shape)} {self.dtype}, got {rows.shape} {rows.dtype}")
        try:
            with FileLock(self.folder / "lock"):
                self._refresh()
                new = self.missing(keys)
                if not new:
                    return
                data = np.ascontiguousarray(rows[new])
                self._extend("rows.bin", len(self._index) * self.row_bytes, data.tobytes())
                self._extend("keys.bin", len(self._index) * KEY_BYTES, b"".join(keys[i] for i in new))
                self._refresh()
        except OSError as error:
            raise self._cache_error(error) from error

    def read(self, keys: Sequence[bytes]) -> npt.NDArray[Any]:
        """Rows in the order of ``keys``.

        The rows file is mapped for the length of the call only, so that the process never holds more of it in memory
        than it asked for.

        Returns:
            (n, *shape), a copy.

        Raises:
            KeyError: a key has no row; see ``missing``.
            CacheError: the file cannot be read.
        """
        wanted = np.fromiter((self._index[key] for key in keys), dtype=np.int64, count=len(keys))
        out = np.empty((len(keys), *self.shape), dtype=self.dtype)
        if not len(keys):
            return out
        try:
            with (
                open(self.folder / "rows.bin", "rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            ):
                rows = np.frombuffer(
                    mapped, dtype=self.dtype, count=len(self) * int(np.prod(self.shape, dtype=np.int64))
                )
                np.take(rows.reshape(len(self), *self.shape), wanted, axis=0, out=out, mode="clip")
                del rows
        except OSError as error:
            raise self._cache_error(error) from error
        return out

    def require_space(self, count: int) -> None:
        """Checks that ``count`` more rows fit on the disk.

        Raises:
            CacheError: they do not; says how much is needed and free.
        """
        needed, free = count * self.row_bytes, shutil.disk_usage(self.folder).free
        if needed > free:
            raise CacheError(
                f"{self.folder}: the cache needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free. "
                "Free some space, or set HEADSTART_CACHE to a folder on a larger disk."
            )

    def _refresh(self) -> None:
        """Takes in the keys that this or another process has added since the last look."""
        path = self.folder / "keys.bin"
        known = len(self._index)
        if not path.exists() or path.stat().st_size < (known + 1) * KEY_BYTES:
            return
        with open(path, "rb") as file:
            file.seek(known * KEY_BYTES)
            data = file.read()
        held = min(len(data) // KEY_BYTES, self._rows_on_disk() - known)
        for row in range(held):
            self._index[data[row * KEY_BYTES : (row + 1) * KEY_BYTES]] = known + row

    def _rows_on_disk(self) -> int:
        path = self.folder / "rows.bin"
        return path.stat().st_size // self.row_bytes if path.exists() else 0

    def _extend(self, name: str, offset: int, data: bytes) -> None:
        """Writes at ``offset``, cutting off what an interrupted writer left behind it."""
        with open(self.folder / name, "ab") as file:
            file.truncate(offset)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _cache_error(self, error: OSError) -> CacheError:
        if error.errno == errno.ENOSPC:
            return CacheError(
                f"{self.folder}: the disk is full. What was computed so far is kept; free some space, or set "
                "HEADSTART_CACHE to a folder on a larger disk, and run the same command again."
            )
        return CacheError(
            f"{self.folder}: {error.strerror or error}. Set HEADSTART_CACHE to a folder that can be written."
        )
