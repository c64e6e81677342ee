"""Cache entries: where the cache is, what it contains, and removing entries."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from headstart.cache.keys import KEY_BYTES
from headstart.cache.store_files import ABOUT_BYTES, RECORD_BYTES, last_used, parse_json_object, read_about
from headstart.errors import CacheError, OptionError
from headstart.files import UserPath, user_path

CLEAR_WAITS = 10.0
"""Seconds that ``clear_cache`` waits for a batch that is being appended."""

ENGINE_PLANS = "engines"
"""Folder of the cache that contains engine plans, see ``engine.plan``."""

ENVIRONMENTS = "environments"
"""Folder of the cache that contains installed packages, see ``isolated_environment``."""

STORE_NAME = re.compile(r"[0-9a-f]{24}")
_DOCUMENT = re.compile(r"[0-9a-f]{24}\.safetensors")
_TRASH = re.compile(r"\.trash-[0-9a-f]{24}(\.safetensors)?-[0-9a-f]{8}")
_WORDS = {
    "environment": "packages for {}",
    "python": "Python {}",
    "images": "{} images",
    "architecture": "{}",
    "boundary": "boundary {}",
    "cut": "cut at {}",
    "pool": "pool {}",
    "size": "size {}",
    "side": "at most {0} x {0}",
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
    """The folder that contains all caches: ``folder``, ``$HEADSTART_CACHE``, or the platform's cache folder.

    Raises:
        OptionError: ``folder`` is not a path.
        CacheError: no folder is given, and this user has no home folder.
    """
    if folder is not None:
        return user_path(folder)
    try:
        return user_path(os.environ.get("HEADSTART_CACHE") or platformdirs.user_cache_dir("headstart"))
    except (OptionError, RuntimeError) as error:  # platformdirs raises RuntimeError
        why = error if isinstance(error, OptionError) else "this user has no home folder (HOME is not set)."
        raise CacheError(f"no cache folder: {why} Set HEADSTART_CACHE to a writable folder.") from error


@dataclass(frozen=True)
class CacheEntry:
    """A removable part of the cache: the folder of a ``RowStore``, an engine plan, or installed packages.

    Attributes:
        kind: "pixels", "features", "engines", ...
        name: 24 hexadecimal digits.
        about: description of what was computed and how; empty if it cannot be read.
        rows: number of rows; 0 for a plan.
        bytes: size on disk.
        used: time of last use, to about a minute, in seconds since 1970.
        path: the folder or file.
        row_bytes: size of a row; 0 for a plan, for a store of an older version, and if it cannot be read.
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
        """A short description: architecture, size, augmentation, ...; the kind if ``about`` has no such fields."""
        values = dict(self.about)
        for source in (self.about, self.about.get("pixels")):
            if isinstance(source, dict) and {"height", "width"} <= source.keys():
                values["size"] = f"{source['height']} x {source['width']}"
        words = [form.format(_brief(values[k])) for k, form in _WORDS.items() if values.get(k) not in (None, "", {})]
        return ", ".join(words) or self.kind


def cache_entries(root: Path | None = None) -> list[CacheEntry]:
    """The entries of the cache, most recently used first. Other files in the folder are ignored.

    Remains of removals that were interrupted are deleted.

    Args:
        root: the cache folder, which need not exist; default ``cache_root()``.

    Raises:
        CacheError: the folder cannot be read.
    """
    root = cache_root(root)
    try:
        kinds = [path for path in root.iterdir() if path.is_dir()] if root.exists() else []
    except OSError as error:
        raise CacheError(f"{root}: {error.strerror or error}. Set HEADSTART_CACHE to a readable folder.") from error
    found = [entry for kind in kinds for entry in _entries_of(kind)]
    return sorted(found, key=lambda entry: (-entry.used, entry.path))


def clear_cache(entries: Iterable[CacheEntry]) -> int:
    """Removes entries, even if they are in use: a run that still needs one stops with a ``CacheError``.

    Returns:
        Bytes freed, without entries that no longer exist.

    Raises:
        CacheError: some could not be removed (no permission, or a batch was being appended for longer than 10
            seconds); all others are removed.
    """
    freed, failed = 0, []
    for entry in entries:
        try:
            remove_entry(entry, wait=CLEAR_WAITS)
            freed += entry.bytes
        except FileNotFoundError:
            continue
        except OSError as error:
            failed.append(f"{entry.path}: {error.strerror or error}")
    if failed:
        raise CacheError(
            f"{len(failed):,} cache entries cannot be removed. First error: {failed[0]}. {size_text(freed)} were "
            "freed. Stop the runs that use them, or check the folder's permissions."
        )
    return freed


def remove_entry(entry: CacheEntry, *, wait: float, unless_used: bool = False) -> bool:
    """Renames an entry, then deletes it, so that no process ever finds half of one.

    A process that appends holds the lock until the last byte is written. Windows does not rename a folder that contains
    an open file: there, the open lock file protects the folder, and taking the lock would prevent the removal.

    Args:
        entry: what to remove.
        wait: seconds to wait for the lock.
        unless_used: keep it if it was used since it was listed.

    Returns:
        False if it was kept.

    Raises:
        OSError: it is locked for longer than ``wait``, cannot be renamed, or does not exist.
    """
    trash = trash_path(entry.path)
    lock: AbstractContextManager[object] = nullcontext()
    lock_file = entry.path / "lock"
    if entry.path.is_dir() and os.name != "nt" and (lock_file.is_file() or not lock_file.exists()):
        lock = FileLock(lock_file, timeout=wait)
    with lock:
        if unless_used and last_used(entry.path) != entry.used:
            return False
        entry.path.rename(trash)
    delete_trash(trash)
    return True


def trash_path(path: Path) -> Path:
    """A new name beside a path, to rename it to before it is deleted."""
    return path.with_name(f".trash-{path.name}-{secrets.token_hex(4)}")


def delete_trash(trash: Path) -> None:
    """Deletes a renamed entry. What cannot be deleted is tried again when the cache is listed next."""
    if trash.is_dir():
        shutil.rmtree(trash, ignore_errors=True)
    else:
        with suppress(OSError):
            trash.unlink()


def size_text(size: float) -> str:
    """A number of bytes with unit: "1.2 GB", "345.0 MB", "0.3 kB" (powers of 1000)."""
    unit, power = next(((u, p) for u, p in (("GB", 1e9), ("MB", 1e6)) if size >= p), ("kB", 1e3))
    return f"{size / power:,.1f} {unit}"


def _entries_of(kind: Path) -> Iterator[CacheEntry]:
    try:
        paths = list(kind.iterdir())
    except OSError:  # another user's folder
        return
    for path in paths:
        if _TRASH.fullmatch(path.name):
            delete_trash(path)
            continue
        with suppress(OSError):  # removed since it was listed
            if STORE_NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                yield from _store_entry(path)
            elif kind.name == ENGINE_PLANS and _DOCUMENT.fullmatch(path.name) and not path.is_symlink():
                yield _plan_entry(kind, path)


def _plan_entry(kind: Path, path: Path) -> CacheEntry:
    size = sum(file.lstat().st_size for file in [path, *path.rglob("*")])
    return CacheEntry(kind.name, path.stem, _about_of_plan(path), 0, size, last_used(path), path)


def _store_entry(folder: Path) -> Iterator[CacheEntry]:
    """One entry; none if the folder is not a store, because only what this library wrote may be removed."""
    sizes = {file.name: file.lstat().st_size for file in folder.iterdir()}
    if "about.json" in sizes or sizes.keys() <= {"used", "lock"}:
        document = read_about(folder)
        is_old = "store" not in document
        description, size = (document, 0) if is_old else (document.get("about"), document.get("row_bytes"))
        about: dict[str, Any] = description if isinstance(description, dict) else {}
        row_bytes = size if type(size) is int and size > 0 else 0
        rows = sizes.get("keys.bin", 0) // (RECORD_BYTES if row_bytes else KEY_BYTES)
        below = document.get("bytes")  # in folders of it, as it was written
        total = sum(sizes.values()) + (below if type(below) is int and below > 0 else 0)
        yield CacheEntry(folder.parent.name, folder.name, about, rows, total, last_used(folder), folder, row_bytes)


def _about_of_plan(path: Path) -> dict[str, Any]:
    """The description in a plan's metadata, not verified; empty if it cannot be read."""
    try:
        if not path.is_file():
            return {}
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            metadata = parse_json_object(file.read(min(size, ABOUT_BYTES))).get("__metadata__")
    except OSError:
        return {}
    about = metadata.get("about") if isinstance(metadata, dict) else None
    return parse_json_object(about) if isinstance(about, str) else {}


def _brief(value: object) -> str:
    text = " ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    text = "".join(letter if letter.isprintable() else "?" for letter in text[:200])
    return text if len(text) <= 40 else text[:37] + "..."
