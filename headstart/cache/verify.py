"""Verification of the cache: reads every row, compares checksums, and removes what is damaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from filelock import FileLock

from headstart.cache.entries import CLEAR_WAITS, STORE_NAME, CacheEntry, clear_cache
from headstart.cache.keys import KEY_BYTES
from headstart.cache.sealed_document import read_document
from headstart.cache.store_files import BLANK_KEY, RECORD_BYTES, STORE_FILES, file_size, read_about, row_checksum


@dataclass(frozen=True)
class Verified:
    """The result of verifying one cache entry.

    Attributes:
        entry: as it was before.
        rows: number of rows that were read; 0 if the entry could not be read, and for a plan.
        damaged: number of rows whose checksum was wrong; they were removed.
        fault: why the whole entry was removed or could not be read, else "".
        old: True if an older version of Headstart wrote it; nothing reads it any more, and it was not verified.
    """

    entry: CacheEntry
    rows: int = 0
    damaged: int = 0
    fault: str = ""
    old: bool = False

    @property
    def sound(self) -> bool:
        """True if no damage was found."""
        return not (self.damaged or self.fault)


def verify_cache(entries: Iterable[CacheEntry]) -> Iterator[Verified]:
    """Reads every row of each entry and removes the damaged ones. Runs may use the cache at the same time.

    What is removed is computed again when it is needed.

    Raises:
        CacheError: something damaged cannot be removed.
    """
    for entry in entries:
        try:
            yield _verify(entry)
        except FileNotFoundError:  # removed since it was listed
            continue
        except OSError as error:
            why = error.strerror or str(error)
            yield Verified(entry, fault=f"cannot be read ({why}); check its permissions")


def _verify(entry: CacheEntry) -> Verified:
    if not STORE_NAME.fullmatch(entry.path.name):
        if entry.path.is_file() and read_document(entry.path):
            return Verified(entry)
        return _removed(entry, "its checksum is wrong; the entry was removed")
    strange = [name for name in STORE_FILES if (entry.path / name).exists() and not (entry.path / name).is_file()]
    if strange:
        return _removed(entry, f"{strange[0]} is not a file; the entry was removed")
    if not entry.row_bytes:
        about = read_about(entry.path)
        if about and "store" not in about:
            return Verified(entry, old=True)
        if file_size(entry.path / "keys.bin"):
            return _removed(entry, "about.json is damaged; the entry was removed")
        return Verified(entry)
    rows, damaged = _damaged_records(entry)
    if damaged:
        _blank_records(entry, damaged)
    return Verified(entry, rows, len(damaged))


def _removed(entry: CacheEntry, fault: str) -> Verified:
    clear_cache([entry])
    return Verified(entry, fault=fault)


def _damaged_records(entry: CacheEntry) -> tuple[int, dict[int, bytes]]:
    """(number of rows read, {index in keys.bin: record} of the damaged ones)."""
    size, damaged, count = entry.row_bytes, dict[int, bytes](), 0
    if not (entry.path / "keys.bin").exists() or not (entry.path / "rows.bin").exists():
        return 0, {}
    with open(entry.path / "keys.bin", "rb") as keys, open(entry.path / "rows.bin", "rb") as rows:
        for index in range(file_size(entry.path / "keys.bin") // RECORD_BYTES):
            record, row = keys.read(RECORD_BYTES), rows.read(size)
            if len(record) < RECORD_BYTES or record[:KEY_BYTES] == BLANK_KEY:
                continue
            count += 1
            key, checksum = record[:KEY_BYTES], int.from_bytes(record[KEY_BYTES:], "little")
            if len(row) < size or row_checksum(entry.name, key, row) != checksum:
                damaged[index] = record
    return count, damaged


def _blank_records(entry: CacheEntry, damaged: Mapping[int, bytes]) -> None:
    """Overwrites the keys of damaged rows. Other rows keep their positions, on which open stores rely."""
    with FileLock(entry.path / "lock", timeout=CLEAR_WAITS), open(entry.path / "keys.bin", "rb+") as keys:
        for index, record in damaged.items():
            keys.seek(index * RECORD_BYTES)
            if keys.read(RECORD_BYTES) == record:
                keys.seek(index * RECORD_BYTES)
                keys.write(bytes(RECORD_BYTES))
