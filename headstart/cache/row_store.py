"""Row store: arrays of fixed shape on disk, keyed by the content hash of the image that they were computed from.

A folder contains rows of one kind (the pixels for one preprocessing, the features of one backbone, ...):

    about.json   what the rows are and their size; the folder's name is a hash of it
    rows.bin     the rows, one after the other
    keys.bin     24 bytes per row, in the same order: the content hash of its image, and a checksum
    used         modified when the folder is used; its random content identifies this folder
    lock         held while a batch is appended, or the folder is removed

Rows and keys are only appended: rows first, keys last, so a row exists once its key does. A process that is killed
loses the batch that it was writing and nothing else; the next writer cuts the remains off. Rows are shared by all runs
on the same images, regardless of their folders, names or labels.

Every read is verified. The checksum of a row (XXH3, 64 bits) covers the row, its key and the folder's name. After a
power failure a row may be zeros or another image's: it is dropped, computed again and appended again, and of two rows
with the same key the later one counts. This is why no write waits for the disk (fsync).

``RowStore.require_space`` keeps the cache within its limit, see ``budget``. A store whose folder was removed by another
process raises an error, and never writes into a new folder of the same name.
"""

from __future__ import annotations

import errno
import io
import json
import os
import secrets
import threading
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, final
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from headstart.cache.budget import make_space
from headstart.cache.entries import cache_root, delete_trash, trash_path
from headstart.cache.keys import KEY_BYTES, describe_key
from headstart.cache.store_files import (
    BLANK_KEY,
    RECORD_BYTES,
    STORE_FILES,
    STORE_VERSION,
    file_size,
    read_about,
    read_token,
    row_checksum,
)
from headstart.errors import CacheError
from headstart.files import write_atomically
from headstart.progress import Progress

STAMP_EVERY = 60.0
"""Seconds between two updates of a folder's time of last use."""

_WARNED: WeakKeyDictionary[Progress, set[Path]] = WeakKeyDictionary()
"""Cache folders whose damage was reported, per listener."""

READ_CHUNK = 4096
"""Rows that are located and read at once."""

VERIFY_CHUNK_BYTES = 1 << 26
"""Approximate bytes of rows that are read at once to verify them."""

_RECORD = np.dtype([("key", f"V{KEY_BYTES}"), ("checksum", "<u8")])
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)

_OPEN_STORES: WeakSet[RowStore] = WeakSet()
_OPEN_STORES_LOCK = threading.Lock()


class DamagedRows(CacheError):
    """Rows whose checksum is wrong; the store has dropped them.

    Attributes:
        keys: keys of the damaged rows.
    """

    def __init__(self, folder: Path, keys: list[bytes]) -> None:
        count = f"{len(keys):,} row{'s are' if len(keys) > 1 else ' is'}"
        super().__init__(
            f"{folder}: {count} damaged and dropped. Run the same command again; it recomputes the missing rows."
        )
        self.keys = keys


@final
class RowStore:
    """An append-only store of rows of one dtype and shape, read by content hash.

    Args:
        kind: what the rows are ("pixels", "features", ...); the name of the parent folder.
        about: JSON-able description of how the rows are computed; stores share rows only if it, ``dtype`` and ``shape``
            are equal.
        dtype: of one element (may be a structured dtype).
        shape: of one row, without the row axis.
        root: the cache folder; default ``cache_root()``.

    Raises:
        CacheError: the folder cannot be created or read.
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
        self.shape = tuple(int(length) for length in shape)
        self.row_bytes = self.dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        self.root = cache_root(root)
        layout = {"dtype": np.lib.format.dtype_to_descr(self.dtype), "shape": self.shape}
        self.folder = self.root / kind / describe_key({"about": about, "store": STORE_VERSION} | layout)
        self._index: dict[bytes, int] = {}
        self._checksums = array("Q")
        self._dropped: set[bytes] = set()
        self._token: bytes | None = None
        self._stamped = time.monotonic()
        try:
            self._open()
        except OSError as error:
            raise self._cache_error(error) from error
        with _OPEN_STORES_LOCK:
            _OPEN_STORES.add(self)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: bytes) -> bool:
        self._stamp()
        return key in self._index

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Positions in ``keys`` that have no row; of equal keys only the first position."""
        first: dict[bytes, int] = {}
        for position, key in enumerate(keys):
            if key not in self._index:
                first.setdefault(key, position)
        return list(first.values())

    def refresh(self) -> None:
        """Takes note of the rows that other processes have appended.

        Raises:
            CacheError: the keys cannot be read, or another process removed the folder.
        """
        with self._named_errors():
            self._check_same_folder()
            self._refresh()

    def append(self, keys: Sequence[bytes], rows: npt.NDArray[Any]) -> None:
        """Appends rows atomically.

        Args:
            keys: n content hashes of 16 bytes; keys that the store already contains are skipped.
            rows: (n, *shape) of the store's dtype.

        Raises:
            CacheError: the disk is full, the folder cannot be written, or another process removed it.
        """
        if rows.shape != (len(keys), *self.shape) or rows.dtype != self.dtype:
            raise ValueError(f"expected {(len(keys), *self.shape)} {self.dtype}, got {rows.shape} {rows.dtype}")
        with self._named_errors():
            self._check_same_folder()  # also before the lock, which would create the folder again
            with FileLock(self.folder / "lock"):
                self._check_same_folder()
                self._refresh()
                new = self.missing(keys)
                if not new:
                    return
                data = np.ascontiguousarray(rows[new])
                flat = data.reshape(-1).view(np.uint8).data
                records = b"".join(
                    keys[i] + self._checksum(keys[i], flat, index).to_bytes(8, "little") for index, i in enumerate(new)
                )
                self._extend("rows.bin", len(self._checksums) * self.row_bytes, flat)
                self._extend("keys.bin", len(self._checksums) * RECORD_BYTES, records)
                self._refresh()

    def read(self, keys: Sequence[bytes]) -> npt.NDArray[Any]:
        """Reads and verifies rows. Rows that are adjacent on disk are read with one call.

        The file is read, not memory-mapped, because mapped pages count as the process's resident memory.

        Returns:
            (n, *shape), a copy, in the order of ``keys``.

        Raises:
            KeyError: a key has no row; see ``missing``.
            DamagedRows: the checksum of some rows is wrong. They are missing from now on; all others are intact.
            CacheError: the file cannot be read, or another process removed it.
        """
        gone = [key for key in dict.fromkeys(keys) if key in self._dropped and key not in self._index]
        if gone:  # dropped by another thread, which has not appended them again yet
            raise DamagedRows(self.folder, gone)
        rows = np.fromiter((self._index[key] for key in keys), dtype=np.int64, count=len(keys))
        out = np.empty((len(keys), *self.shape), dtype=self.dtype)
        if not out.nbytes:
            return out
        flat = out.reshape(-1).view(np.uint8).data
        with self._named_errors(), open(self.folder / "rows.bin", "rb", buffering=0) as file:
            self._check_same_folder()  # after opening: an open file stays readable even if the folder is removed
            for start in range(0, len(rows), READ_CHUNK):
                chunk = rows[start : start + READ_CHUNK]
                self._read_chunk(file, chunk, flat[start * self.row_bytes : (start + len(chunk)) * self.row_bytes])
        checksums = self._checksums
        found = enumerate(zip(keys, rows.tolist(), strict=True))
        damaged = {key: row for index, (key, row) in found if self._checksum(key, flat, index) != checksums[row]}
        if damaged:
            self._drop(damaged)
            raise DamagedRows(self.folder, list(damaged))
        return out

    def drop_damaged(self, keys: Sequence[bytes]) -> int:
        """Reads rows and drops the damaged ones, so that ``missing`` lists them.

        Args:
            keys: of rows; keys without a row are ignored.

        Returns:
            Number of rows dropped.

        Raises:
            CacheError: as ``read``.
        """
        held = [key for key in dict.fromkeys(keys) if key in self._index]
        step, count = max(1, VERIFY_CHUNK_BYTES // max(1, self.row_bytes)), 0
        for start in range(0, len(held), step):
            try:
                self.read(held[start : start + step])
            except DamagedRows as damaged:
                count += len(damaged.keys)
        return count

    def require_space(self, count: int) -> None:
        """Makes space for ``count`` more rows by evicting the least recently used entries of the cache.

        The cache may hold ``cache_limit()``; eviction also leaves 5 % of the disk free (at most 10 GB) if it can. This
        store, other stores open in this process, and entries used in the last 10 minutes (another process may be
        using them) are kept. If removing all others would not be enough, nothing is removed. Space is not reserved:
        two processes may count on the same space.

        Raises:
            CacheError: there is not enough space (states how much is needed, allowed and free), the value of
                ``HEADSTART_CACHE_LIMIT`` is invalid, or another process removed the folder.
        """
        if count <= 0:
            return
        with self._named_errors():
            self._check_same_folder()
            with _OPEN_STORES_LOCK:
                keep = {path.resolve() for path in (self.folder, *(store.folder for store in _OPEN_STORES))}
            make_space(self.root, count * (self.row_bytes + RECORD_BYTES), folder=self.folder, keep=keep)

    def _open(self) -> None:
        """Creates the folder if needed and reads its keys; repeats that if another process removes the folder."""
        document = {"store": STORE_VERSION, "row_bytes": self.row_bytes, "about": self.about}
        for _ in range(3):
            self._index.clear()
            del self._checksums[:]
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(path.exists() and not path.is_file() for path in (self.folder / name for name in STORE_FILES)):
                self._set_aside()
                continue
            self._token = self._identify()
            if read_about(self.folder) != document:
                self._write_about(document)
            self._refresh()
            if self._token is None or self._token == read_token(self.folder):
                return
        raise self._removed()

    def _write_about(self, document: dict[str, Any]) -> None:
        """Writes about.json; a read-only cache stays unchanged."""
        try:
            write_atomically(self.folder / "about.json", json.dumps(document, indent=1).encode())
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise

    def _set_aside(self) -> None:
        """Removes an unusable folder, in which a directory or link has the name of one of the store's files."""
        trash = trash_path(self.folder)
        self.folder.rename(trash)
        delete_trash(trash)

    def _identify(self) -> bytes | None:
        """Updates the time of last use. Returns the folder's token, or None in a read-only cache."""
        used = self.folder / "used"
        try:
            if not used.exists():
                with FileLock(self.folder / "lock"):
                    if not used.exists():
                        write_atomically(used, secrets.token_hex(8).encode())
            os.utime(used)
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
        return read_token(self.folder)

    def _stamp(self) -> None:
        """Updates the time of last use about once a minute. If that fails, the operation itself reports the error."""
        now = time.monotonic()
        if now - self._stamped >= STAMP_EVERY:
            self._stamped = now
            with suppress(OSError):
                os.utime(self.folder / "used")

    def _check_same_folder(self) -> None:
        """Raises an error if the folder was replaced by another of the same name, whose rows have other positions.

        A replaced folder never returns, so a file that was opened before this check belongs to the right folder.
        """
        if self._token is not None and self._token != read_token(self.folder):
            raise self._removed()
        self._stamp()

    def _read_chunk(self, file: io.FileIO, rows: npt.NDArray[np.int64], out: memoryview) -> None:
        ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        for first, end in zip([0, *ends], ends, strict=False):
            file.seek(int(rows[first]) * self.row_bytes)
            run = out[first * self.row_bytes : end * self.row_bytes]
            while run.nbytes:  # one call reads at most 2 GB
                got = file.readinto(run)
                if not got:
                    raise OSError(errno.EIO, "rows.bin is shorter than before; remove the folder")
                run = run[got:]

    def _refresh(self) -> None:
        """Reads the keys that this or another process appended since the last call; of equal keys the later counts."""
        path = self.folder / "keys.bin"
        first = len(self._checksums)
        end = min(file_size(path) // RECORD_BYTES, self._rows_on_disk())
        if end <= first:
            return
        with open(path, "rb") as file:
            file.seek(first * RECORD_BYTES)
            data = file.read((end - first) * RECORD_BYTES)
        records = np.frombuffer(data[: len(data) // RECORD_BYTES * RECORD_BYTES], dtype=_RECORD)
        self._checksums.frombytes(records["checksum"].astype(np.uint64).tobytes())
        for row, key in enumerate(records["key"].tolist(), start=first):
            if key != BLANK_KEY:
                self._index[key] = row
                self._dropped.discard(key)

    def _checksum(self, key: bytes, flat: memoryview, index: int) -> int:
        """The checksum of row ``index`` of ``flat``, which contains rows one after the other."""
        return row_checksum(self.folder.name, key, flat[index * self.row_bytes : (index + 1) * self.row_bytes])

    def _drop(self, damaged: Mapping[bytes, int]) -> None:
        """Removes rows from the index, unless another thread has replaced them."""
        for key, row in damaged.items():
            self._dropped.add(key)
            if self._index.get(key) == row:
                del self._index[key]

    def _rows_on_disk(self) -> int:
        return file_size(self.folder / "rows.bin") // max(1, self.row_bytes)

    def _extend(self, name: str, offset: int, data: bytes | memoryview) -> None:
        """Writes at ``offset``; cuts off what an interrupted writer left after it."""
        with open(self.folder / name, "ab") as file:
            if file.seek(0, os.SEEK_END) < offset:
                raise OSError(errno.EIO, f"{name} is shorter than before; remove the folder")
            file.truncate(offset)
            file.write(data)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise self._removed() from error
        except OSError as error:
            raise self._cache_error(error) from error

    def _removed(self) -> CacheError:
        return CacheError(
            f"{self.folder}: was removed while it was in use (by headstart cache --clear, by another run that needed "
            "the space, or by hand). Run the same command again; it recomputes what is missing."
        )

    def _cache_error(self, error: OSError) -> CacheError:
        if error.errno == errno.ENOSPC:
            return CacheError(
                f"{self.folder}: the disk is full. Results computed so far are kept. Free some space (headstart cache "
                "--clear), or set HEADSTART_CACHE to a folder on a larger disk; then run the same command again."
            )
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            return CacheError(
                f"{self.folder}: cannot be created, because a file has this name. Remove that file, or set "
                "HEADSTART_CACHE to another folder."
            )
        return CacheError(f"{self.folder}: {error.strerror or error}. Set HEADSTART_CACHE to a writable folder.")


def warn_damaged(what: str, folder: Path, progress: Progress) -> None:
    """Reports that cached rows were damaged and are computed again; once per folder and listener.

    Args:
        what: what the rows are, such as "pixels".
        folder: of the cache.
        progress: receives the report.
    """
    with suppress(TypeError):  # a listener that is not hashable hears of it each time
        warned = _WARNED.setdefault(progress, set())
        if folder in warned:
            return
        warned.add(folder)
    progress.say(
        f"Warning: some {what} in the cache ({folder}) were damaged, for example by a power cut, and are "
        "computed again. To check all of the cache: headstart cache --verify."
    )
