"""Safetensors files that contain a digest of themselves, so that damage is detected when they are read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def seal_document(data: bytes) -> str:
    """The digest of a safetensors file, independent of the key order in its header.

    Args:
        data: the whole file, with or without its digest.

    Returns:
        32 hexadecimal digits, to be stored in the file's metadata under "digest".
    """
    header, body = _safetensors(data)
    header.get("__metadata__", {}).pop("digest", None)
    text = json.dumps(header, sort_keys=True).encode()
    return hashlib.blake2b(len(text).to_bytes(8, "little") + text + body, digest_size=16).hexdigest()


def read_document(path: Path) -> dict[str, str]:
    """Reads the metadata of a self-verifying safetensors file, which contains a digest of its content.

    Returns:
        An empty dictionary if the file does not exist or is damaged.
    """
    try:
        if not path.is_file():
            return {}
        data = path.read_bytes()
        metadata = _safetensors(data)[0]["__metadata__"]
        return {str(k): str(v) for k, v in metadata.items()} if metadata["digest"] == seal_document(data) else {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, bytes of the tensors)."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    if not isinstance(header, dict):
        raise ValueError("no header")
    return header, data[end:]
