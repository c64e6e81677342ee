"""Image file formats: the registry of formats that are decoded, file name suffixes, and camera raw files."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import Image

from . import heif

FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "DIB": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
    "JPEG2000": (".jp2",),
    "PPM": (".ppm", ".pgm", ".pnm"),
    "TGA": (".tga",),
}
"""Registry: Pillow's name of each format that is decoded -> the suffixes of its files. A new format is a line here.
Pillow knows more formats; it runs EPS files as programs."""

PLUGINS = (heif.register,)
"""Functions that register decoders with Pillow that it does not include."""

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""Suffixes of the files in a folder that count as images. The format follows from the content, not from the suffix."""

CAMERA_RAW = frozenset([".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw", ".nrw"])
"""Suffixes of camera raw files: sensor data, with a small preview as the only image in it."""

RAW_REMEDY = "camera raw: export it as JPEG or TIFF first"


def has_expected_suffix(path: str, image_format: str) -> bool:
    """Whether the suffix of a file's name belongs to the format of its content."""
    expected = FORMATS.get(image_format)
    return expected is None or Path(path).suffix.lower() in expected


def is_camera_raw(name: str, data: bytes) -> bool:
    """Whether a file is camera raw: by content, or by suffix if the content is a TIFF (which holds a preview)."""
    if data.startswith((b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0")) or data[4:11] == b"ftypcrx":
        return True
    if not data.startswith((b"II*\0", b"MM\0*")):
        return False
    return data[8:10] == b"CR" or Path(name).suffix.lower() in CAMERA_RAW


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats of ``FORMATS`` that the installed libraries can decode."""
    for register in PLUGINS:
        register()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
