"""HEIC and HEIF files, read by the optional package pillow-heif."""

from __future__ import annotations

from ..extras import install_command, is_installed

BRANDS = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc")
"""What bytes 4 to 12 of such a file are."""

EXTRA = "heif"
"""The extra that installs pillow-heif."""


def is_heif(data: bytes) -> bool:
    """Whether the content of a file is HEIC or HEIF."""
    return data[4:12] in BRANDS


def missing_reason() -> str:
    """Why such a file cannot be read without the extra."""
    return f"Reading HEIC requires an extra: {install_command(EXTRA)}"


def register() -> None:
    """Registers the decoder with Pillow, if pillow-heif is installed."""
    if is_installed(EXTRA):
        import pillow_heif

        pillow_heif.register_heif_opener()
