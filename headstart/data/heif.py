"""HEIC and HEIF files, read by the optional package pillow-heif."""

from __future__ import annotations

import importlib.util

BRANDS = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc")
"""What bytes 4 to 12 of such a file are."""

MISSING_PLUGIN = "HEIC needs the extra heif: pip install 'headstart[heif]'"


def is_heif(data: bytes) -> bool:
    """Whether the content of a file is HEIC or HEIF."""
    return data[4:12] in BRANDS


def register() -> None:
    """Registers the decoder with Pillow, if pillow-heif is installed."""
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
