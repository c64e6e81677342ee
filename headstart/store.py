"""Rows of fixed shape on disk, found by the content hash of the image that they were made from.

One folder holds one kind of row (the pixels for one preprocessing, the features of one backbone, ...):

    about.json   what made the rows; the folder's name is a hash of it
    rows.bin     the rows, one behind the other
    keys.bin     16 bytes a row: the content hash of its image, in the same order
    used         its time is when the folder was last used; its random content tells it from a later one of that name
    lock         held while a batch is appended, or the folder removed

Rows and keys only grow. A batch is appended rows first, keys last, so a row exists once its key does: a process that is
killed loses the batch that it was writing and nothing else, and the torn tail is cut off by the next writer. Rows are
shared by every run on the same images, whatever their folder, names or labels.

The cache has a limit (``cache_limit``). ``RowStore.require_space`` keeps it by removing whole folders, and exported
graphs (``engines/*.onnx``), the one that was used longest ago first. What is removed is renamed to ``.trash-...``
beside it, then deleted; what a killed process left of that goes with the next look at the cache. A store whose folder
was removed under it says so, and never takes a new folder of the same name for its own.
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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import platformdirs
from filelock import FileLock

from headstart.errors import CacheError, OptionError
from headstart.files import UserPath, user_path, write_atomically

KEY_BYTES = 16
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

_OPENED: WeakSet[RowStore] = WeakSet()
_OPENED_LOCK = threading.Lock()
_NAME = re.compile(r"[0-9a-f]{24}")
_ENGINE = re.compile(r"[0-9a-f]{24}\.onnx")
_TRASH = re.compile(r"\.trash-[0-9a-f]{24}(\.onnx)?-[0-9a-f]{8}")
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
    "precision": "{}",
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


@dataclass(frozen=True)
class CacheEntry:
    """One thing that the cache holds and can remove: the folder of a ``RowStore``, or an exported graph.

    Attributes:
        kind: "pixels", "features", "engines", ...
        name: 24 hexadecimal digits.
        about: everything that made it; empty for an exported graph.
        rows: how many; 0 for an exported graph.
        bytes: on disk.
        used: when it was last used, to about a minute, in seconds since 1970; of an exported graph the file system's
            own time of access, which may be a day late.
        path: the folder or file.
    """

    kind: str
    name: str
    about: dict[str, Any]
    rows: int
    bytes: int
    used: float
    path: Path

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


def size_text(size: float) -> str:
    """Bytes in words: "1.2 GB", "345.0 MB", "0.3 kB" (powers of 1000)."""
    unit, power = next(((u, p) for u, p in (("GB", 1e9), ("MB", 1e6)) if size >= p), ("kB", 1e3))
    return f"{size / power:,.1f} {unit}"


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
        self.folder = self.root / kind / describe_key(about)
        self._index: dict[bytes, int] = {}
        self._token: str | None = None
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
                self._extend("rows.bin", len(self._index) * self.row_bytes, data.tobytes())
                self._extend("keys.bin", len(self._index) * KEY_BYTES, b"".join(keys[i] for i in new))
                self._refresh()

    def read(self, keys: Sequence[bytes]) -> npt.NDArray[Any]:
        """Rows in the order of ``keys``; neighbours on disk are read in one go.

        It takes no memory but that of the rows asked for: the file is read, not mapped, because the pages of a map
        count as the process's own.

        Returns:
            (n, *shape), a copy.

        Raises:
            KeyError: a key has no row; see ``missing``.
            CacheError: the file cannot be read, or was removed by somebody else.
        """
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
        return out

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
            _make_room(self.root, count * (self.row_bytes + KEY_BYTES), keep=self.folder)

    def _open(self) -> None:
        """Makes the folder where it is not there, and takes in its keys; again, if it is removed meanwhile."""
        for _ in range(3):
            self._index.clear()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._token = self._identify()
            if not (self.folder / "about.json").exists():
                write_atomically(self.folder / "about.json", json.dumps(self.about, indent=1).encode())
            self._refresh()
            if self._token is None or self._token == _token(self.folder):
                return
        raise self._removed()

    def _identify(self) -> str | None:
        """Notes the use; what tells this folder from a later one of its name, None in a cache that is only read."""
        used = self.folder / "used"
        try:
            if not used.exists():
                with FileLock(self.folder / "lock"):
                    if not used.exists():
                        write_atomically(used, secrets.token_hex(8).encode())
            os.utime(used)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
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
            if file.seek(0, os.SEEK_END) < offset:
                raise OSError(errno.EIO, f"{name} is shorter than it was; remove the folder")
            file.truncate(offset)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

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
    if entry.path.is_dir() and os.name != "nt":
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
            elif kind.name == "engines" and _ENGINE.fullmatch(path.name):
                yield CacheEntry(kind.name, path.stem, {}, 0, path.stat().st_size, _last_used(path), path)


def _folder_entry(folder: Path) -> Iterator[CacheEntry]:
    """One entry, or none where the folder is no store: what is removed must have been made here."""
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    if "about.json" in sizes or sizes.keys() <= {"used", "lock"}:
        rows, size = sizes.get("keys.bin", 0) // KEY_BYTES, sum(sizes.values())
        yield CacheEntry(folder.parent.name, folder.name, _about(folder), rows, size, _last_used(folder), folder)


def _about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / "about.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _last_used(path: Path) -> float:
    """Seconds since 1970. Folders from before there were stamps: when rows were last added."""
    if path.is_dir():
        stamp = next((path / name for name in ("used", "keys.bin", "about.json") if (path / name).exists()), path)
        return stamp.stat().st_mtime
    stat = path.stat()
    return max(stat.st_atime, stat.st_mtime)


def _token(folder: Path) -> str | None:
    try:
        return (folder / "used").read_text(encoding="ascii")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def _brief(value: object) -> str:
    text = " ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
