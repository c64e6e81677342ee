"""File format of a row store: file names, record layout, checksums, and the description in about.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash

from headstart.cache.keys import KEY_BYTES

STORE_VERSION = 2
"""Incremented whenever the file format changes. Older stores are no longer found, and may be removed."""

RECORD_BYTES = KEY_BYTES + 8
"""Size of a record of keys.bin: the key of a row and its checksum."""

BLANK_KEY = bytes(KEY_BYTES)
"""Replaces the key of a row that was found to be damaged."""

STORE_FILES = ("about.json", "rows.bin", "keys.bin", "used", "lock")

ABOUT_BYTES = 1 << 20
"""Upper bound of the size of a description."""

_YEAR_9999 = 253_370_764_800.0


def row_checksum(folder: str, key: bytes, row: bytes | memoryview) -> int:
    """XXH3 (64 bits) of a row, seeded by its key and the name of its folder.

    Source: Yann Collet, xxHash (2012-2021). 20 GB/s on one core, where BLAKE2b reaches 0.3 and CRC-32 1.1.
    """
    seed = xxhash.xxh3_64_intdigest(folder.encode() + key)
    return xxhash.xxh3_64_intdigest(row, seed)


def read_about(folder: Path) -> dict[str, Any]:
    """The content of about.json; empty if it cannot be read."""
    path = folder / "about.json"
    try:
        if not path.is_file():
            return {}
        with open(path, "rb") as file:
            return parse_json_object(file.read(ABOUT_BYTES))
    except OSError:
        return {}


def parse_json_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object; empty if the text is not one."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def last_used(path: Path) -> float:
    """Time of last use of a store or a document, in seconds since 1970; 0 if the file system's time is out of range.

    For stores written before the file "used" existed: when rows were last appended.
    """
    stamp = path
    if path.is_dir():
        stamp = next((path / name for name in ("used", "keys.bin", "about.json") if (path / name).exists()), path)
    seconds = stamp.stat().st_mtime
    return seconds if 0 <= seconds < _YEAR_9999 else 0.0


def read_token(folder: Path) -> bytes | None:
    """The random content of the file "used", which identifies a folder; None if it cannot be read."""
    try:
        with open(folder / "used", "rb") as file:
            return file.read(64)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
        return None


def file_size(path: Path) -> int:
    """Bytes of a file; 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0
