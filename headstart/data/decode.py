"""Decoding image files, by their addresses or content, to upright 8-bit RGB."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from headstart.data.bit_depth import DeepValues, ValueRange
from headstart.data.preprocessing import MIN_DECODED_SIDE
from headstart.data.rgb import DecodedImage, content_values, decode_content
from headstart.data.sources.read import read_image
from headstart.errors import SourceError, UnreadableImage
from headstart.html import data_address


def decode(
    source: bytes | str | Path,
    *,
    min_side: int = MIN_DECODED_SIDE,
    value_range: ValueRange | None = None,
    max_pixels: int | None = None,
    max_decoded_pixels: int | None = None,
) -> DecodedImage:
    """Decodes an image file of any supported format to upright RGB.

    Applies the EXIF orientation. Grey, palette, 1-bit, CMYK and 16-bit images become 8-bit RGB. Transparent images are
    composited over white; an alpha channel that is zero everywhere is ignored. Animations give their first frame,
    TIFFs their first page that is not a thumbnail. A JPEG whose shorter side is at least twice ``min_side`` is decoded
    at 1/2, 1/4 or 1/8 of its size, never below ``min_side``.

    Args:
        source: content of a file, or its address.
        min_side: shorter side in pixels that must be kept.
        value_range: see ``Preprocessing``.
        max_pixels: larger images are refused from their header, before decoding; None for no limit.
        max_decoded_pixels: memory budget in pixels, for callers that bound the decoding of many threads.

    Raises:
        UnreadableImage: not a usable image; ``reason`` says why.
        LargeImage: decoding would exceed ``max_decoded_pixels``; nothing was decoded.
        SourceError: its storage cannot be reached.
    """
    name, data = _content(source)
    return decode_content(
        name,
        data,
        min_side=min_side,
        value_range=value_range,
        max_pixels=max_pixels,
        max_decoded_pixels=max_decoded_pixels,
    )


def read_values(source: bytes | str | Path) -> DeepValues | None:
    """The unscaled values of an image with more than 8 bits per channel; None for any other image.

    Args:
        source: content of a file, or its path.

    Raises:
        UnreadableImage: not a usable image.
    """
    return content_values(*_content(source))


def thumbnail(path: str, side: int) -> str:
    """A small JPEG of an image file as a data: URL; "" if the file cannot be read.

    Args:
        path: its address.
        side: of the square in pixels that the thumbnail fits into.
    """
    try:
        image = decode(path).image
    except (UnreadableImage, SourceError):
        return ""
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return data_address(jpeg_bytes(image, quality=80), "jpeg")


def jpeg_bytes(image: Image.Image, *, quality: int) -> bytes:
    """An image as a JPEG file; ``quality`` 1-95, as in Pillow."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return data.getvalue()


def _content(source: bytes | str | Path) -> tuple[str, bytes]:
    """Name and content of an image."""
    return ("<bytes>", source) if isinstance(source, bytes) else (str(source), read_image(str(source)))
