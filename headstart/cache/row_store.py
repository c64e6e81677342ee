"""Rows of fixed shape on disk, found by the content hash of the image that they were made from.

One folder holds one kind of row (the pixels for one preprocessing, the features of one backbone, ...):

    about.json   what made the rows, and their size; the folder's name is a hash of it
    rows.bin     the rows, one behind the other
    keys.bin     24 bytes a row, in the same order: the content hash of its image, and a checksum
    used         its time is when the folder was last used; its random content tells it from a later one of that name
    lock         held while a batch is appended, or the folder removed

Rows and keys only grow. A batch is appended rows first, keys last, so a row exists once its key does: a process that is
killed loses the batch that it was writing and nothing else, and the torn tail is cut off by the next writer. Rows are
shared by every run on the same images, whatever their folder, names or labels.

Nothing that is read is believed. The checksum of a row (XXH3, 64 bits) covers the row, its key and the folder's name;
it is verified at every reading. After a power cut a row may be zeros or another image's: it is then dropped, computed
again and appended again, and of two rows with the same key the later one counts. So nothing waits for the disk.

The cache has a limit (``cache_limit``). ``RowStore.require_space`` keeps it by removing whole entries, the one that was
used longest ago first: the folders of rows, and engine plans (``engines/*.safetensors``, see ``seal_document``). What
is removed is renamed to ``.trash-...`` beside it, then deleted; what a killed process left of that goes with the next
look at the cache. A store whose folder was removed under it says so, and never takes a new folder of the same name for
its own.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import threading
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import platformdirs
import xxhash
from filelock import FileLock

from headstart.errors import CacheError, OptionError
from headstart.files import UserPath, user_path, write_atomically

STORE_VERSION = 2
"""Counted up whenever the files of a store change; older stores are not found any more, and can be removed."""

KEY_BYTES = 16
RECORD_BYTES = KEY_BYTES + 8
"""Of keys.bin for each row: its key and its checksum."""

GB = 1_000_000_000
DEFAULT_LIMIT = 50 * GB
RESERVE = 10 * GB
"""What is left free on the disk, in bytes, as long as there is something to remove; less on disks below 200 GB."""

IN_USE = 600.0
"""Seconds since its last use in which a folder is taken to be in use by another process."""

STAMP_EVERY = 60.0
"""Seconds between two notes of a folder's use."""

CLEAR_WAITS = 10.0
"""Seconds that ``clear_cache`` waits for a batch that is being appended."""

PIECE = 4096
"""Rows that are looked up at once."""

CHECKED_BYTES = 1 << 26
"""Bytes of rows that are read at once to verify them, about."""

_RECORD = np.dtype([("key", f"V{KEY_BYTES}"), ("checksum", "<u8")])
_YEAR_9999 = 253_370_764_800.0
_BLANK = bytes(KEY_BYTES)
"""In place of the key of a row that was found to be damaged."""

ABOUT_BYTES = 1 << 20
"""No description is longer."""

_FILES = ("about.json", "rows.bin", "keys.bin", "used", "lock")

_OPENED: WeakSet[RowStore] = WeakSet()
_OPENED_LOCK = threading.Lock()
_NAME = re.compile(r"[0-9a-f]{24}")
_DOCUMENT = re.compile(r"[0-9a-f]{24}\.safetensors")
_TRASH = re.compile(r"\.trash-[0-9a-f]{24}(\.safetensors)?-[0-9a-f]{8}")
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_WORDS = {
    "architecture": "{}",
    "boundary": "boundary {}",
    "cut": "cut at {}",
    "pool": "pool {}",
    "size": "size {}",
    "crop_mode": "{}",
    "crop_pct": "crop {}",
    "interpolation": "{}",
    "augmentation": "augmentation {}",
    "seed": "seed {}",
    "engine": "{}",
    "precision": "{}",
    "speeds": "{}",
}


def cache_root(folder: UserPath | None = None) -> Path:
    """The folder that holds every cache: ``folder``, ``$HEADSTART_CACHE``, or the platform's place for caches.

    Raises:
        OptionError: ``folder`` is not a path.
        CacheError: nobody named a folder, and this user has no home folder.
    """
    if folder is not None:
        return user_path(folder)
    try:
        return user_path(os.environ.get("HEADSTART_CACHE") or platformdirs.user_cache_dir("headstart"))
    except (OptionError, RuntimeError) as error:  # platformdirs raises the latter
        why = error if isinstance(error, OptionError) else "no home folder is known here (HOME is not set)."
        raise CacheError(f"no cache folder: {why} Set HEADSTART_CACHE to a folder that can be written.") from error


def content_key(data: bytes) -> bytes:
    """The 16-byte content hash (BLAKE2b) of a file's bytes, by which everything made from it is found."""
    return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()


def describe_key(about: dict[str, Any]) -> str:
    """A 24-digit name for a JSON-able description, the same on every machine and in every process."""
    text = json.dumps(about, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


class DamagedRows(CacheError):
    """Rows of the cache that are not what was written; the store has dropped them.

    Attributes:
        keys: of these rows.
    """

    def __init__(self, folder: Path, keys: list[bytes]) -> None:
        count = f"{len(keys):,} row{'s are' if len(keys) > 1 else ' is'}"
        super().__init__(
            f"{folder}: {count} damaged, and dropped. Run the same command again; it computes what is gone anew."
        )
        self.keys = keys


@dataclass(frozen=True)
class CacheEntry:
    """One thing that the cache holds and can remove: the folder of a ``RowStore``, or an engine plan.

    Attributes:
        kind: "pixels", "features", "engines", ...
        name: 24 hexadecimal digits.
        about: everything that made it; empty where that cannot be read.
        rows: how many; 0 for a plan.
        bytes: on disk.
        used: when it was last used, to about a minute, in seconds since 1970.
        path: the folder or file.
        row_bytes: of each row; 0 for a plan, for a store of an older version, and where it cannot be read.
    """

    kind: str
    name: str
    about: dict[str, Any]
    rows: int
    bytes: int
    used: float
    path: Path
    row_bytes: int = 0

    @property
    def words(self) -> str:
        """What it is, in a few words; the kind where ``about`` holds nothing that says more."""
        told = dict(self.about)
        for made_of in (self.about, self.about.get("pixels")):
            if isinstance(made_of, dict) and {"height", "width"} <= made_of.keys():
                told["size"] = f"{made_of['height']} x {made_of['width']}"
        words = [form.format(_brief(told[key])) for key, form in _WORDS.items() if told.get(key) not in (None, "", {})]
        return ", ".join(words) or self.kind


def cache_limit() -> int:
    """Bytes that the cache may hold: ``$HEADSTART_CACHE_LIMIT`` in GB (10^9 bytes), or 50 GB.

    Raises:
        CacheError: the variable is no number above 0.
    """
    named = os.environ.get("HEADSTART_CACHE_LIMIT", "").strip()
    if not named:
        return DEFAULT_LIMIT
    try:
        limit = float(named) * GB
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise CacheError(
            f"HEADSTART_CACHE_LIMIT is {named!r}: expected the size in GB that the cache may have, a number above 0 "
            "such as 20 or 0.5."
        )
    return int(limit)


def cache_entries(root: Path | None = None) -> list[CacheEntry]:
    """What the cache holds, the last used first; anything else that stands in the folder is left alone.

    What a killed process left half removed is removed.

    Args:
        root: the cache folder, which need not be there; ``cache_root()`` where it is not given.

    Raises:
        CacheError: the folder cannot be read.
    """
    root = cache_root(root)
    try:
        kinds = [path for path in root.iterdir() if path.is_dir()] if root.exists() else []
    except OSError as error:
        raise CacheError(f"{root}: {error.strerror or error}. Set HEADSTART_CACHE to a folder of yours.") from error
    found = [entry for kind in kinds for entry in _entries_of(kind)]
    return sorted(found, key=lambda entry: (-entry.used, entry.path))


def clear_cache(entries: Iterable[CacheEntry]) -> int:
    """Removes entries, whether or not they are in use: a run that still needs one stops with a ``CacheError``.

    Returns:
        Bytes freed; an entry that is gone already counts nothing.

    Raises:
        CacheError: some could not be removed (no permission, or a batch being appended for longer than 10 seconds);
            all others are.
    """
    freed, failed = 0, []
    for entry in entries:
        try:
            _remove(entry, wait=CLEAR_WAITS)
            freed += entry.bytes
        except FileNotFoundError:
            continue
        except OSError as error:
            failed.append(f"{entry.path}: {error.strerror or error}")
    if failed:
        raise CacheError(
            f"{len(failed):,} of the cache's entries cannot be removed; the first, {failed[0]}. {size_text(freed)} "
            "were freed. Stop the runs that write to the rest, or look at who owns the folder."
        )
    return freed


@dataclass(frozen=True)
class Verified:
    """What became of an entry that was verified.

    Attributes:
        entry: as it was.
        rows: that were read; 0 where it could not be read, and for a plan.
        damaged: rows that were not what was written, and were removed.
        fault: why the entry as a whole was removed or could not be read; "" otherwise.
        old: whether an older version of Headstart wrote it, so that nothing reads it any more; it was not verified.
    """

    entry: CacheEntry
    rows: int = 0
    damaged: int = 0
    fault: str = ""
    old: bool = False

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return not (self.damaged or self.fault)


def verify_cache(entries: Iterable[CacheEntry]) -> Iterator[Verified]:
    """Reads every row of every entry and removes what is not as it was written, one entry after the other.

    Everything that is removed will be computed again when it is needed. Runs may go on meanwhile.

    Raises:
        CacheError: something damaged cannot be removed.
    """
    for entry in entries:
        try:
            yield _verify(entry)
        except FileNotFoundError:  # removed meanwhile
            continue
        except OSError as error:
            why = error.strerror or str(error)
            yield Verified(entry, fault=f"cannot be read ({why}); look at who owns it")


def _verify(entry: CacheEntry) -> Verified:
    if not _NAME.fullmatch(entry.path.name):
        if entry.path.is_file() and read_document(entry.path):
            return Verified(entry)
        return _verified_away(entry, "its checksum is wrong; removed")
    strange = [name for name in _FILES if (entry.path / name).exists() and not (entry.path / name).is_file()]
    if strange:
        return _verified_away(entry, f"{strange[0]} is not a file; removed")
    if not entry.row_bytes:
        if _document(entry.path) and "store" not in _document(entry.path):
            return Verified(entry, old=True)
        if _size(entry.path / "keys.bin"):
            return _verified_away(entry, "about.json is damaged; removed")
        return Verified(entry)
    rows, damaged = _damaged_records(entry)
    if damaged:
        _blank(entry, damaged)
    return Verified(entry, rows, len(damaged))


def _verified_away(entry: CacheEntry, fault: str) -> Verified:
    clear_cache([entry])
    return Verified(entry, fault=fault)


def _damaged_records(entry: CacheEntry) -> tuple[int, dict[int, bytes]]:
    """(rows that were read, place in keys.bin -> its record, of those that are damaged)."""
    size, damaged, count = entry.row_bytes, dict[int, bytes](), 0
    if not (entry.path / "keys.bin").exists() or not (entry.path / "rows.bin").exists():
        return 0, {}
    with open(entry.path / "keys.bin", "rb") as keys, open(entry.path / "rows.bin", "rb") as rows:
        for place in range(_size(entry.path / "keys.bin") // RECORD_BYTES):
            record, row = keys.read(RECORD_BYTES), rows.read(size)
            if len(record) < RECORD_BYTES or record[:KEY_BYTES] == _BLANK:
                continue
            count += 1
            key, sum_ = record[:KEY_BYTES], int.from_bytes(record[KEY_BYTES:], "little")
            if len(row) < size or row_checksum(entry.name, key, row) != sum_:
                damaged[place] = record
    return count, damaged


def _blank(entry: CacheEntry, damaged: Mapping[int, bytes]) -> None:
    """Overwrites keys whose rows are damaged; other rows keep their places, which open stores know them by."""
    with FileLock(entry.path / "lock", timeout=CLEAR_WAITS), open(entry.path / "keys.bin", "rb+") as keys:
        for place, record in damaged.items():
            keys.seek(place * RECORD_BYTES)
            if keys.read(RECORD_BYTES) == record:
                keys.seek(place * RECORD_BYTES)
                keys.write(bytes(RECORD_BYTES))


def row_checksum(folder: str, key: bytes, row: bytes | memoryview) -> int:
    """XXH3 (64 bits) of a row, which no other key and no other folder has for the same row.

    Source: Yann Collet, xxHash (2012-2021). 20 GB/s on one core, where BLAKE2b makes 0.3 and CRC-32 1.1.
    """
    seed = xxhash.xxh3_64_intdigest(folder.encode() + key)
    return xxhash.xxh3_64_intdigest(row, seed)


def seal_document(data: bytes) -> str:
    """A digest of a safetensors file, whatever order its header is in, for the file's own metadata ("digest").

    Args:
        data: the whole file, with or without that digest.
    """
    header, body = _safetensors(data)
    header.get("__metadata__", {}).pop("digest", None)
    text = json.dumps(header, sort_keys=True).encode()
    return hashlib.blake2b(len(text).to_bytes(8, "little") + text + body, digest_size=16).hexdigest()


def read_document(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file that holds its own digest.

    Returns:
        Empty where there is no such file, or where it is damaged.
    """
    try:
        if not path.is_file():
            return {}
        data = path.read_bytes()
        told = _safetensors(data)[0]["__metadata__"]
        return {str(k): str(v) for k, v in told.items()} if told["digest"] == seal_document(data) else {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, tensors' bytes)."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    if not isinstance(header, dict):
        raise ValueError("no header")
    return header, data[end:]


def size_text(size: float) -> str:
    """Bytes in words: "1.2 GB", "345.0 MB", "0.3 kB" (powers of 1000)."""
    unit, power = next(((u, p) for u, p in (("GB", 1e9), ("MB", 1e6)) if size >= p), ("kB", 1e3))
    return f"{size / power:,.1f} {unit}"


@final
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
        self.root = cache_root(root)
        self.folder = self.root / kind / describe_key({"about": about, "store": STORE_VERSION})
        self._index: dict[bytes, int] = {}
        self._sums = array("Q")
        self._dropped: set[bytes] = set()
        self._token: bytes | None = None
        self._stamped = time.monotonic()
        try:
            self._open()
        except OSError as error:
            raise self._cache_error(error) from error
        with _OPENED_LOCK:
            _OPENED.add(self)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: bytes) -> bool:
        self._stamp()
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
            CacheError: the disk is full, the folder cannot be written, or it was removed by somebody else.
        """
        if rows.shape != (len(keys), *self.shape) or rows.dtype != self.dtype:
            raise ValueError(f"expected {(len(keys), *self.shape)} {self.dtype}, got {rows.shape} {rows.dtype}")
        with self._named_errors():
            self._check_same_folder()  # before the lock too, which would make the folder anew
            with FileLock(self.folder / "lock"):
                self._check_same_folder()
                self._refresh()
                new = self.missing(keys)
                if not new:
                    return
                data = np.ascontiguousarray(rows[new])
                own = [keys[i] for i in new]
                flat = data.reshape(-1).view(np.uint8).data
                records = b"".join(
                    key + self._checksum(key, flat, place).to_bytes(8, "little") for place, key in enumerate(own)
                )
                self._extend("rows.bin", len(self._sums) * self.row_bytes, flat)
                self._extend("keys.bin", len(self._sums) * RECORD_BYTES, records)
                self._refresh()

    def read(self, keys: Sequence[bytes]) -> npt.NDArray[Any]:
        """Rows in the order of ``keys``, each verified; neighbours on disk are read in one go.

        It takes no memory but that of the rows asked for: the file is read, not mapped, because the pages of a map
        count as the process's own.

        Returns:
            (n, *shape), a copy.

        Raises:
            KeyError: a key has no row; see ``missing``.
            DamagedRows: some rows are not what was written. They are missing from here on; all others are sound.
            CacheError: the file cannot be read, or was removed by somebody else.
        """
        gone = [key for key in dict.fromkeys(keys) if key in self._dropped and key not in self._index]
        if gone:  # by another thread, which has not appended them again yet
            raise DamagedRows(self.folder, gone)
        wanted = np.fromiter((self._index[key] for key in keys), dtype=np.int64, count=len(keys))
        out = np.empty((len(keys), *self.shape), dtype=self.dtype)
        if not out.nbytes:
            return out
        flat = out.reshape(-1).view(np.uint8).data
        with self._named_errors(), open(self.folder / "rows.bin", "rb", buffering=0) as file:
            self._check_same_folder()  # after the file is open: from here on it is ours, even if it is removed
            for start in range(0, len(wanted), PIECE):
                piece = wanted[start : start + PIECE]
                self._read_piece(file, piece, flat[start * self.row_bytes : (start + len(piece)) * self.row_bytes])
        sums = self._sums
        rows = enumerate(zip(keys, wanted.tolist(), strict=True))
        damaged = {key: row for place, (key, row) in rows if self._checksum(key, flat, place) != sums[row]}
        if damaged:
            self._drop(damaged)
            raise DamagedRows(self.folder, list(damaged))
        return out

    def drop_damaged(self, keys: Sequence[bytes]) -> int:
        """Reads rows and drops those that are damaged, so that ``missing`` names them.

        Args:
            keys: of rows; those that the store lacks are passed over.

        Returns:
            How many were dropped.

        Raises:
            CacheError: as ``read``.
        """
        held = [key for key in dict.fromkeys(keys) if key in self._index]
        step, count = max(1, CHECKED_BYTES // max(1, self.row_bytes)), 0
        for start in range(0, len(held), step):
            try:
                self.read(held[start : start + step])
            except DamagedRows as damaged:
                count += len(damaged.keys)
        return count

    def require_space(self, count: int) -> None:
        """Makes room for ``count`` more rows, by removing what was used longest ago from the cache.

        The cache may hold ``cache_limit()``; of the disk, 5 % but no more than 10 GB is left free as long as there is
        something to remove. This store, those that this process has open, and whatever was used in the last 10 minutes
        (another process may be at it) stay. Where removing all else would not be enough, nothing is removed. Room is
        made, not reserved: two processes may be promised the same.

        Raises:
            CacheError: there is no room; says how much is needed, allowed and free. Or a bad ``HEADSTART_CACHE_LIMIT``,
                or the folder was removed by somebody else.
        """
        if count <= 0:
            return
        with self._named_errors():
            self._check_same_folder()
            _make_room(self.root, count * (self.row_bytes + RECORD_BYTES), keep=self.folder)

    def _open(self) -> None:
        """Makes the folder where it is not there, and takes in its keys; again, if it is removed meanwhile."""
        document = {"store": STORE_VERSION, "row_bytes": self.row_bytes, "about": self.about}
        for _ in range(3):
            self._index.clear()
            del self._sums[:]
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(path.exists() and not path.is_file() for path in (self.folder / name for name in _FILES)):
                self._set_aside()
                continue
            self._token = self._identify()
            if _document(self.folder) != document:
                self._describe(document)
            self._refresh()
            if self._token is None or self._token == _token(self.folder):
                return
        raise self._removed()

    def _describe(self, document: dict[str, Any]) -> None:
        """Says what the rows are; a cache that is only read stays as it is."""
        try:
            write_atomically(self.folder / "about.json", json.dumps(document, indent=1).encode())
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise

    def _set_aside(self) -> None:
        """Removes the folder: something stands in it where a file should be, and nobody can use it."""
        trash = self.folder.with_name(f".trash-{self.folder.name}-{secrets.token_hex(4)}")
        self.folder.rename(trash)
        _delete(trash)

    def _identify(self) -> bytes | None:
        """Notes the use; what tells this folder from a later one of its name, None in a cache that is only read."""
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
        return _token(self.folder)

    def _stamp(self) -> None:
        """Notes the use, about once a minute; where that fails, the operation itself will say why."""
        now = time.monotonic()
        if now - self._stamped >= STAMP_EVERY:
            self._stamped = now
            with suppress(OSError):
                os.utime(self.folder / "used")

    def _check_same_folder(self) -> None:
        """Rows are found by their place: in another folder of the same name, other rows would stand there.

        A name that was given to another folder never comes back. So what was opened by name before this, is ours.
        """
        if self._token is not None and self._token != _token(self.folder):
            raise self._removed()
        self._stamp()

    def _read_piece(self, file: io.FileIO, wanted: npt.NDArray[np.int64], out: memoryview) -> None:
        ends = [*(np.flatnonzero(np.diff(wanted) != 1) + 1).tolist(), len(wanted)]
        for first, end in zip([0, *ends], ends, strict=False):
            file.seek(int(wanted[first]) * self.row_bytes)
            run = out[first * self.row_bytes : end * self.row_bytes]
            while run.nbytes:  # one call gives at most 2 GB
                got = file.readinto(run)
                if not got:
                    raise OSError(errno.EIO, "rows.bin is shorter than it was; remove the folder")
                run = run[got:]

    def _refresh(self) -> None:
        """Takes in the keys that this or another process has added since the last look; the later of two counts."""
        path = self.folder / "keys.bin"
        known = len(self._sums)
        held = min(_size(path) // RECORD_BYTES, self._rows_on_disk())
        if held <= known:
            return
        with open(path, "rb") as file:
            file.seek(known * RECORD_BYTES)
            data = file.read((held - known) * RECORD_BYTES)
        records = np.frombuffer(data[: len(data) // RECORD_BYTES * RECORD_BYTES], dtype=_RECORD)
        self._sums.frombytes(records["checksum"].astype(np.uint64).tobytes())
        for row, key in enumerate(records["key"].tolist(), start=known):
            if key != _BLANK:
                self._index[key] = row
                self._dropped.discard(key)

    def _checksum(self, key: bytes, flat: memoryview, place: int) -> int:
        """Of the row at ``place`` of those that lie one behind the other in ``flat``."""
        return row_checksum(self.folder.name, key, flat[place * self.row_bytes : (place + 1) * self.row_bytes])

    def _drop(self, damaged: Mapping[bytes, int]) -> None:
        """Forgets rows, unless another thread has put others in their place."""
        for key, row in damaged.items():
            self._dropped.add(key)
            if self._index.get(key) == row:
                del self._index[key]

    def _rows_on_disk(self) -> int:
        return _size(self.folder / "rows.bin") // max(1, self.row_bytes)

    def _extend(self, name: str, offset: int, data: bytes | memoryview) -> None:
        """Writes at ``offset``, cutting off what an interrupted writer left behind it."""
        with open(self.folder / name, "ab") as file:
            if file.seek(0, os.SEEK_END) < offset:
                raise OSError(errno.EIO, f"{name} is shorter than it was; remove the folder")
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
            "the space, or by hand). Run the same command again; it computes what is gone anew."
        )

    def _cache_error(self, error: OSError) -> CacheError:
        if error.errno == errno.ENOSPC:
            return CacheError(
                f"{self.folder}: the disk is full. What was computed so far is kept; free some space (headstart cache "
                "--clear), or set HEADSTART_CACHE to a folder on a larger disk, and run the same command again."
            )
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            return CacheError(
                f"{self.folder}: cannot be made, because there is a file in its place. Remove that file, or set "
                "HEADSTART_CACHE to another folder."
            )
        return CacheError(
            f"{self.folder}: {error.strerror or error}. Set HEADSTART_CACHE to a folder that can be written."
        )


def _make_room(root: Path, needed: int, *, keep: Path) -> None:
    limit, entries, disk = cache_limit(), cache_entries(root), shutil.disk_usage(root)
    held = sum(entry.bytes for entry in entries)
    with _OPENED_LOCK:
        mine = {path.resolve() for path in (keep, *(store.folder for store in _OPENED))}
    now = time.time()
    unused = [e for e in reversed(entries) if abs(now - e.used) >= IN_USE and e.path.resolve() not in mine]
    removable = sum(entry.bytes for entry in unused)
    must_go = max(held + needed - limit, needed - disk.free)
    should_go = max(must_go, needed + min(disk.total // 20, RESERVE) - disk.free)
    if must_go <= removable:
        must_go -= _evict(unused, should_go)
    if must_go > 0:
        raise CacheError(
            f"{keep}: the cache needs {size_text(needed)} more. It may hold {size_text(limit)} and holds "
            f"{size_text(held)}, of which {size_text(held - removable)} are in use or were within the last "
            f"{IN_USE / 60:.0f} minutes; {size_text(disk.free)} are free on the disk. Set HEADSTART_CACHE_LIMIT (GB) "
            "higher or HEADSTART_CACHE to a folder on a larger disk, or make room with headstart cache --clear."
        )


def _evict(entries: Iterable[CacheEntry], should_go: int) -> int:
    """Removes entries in the order given until so many bytes are gone; returns how many are."""
    gone = 0
    for entry in entries:
        if gone >= should_go:
            break
        with suppress(OSError):  # another process is at it, or may alone remove it
            gone += entry.bytes if _remove(entry, wait=0, unless_used=True) else 0
    return gone


def _remove(entry: CacheEntry, *, wait: float, unless_used: bool = False) -> bool:
    """Renames, then deletes, so that nobody ever finds half an entry.

    An appending process holds the lock from its look at the folder to its last byte. Windows renames no folder in which
    a file is open: there the open lock is itself the guard, and ours would be in the way.

    Returns:
        False where it was used since it was listed, and ``unless_used``.

    Raises:
        OSError: it is locked for longer than ``wait`` seconds, cannot be renamed, or is gone.
    """
    trash = entry.path.with_name(f".trash-{entry.path.name}-{secrets.token_hex(4)}")
    lock: AbstractContextManager[object] = nullcontext()
    lock_file = entry.path / "lock"
    if entry.path.is_dir() and os.name != "nt" and (lock_file.is_file() or not lock_file.exists()):
        lock = FileLock(entry.path / "lock", timeout=wait)
    with lock:
        if unless_used and _last_used(entry.path) != entry.used:
            return False
        entry.path.rename(trash)
    _delete(trash)
    return True


def _delete(trash: Path) -> None:
    """What cannot be deleted now is tried again at the next look at the cache."""
    if trash.is_dir():
        shutil.rmtree(trash, ignore_errors=True)
    else:
        with suppress(OSError):
            trash.unlink()


def _entries_of(kind: Path) -> Iterator[CacheEntry]:
    try:
        paths = list(kind.iterdir())
    except OSError:  # a folder of somebody else's
        return
    for path in paths:
        if _TRASH.fullmatch(path.name):
            _delete(path)
            continue
        with suppress(OSError):  # removed meanwhile
            if _NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                yield from _folder_entry(path)
            elif kind.name == "engines" and _DOCUMENT.fullmatch(path.name) and not path.is_symlink():
                about = _about_of_document(path)
                size = sum(file.lstat().st_size for file in [path, *path.rglob("*")])
                yield CacheEntry(kind.name, path.stem, about, 0, size, _last_used(path), path)


def _folder_entry(folder: Path) -> Iterator[CacheEntry]:
    """One entry, or none where the folder is no store: what is removed must have been made here."""
    sizes = {file.name: file.lstat().st_size for file in folder.iterdir()}
    if "about.json" in sizes or sizes.keys() <= {"used", "lock"}:
        document = _document(folder)
        is_old = "store" not in document
        told, size = (document, 0) if is_old else (document.get("about"), document.get("row_bytes"))
        about: dict[str, Any] = told if isinstance(told, dict) else {}
        row_bytes = size if type(size) is int and size > 0 else 0
        rows = sizes.get("keys.bin", 0) // (RECORD_BYTES if row_bytes else KEY_BYTES)
        used = _last_used(folder)
        yield CacheEntry(folder.parent.name, folder.name, about, rows, sum(sizes.values()), used, folder, row_bytes)


def _document(folder: Path) -> dict[str, Any]:
    """What about.json says; empty where it cannot be read."""
    path = folder / "about.json"
    try:
        if not path.is_file():
            return {}
        with open(path, "rb") as file:
            return _json(file.read(ABOUT_BYTES))
    except OSError:
        return {}


def _about_of_document(path: Path) -> dict[str, Any]:
    """What a plan says that it was found for, not verified; empty where that cannot be read."""
    try:
        if not path.is_file():
            return {}
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            told = _json(file.read(min(size, ABOUT_BYTES))).get("__metadata__")
    except OSError:
        return {}
    about = told.get("about") if isinstance(told, dict) else None
    return _json(about) if isinstance(about, str) else {}


def _json(text: str | bytes) -> dict[str, Any]:
    """A JSON object; an empty one where it is none."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _last_used(path: Path) -> float:
    """Seconds since 1970; 0 where the file system's time is no year of ours.

    Of folders from before there were stamps: when rows were last added.
    """
    stamp = path
    if path.is_dir():
        stamp = next((path / name for name in ("used", "keys.bin", "about.json") if (path / name).exists()), path)
    seconds = stamp.stat().st_mtime
    return seconds if 0 <= seconds < _YEAR_9999 else 0.0


def _token(folder: Path) -> bytes | None:
    try:
        with open(folder / "used", "rb") as file:
            return file.read(64)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
        return None


def _size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def _brief(value: object) -> str:
    text = " ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    text = "".join(letter if letter.isprintable() else "?" for letter in text[:200])
    return text if len(text) <= 40 else text[:37] + "..."
