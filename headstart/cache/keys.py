"""Cache keys: content hashes of files, and hashes of JSON descriptions."""

from __future__ import annotations

import hashlib
import json
from typing import Any

KEY_BYTES = 16


def content_key(data: bytes) -> bytes:
    """The 16-byte content hash (BLAKE2b) of a file's bytes, under which everything computed from it is cached."""
    return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()


def describe_key(about: dict[str, Any]) -> str:
    """A 24-digit hexadecimal hash of a JSON-able description, equal on every machine and in every process."""
    text = json.dumps(about, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
