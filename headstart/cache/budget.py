"""Size limit of the cache, and eviction of the least recently used entries."""

from __future__ import annotations

import math
import os
import shutil
import threading
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from headstart.cache.entries import CacheEntry, cache_entries, remove_entry, size_text
from headstart.errors import CacheError

GB = 1_000_000_000
DEFAULT_LIMIT = 50 * GB

RESERVE = 10 * GB
"""Bytes that eviction leaves free on the disk if it can; 5 % of the disk if that is less."""

IN_USE = 600.0
"""Seconds after its last use during which an entry is assumed to be in use by another process."""

LISTED_SECONDS = 30.0
"""Seconds for which a listing is used again where the cache is far from full; a listing reads every entry."""

FAR_FROM_FULL = 0.9
"""Share of the limit up to which a listing is used again."""

_LISTED: dict[Path, tuple[float, int]] = {}
"""Cache folder -> time of its last listing, and the bytes that it held then with those requested since."""

_LISTED_LOCK = threading.Lock()


def cache_limit() -> int:
    """Bytes that the cache may hold: ``$HEADSTART_CACHE_LIMIT`` in GB (10^9 bytes), default 50 GB.

    Raises:
        CacheError: the variable is not a number above 0.
    """
    text = os.environ.get("HEADSTART_CACHE_LIMIT", "").strip()
    if not text:
        return DEFAULT_LIMIT
    try:
        limit = float(text) * GB
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise CacheError(
            f"HEADSTART_CACHE_LIMIT is {text!r}: expected the cache's size limit in GB, a number above 0 such as 20 or "
            "0.5."
        )
    return int(limit)


def make_space(root: Path, needed: int, *, folder: Path, keep: Collection[Path]) -> None:
    """Evicts the least recently used entries until ``needed`` more bytes fit into the limit and onto the disk.

    Nothing is removed if removing everything that may be removed would not be enough.

    Args:
        root: the cache folder.
        needed: bytes.
        folder: the entry that needs them, for the message.
        keep: resolved paths of entries that this process has open.

    Raises:
        CacheError: there is not enough space; states how much is needed, allowed and free.
    """
    limit, disk = cache_limit(), shutil.disk_usage(root)
    if _fits(root, needed, limit, disk.free - min(disk.total // 20, RESERVE)):
        return
    entries = cache_entries(root)
    held = sum(entry.bytes for entry in entries)
    with _LISTED_LOCK:
        _LISTED[root] = time.monotonic(), held + needed
    now = time.time()
    unused = [e for e in reversed(entries) if abs(now - e.used) >= IN_USE and e.path.resolve() not in keep]
    removable = sum(entry.bytes for entry in unused)
    required = max(held + needed - limit, needed - disk.free)
    desired = max(required, needed + min(disk.total // 20, RESERVE) - disk.free)
    if required <= removable:
        required -= evict(unused, desired)
    if required > 0:
        raise CacheError(
            f"{folder}: the cache needs {size_text(needed)} more. Its limit is {size_text(limit)} and it holds "
            f"{size_text(held)}, of which {size_text(held - removable)} are in use or were used within the last "
            f"{IN_USE / 60:.0f} minutes; {size_text(disk.free)} are free on the disk. Increase HEADSTART_CACHE_LIMIT "
            "(GB), set HEADSTART_CACHE to a folder on a larger disk, or run headstart cache --clear."
        )


def _fits(root: Path, needed: int, limit: int, free: int) -> bool:
    """Whether ``needed`` more bytes fit for certain, by a recent listing; they are then counted as held.

    Args:
        root: the cache folder.
        needed: bytes.
        limit: of the cache, in bytes.
        free: bytes on the disk, without its reserve.
    """
    with _LISTED_LOCK:
        listed, held = _LISTED.get(root, (-math.inf, 0))
        if time.monotonic() - listed > LISTED_SECONDS or held + needed > FAR_FROM_FULL * limit or needed > free:
            return False
        _LISTED[root] = listed, held + needed
    return True


def evict(entries: Iterable[CacheEntry], amount: int) -> int:
    """Removes entries in the given order until ``amount`` bytes are freed.

    Returns:
        Bytes freed.
    """
    freed = 0
    for entry in entries:
        if freed >= amount:
            break
        with suppress(OSError):  # another process uses it, or it belongs to another user
            freed += entry.bytes if remove_entry(entry, wait=0, unless_used=True) else 0
    return freed
