"""RGB: the content of an image file of any format, or an image in memory, as upright 8-bit RGB."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from ..concurrency import ignored_warnings
from ..errors import LargeImage, UnreadableImage, first_line
from . import heif, jpeg
from .bit_depth import DeepValues, ValueRange, deep_values
from .image_formats import CAMERA_RAW, RAW_REMEDY, is_camera_raw, readable_formats
from .tiff import seek_main_page

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the operation that makes the image upright."""

_SWAPS_SIDES = {_TRANSPOSE[orientation] for orientation in (5, 6, 7, 8)}


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image, and what its file says about it.

    Attributes:
        image: mode RGB, upright; a JPEG may be reduced (see ``decode``).
        width: of the full image, upright, in pixels.
        height: of the full image, upright, in pixels.
        format: Pillow's name of the format, by content: "JPEG".
        bits: bits per channel of the file; 8 if it has fewer.
        used_bits: bits per channel that the largest value needs; at most ``bits``, and 8 if ``bits`` is 8.
    """

    image: Image.Image
    width: int
    height: int
    format: str
    bits: int = 8
    used_bits: int = 8


@ignored_warnings("PIL|pillow_heif")  # about odd metadata; faults that matter are raised
def decode_content(
    name: str,
    data: bytes,
    *,
    min_side: int,
    value_range: ValueRange | None = None,
    max_pixels: int | None = None,
    max_decoded_pixels: int | None = None,
) -> DecodedImage:
    """Decodes the content of an image file, see ``decode.decode``.

    Args:
        name: path of the file, for messages and for camera raw files.
        data: content of the file.
        min_side: shorter side in pixels that must be kept.
        value_range: see ``Preprocessing``.
        max_pixels: larger images are refused from their header, before decoding; None for no limit.
        max_decoded_pixels: memory budget in pixels, for callers that bound the decoding of many threads.

    Raises:
        UnreadableImage: not a usable image; ``reason`` says why.
        LargeImage: decoding would exceed ``max_decoded_pixels``; nothing was decoded.
    """
    try:
        _refuse(name, data)
        image = _open(data)
        if max_pixels is not None and image.width * image.height > max_pixels:
            size = f"{image.width:,} x {image.height:,} pixels"
            raise UnreadableImage(name, f"too large: {size}; the limit is {max_pixels / 1e6:g} million")
        return _to_upright_rgb(
            image, data, min_side=min_side, value_range=value_range, max_decoded_pixels=max_decoded_pixels
        )
    except UnreadableImage as error:
        raise UnreadableImage(name, error.reason) from None
    except LargeImage:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen types for damaged files
        is_raw = isinstance(error, UnidentifiedImageError) and Path(name).suffix.lower() in CAMERA_RAW
        raise UnreadableImage(name, RAW_REMEDY if is_raw else _reason(data, error)) from error


def content_values(name: str, data: bytes) -> DeepValues | None:
    """The unscaled values of the content of a file, see ``decode.read_values``.

    Raises:
        UnreadableImage: not a usable image.
    """
    try:
        values = deep_values(_open(data), data)
    except Exception as error:  # as in ``decode_content``
        raise UnreadableImage(name, _reason(data, error)) from error
    return values if values is not None and values.bits > 8 else None


def as_rgb(image: Image.Image | npt.NDArray[Any], *, value_range: ValueRange | None = None) -> Image.Image:
    """Upright RGB from an image in memory.

    Args:
        image: a Pillow image of any mode, or an array of uint8 or uint16 of shape (H, W) or (H, W, 1, 3 or 4).
        value_range: see ``Preprocessing``; applies to 16 bits.

    Raises:
        UnreadableImage: another type, dtype, shape or mode; or a Pillow image that is loaded lazily and is damaged.
    """
    if not isinstance(image, Image.Image):
        return _array_to_rgb(np.asarray(image), value_range)
    try:
        _seek_image(image)
        return _to_upright_rgb(image, _unread_content(image), value_range=value_range).image
    except UnreadableImage:
        raise
    except Exception as error:  # as in ``decode_content``; also of a closed file
        raise UnreadableImage("<image>", f"damaged: {first_line(error)}") from error


def _unread_content(image: Image.Image) -> bytes:
    """Content of the file that an opened image has not read its pixels from yet; b"" for any other image.

    Pillow alone would reduce 16 bits per channel to 8, and scale PGM and PPM files by another rule.
    """
    file = getattr(image, "fp", None)
    if not isinstance(image, ImageFile.ImageFile) or not image.tile or file is None:
        return b""
    place = file.tell()
    file.seek(0)
    data: bytes = file.read()
    file.seek(place)
    return data


def _refuse(name: str, data: bytes) -> None:
    """Raises ``UnreadableImage`` for files that Pillow should not open."""
    if not data:
        raise UnreadableImage(name, "empty file (0 bytes)")
    if data.startswith(b"\xff\xd8") and jpeg.exceeds_limits(data):
        limits = f"more than {jpeg.MAX_SCANS:,} scans or {jpeg.MAX_SEGMENTS:,} segments"
        raise UnreadableImage(name, f"unusual JPEG: {limits}")
    if is_camera_raw(name, data):
        raise UnreadableImage(name, RAW_REMEDY)


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=readable_formats())
    _seek_image(image)
    return image


def _seek_image(image: Image.Image) -> None:
    """Moves to the first frame, or to the main page of a TIFF."""
    if image.format == "TIFF":
        seek_main_page(image)
    elif image.tell():
        image.seek(0)


def _to_upright_rgb(
    image: Image.Image,
    data: bytes = b"",
    *,
    min_side: int | None = None,
    value_range: ValueRange | None = None,
    max_decoded_pixels: int | None = None,
) -> DecodedImage:
    width, height = image.size
    if not width or not height:
        raise UnreadableImage("", f"no pixels ({width} x {height})")
    kind = image.format or ""
    if min_side is not None:
        image.draft(None, (min_side, min_side))
    if max_decoded_pixels is not None and (pixels := _memory_in_pixels(image, width * height)) > max_decoded_pixels:
        raise LargeImage(pixels)
    bits, used_bits = 8, 8
    deep = deep_values(image, data, exact=value_range is not None)
    image.load()
    transpose = _TRANSPOSE.get(_orientation(image))  # after loading: Pillow itself turns a TIFF then
    if deep is not None:
        if deep.bits > 8:
            bits, used_bits = deep.bits, deep.used_bits
        image = deep.to_8_bits(value_range if deep.bits > 8 else None)
    upright = _to_rgb(image if transpose is None else image.transpose(transpose))
    size = (height, width) if transpose in _SWAPS_SIDES else (width, height)
    return DecodedImage(upright, *size, kind, bits, used_bits)


def _memory_in_pixels(image: Image.Image, stored: int) -> int:
    """Memory that decoding takes, in pixels of up to 16 bytes.

    A progressive JPEG holds coefficients of 6 bytes for each stored pixel, however far it is reduced.
    """
    pixels = image.width * image.height
    return pixels + stored * 6 // 16 if "progressive" in image.info else pixels


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1-8; 1 if it is missing or the tags are damaged (the image itself may be fine)."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged tag raises anything from struct.error to SyntaxError
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise UnreadableImage(
            "", "signed, 32-bit or float pixels have no defined range: save the image with 8 or 16 bits per channel"
        )
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        if image.getchannel("A").getextrema() == (0, 0):  # written by programs that ignore alpha
            return image.convert("RGB")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _array_to_rgb(array: npt.NDArray[Any], value_range: ValueRange | None) -> Image.Image:
    if array.dtype not in (np.uint8, np.uint16):
        raise UnreadableImage("<array>", f"expected uint8 or uint16, got {array.dtype}")
    if not array.size or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise UnreadableImage("<array>", f"expected pixels of shape (H, W) or (H, W, 1, 3 or 4), got {array.shape}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype == np.uint8:
        return _to_rgb(Image.fromarray(np.ascontiguousarray(array)))
    has_alpha = array.ndim == 3 and array.shape[2] == 4
    alpha = Image.fromarray((array[..., 3] >> 8).astype(np.uint8)) if has_alpha else None
    values = array if array.ndim == 2 else array[..., :3]
    return _to_rgb(DeepValues(values, 65535, 16, alpha).to_8_bits(value_range))


def _reason(data: bytes, error: Exception) -> str:
    """Why a file cannot be decoded, in a few words."""
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return f"too large to open: more than {limit:.0f} megapixels"
    if isinstance(error, UnidentifiedImageError):
        return _reason_unidentified(data)
    if isinstance(error, MemoryError):
        return "too large for this machine's memory"
    text = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return f"truncated: the file ends too early ({len(data):,} bytes)"
    return f"damaged: {text}"


def _reason_unidentified(data: bytes) -> str:
    if heif.is_heif(data):
        return heif.missing_reason()
    if data.startswith(b"\x89PNG") and not any(data[16:24]):
        return "no pixels (0 x 0)"
    if not any(data[:4096]):
        return "not an image: only zero bytes"
    if _looks_like_text(data):
        return "not an image: a text file"
    return "not an image, or its beginning is damaged"


def _looks_like_text(data: bytes) -> bool:
    head = data[:1024]
    return b"\0" not in head and sum(byte < 9 or 13 < byte < 32 for byte in head) == 0
