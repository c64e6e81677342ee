"""Data fingerprint: one hash of a labelled set of images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def data_fingerprint(keys: Iterable[bytes], labels: Iterable[str]) -> str:
    """SHA-256, in hex, of images and their labels; it depends on neither their order nor their file names.

    Args:
        keys: N content hashes.
        labels: N labels.
    """
    lines = sorted(f"{key.hex()} {label}" for key, label in zip(keys, labels, strict=True))
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
