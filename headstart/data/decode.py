"""One decoder, and one deterministic way from a picture to the pixels that a network sees.

Training, prediction, evaluation, serving and the comparison of exports all come through ``decode`` and
``resize_and_crop``; there is no other place where an image file is opened.
"""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from headstart.concurrency import ignored_warnings, usable_cpus
from headstart.data.bit_depth import DeepValues, ValueRange, deep_values
from headstart.data.tiff import tag
from headstart.errors import LargeImage, UnreadableImage, first_line
from headstart.extras import install_command, is_installed
from headstart.html import data_address

DECODER_VERSION = 3
"""Counted up whenever ``decode`` or ``resize_and_crop`` would give other pixels; part of every cache key."""

MIN_DECODED_SIDE = 256
"""Shorter side, in pixels, below which a JPEG is never reduced while it is decoded."""

RESIZED_AT_MOST = 100_000_000
"""Pixels that a picture may have after it was resized and before it is cropped: a line of 1 x 40,000 pixels, brought to
a width of 256, would take 8 GB."""

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".avif",
        ".heic",
        ".heif",
        ".jp2",
        ".ppm",
        ".pgm",
        ".pnm",
        ".tga",
    ]
)
"""Endings of files that are taken for images; the content decides what they are."""

CAMERA_RAW = frozenset([".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw", ".nrw"])
"""Endings of camera raw files, which hold what the sensor measured and no picture but a small preview."""

RAW_REMEDY = "camera raw: export it as JPEG or TIFF first"

FORMATS = (
    "JPEG",
    "MPO",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
    "AVIF",
    "HEIF",
    "JPEG2000",
    "PPM",
    "TGA",
)
"""What is opened, by Pillow's names. It knows others; one of them (EPS) runs the file as a program."""

MOST_SCANS = 200
"""Passes over a progressive JPEG's whole area (cameras and programs write about ten): each costs its reader a time that
has nothing to do with the few bytes that it takes."""

MOST_SEGMENTS = 5000
"""Likewise: each is read by a program in Python."""

_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
"""Of a JPEG's segments that have a length, and its end."""

MOST_THUMBNAILS = 100
"""Pages at the beginning of a TIFF that are looked at for one that is no thumbnail."""

NEW_SUBFILE_TYPE, THUMBNAIL_OR_MASK = 254, 1 | 4
SUBFILE_TYPE, REDUCED = 255, 2
"""Tags of a TIFF's page, the second of them an old one, and the values that tell of a thumbnail."""

START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9

_FORMAT_SUFFIXES = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"},
    "PNG": {".png", ".apng"},
    "WEBP": {".webp"},
    "GIF": {".gif"},
    "BMP": {".bmp", ".dib"},
    "DIB": {".bmp", ".dib"},
    "TIFF": {".tif", ".tiff"},
    "AVIF": {".avif"},
    "HEIF": {".heic", ".heif"},
}

CropMode = Literal["center", "squash", "border"]

Rgb = npt.NDArray[np.uint8]
"""(H, W, 3) uint8, 0-255, RGB, upright."""

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


INTERPOLATIONS = tuple(_RESAMPLING)
"""Names that ``Preprocessing.interpolation`` may have."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Preprocessing:
    """What the weights expect of a picture; deterministic, and the same wherever the model runs.

    Attributes:
        height: of the network's input, in pixels.
        width: of the network's input, in pixels.
        crop_pct: share of the resized picture's shorter side that the crop keeps, in (0, 1].
        crop_mode: "center" (resize the shorter side, crop the middle), "squash" (resize both sides, crop the middle)
            or "border" (resize the longer side, fill the rest with the mean colour).
        interpolation: of the resize, by Pillow's name.
        mean: per channel, of pixels scaled to 0-1.
        std: per channel, of pixels scaled to 0-1.
        value_range: what becomes black and white of images of more than 8 bits per channel, as shares of their file's
            full scale; None for the full scale. Images of 8 bits are taken as they are.

    Source: timm's ``pretrained_cfg`` and ``timm.data.transforms_factory.transforms_imagenet_eval``, which this
    reproduces to the pixel.
    """

    height: int
    width: int
    crop_pct: float = 0.875
    crop_mode: CropMode = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    value_range: ValueRange | None = None

    @property
    def resize_to(self) -> tuple[int, int]:
        """(height, width) in pixels that the picture is resized to before the crop."""
        return int(self.height / self.crop_pct), int(self.width / self.crop_pct)

    @property
    def decode_at_least(self) -> int:
        """Shorter side, in pixels, that decoding must keep."""
        return max(MIN_DECODED_SIDE, *self.resize_to)

    def pixel_key(self) -> dict[str, Any]:
        """What decides the pixels (mean and std do not: they are applied inside the network)."""
        decided = asdict(self)
        fill = self.fill if self.crop_mode == "border" else None
        return {k: v for k, v in decided.items() if k not in ("mean", "std")} | {
            "fill": fill,
            "decoder": DECODER_VERSION,
        }

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean colour, 0-255, that "border" fills with."""
        r, g, b = (min(255, round(255 * m)) for m in self.mean)
        return r, g, b


@dataclass(frozen=True)
class DecodedImage:
    """A decoded picture and what its file said of itself.

    Attributes:
        image: mode RGB, upright; a JPEG may be smaller than its file says (see ``decode``).
        width: of the picture as stored, upright, in pixels.
        height: of the picture as stored, upright, in pixels.
        format: Pillow's name of the file's real format, "JPEG".
        bits: bits per channel of the file; 8 where it has fewer.
        used_bits: of these, what the largest value needs; at most ``bits``, and 8 where that is 8.
    """

    image: Image.Image
    width: int
    height: int
    format: str
    bits: int = 8
    used_bits: int = 8


@ignored_warnings("PIL|pillow_heif")  # remarks on odd metadata; what matters is raised
def decode(
    source: bytes | str | Path,
    *,
    min_side: int = MIN_DECODED_SIDE,
    value_range: ValueRange | None = None,
    max_pixels: int | None = None,
    max_decoded_pixels: int | None = None,
) -> DecodedImage:
    """Opens a picture of any supported kind as upright RGB.

    EXIF orientation is applied; grey, palette, 1-bit, CMYK and 16-bit pictures become 8-bit RGB; transparency is laid
    over white, but an alpha channel that is zero everywhere is ignored; of an animation the first frame is taken, of a
    TIFF the first page that is no thumbnail. JPEGs whose shorter side is at least twice ``min_side`` are decoded at
    1/2, 1/4 or 1/8 of their size, never below it.

    Args:
        source: the file's bytes, or its path.
        min_side: shorter side that must be kept, in pixels.
        value_range: see ``Preprocessing``.
        max_pixels: largest number of pixels that is accepted; larger images are refused from their header, undecoded.
        max_decoded_pixels: pixels that may be decoded now, for whoever bounds what many threads decode together.

    Raises:
        UnreadableImage: the bytes are no usable picture; ``reason`` says why.
        LargeImage: it takes the memory of more than ``max_decoded_pixels``; nothing was decoded.
    """
    name = "<bytes>" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise UnreadableImage(name, (error.strerror or str(error)).lower()) from error
    if not data:
        raise UnreadableImage(name, "empty file (0 bytes)")
    if data.startswith(b"\xff\xd8") and _is_laborious(data):
        raise UnreadableImage(name, f"not a usual JPEG: more than {MOST_SCANS:,} scans or {MOST_SEGMENTS:,} segments")
    if _is_camera_raw(name, data):
        raise UnreadableImage(name, RAW_REMEDY)
    try:
        image = _opened(data)
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise UnreadableImage(
                name,
                f"too large: {image.width:,} x {image.height:,} pixels; the limit is {max_pixels / 1e6:g} million",
            )
        return _upright_rgb(
            image, data, min_side=min_side, value_range=value_range, max_decoded_pixels=max_decoded_pixels
        )
    except UnreadableImage as error:
        raise UnreadableImage(name, error.reason) from None
    except LargeImage:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen kinds for damaged files
        unknown_raw = isinstance(error, UnidentifiedImageError) and Path(name).suffix.lower() in CAMERA_RAW
        raise UnreadableImage(name, RAW_REMEDY if unknown_raw else _reason(data, error)) from error


def read_values(path: str) -> DeepValues | None:
    """The values of an image file of more than 8 bits per channel; None for any other image.

    Raises:
        UnreadableImage: the file is no usable picture.
    """
    data = b""
    try:
        data = Path(path).read_bytes()
        values = deep_values(_opened(data), data)
    except Exception as error:  # as in ``decode``
        raise UnreadableImage(path, _reason(data, error)) from error
    return values if values is not None and values.bits > 8 else None


def thumbnail(path: str, side: int) -> str:
    """A small JPEG of a file as a data: address; empty where the file cannot be read.

    Args:
        path: of the file.
        side: of the square that it fits into, in pixels.
    """
    try:
        image = decode(path).image
    except UnreadableImage:
        return ""
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return data_address(jpeg_bytes(image, quality=80), "jpeg")


def jpeg_bytes(image: Image.Image, *, quality: int) -> bytes:
    """A picture as a JPEG; ``quality`` as Pillow counts it, 1-95."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return data.getvalue()


def as_rgb(image: Image.Image | npt.NDArray[Any], *, value_range: ValueRange | None = None) -> Image.Image:
    """An upright RGB picture from one that is already in memory.

    Args:
        image: a Pillow image of any mode, or an array of uint8 or uint16 of shape (H, W) or (H, W, 1, 3 or 4).
        value_range: see ``Preprocessing``; for 16 bits.

    Raises:
        UnreadableImage: another type, dtype, shape or mode; or a Pillow image that is read late and is damaged.
    """
    if isinstance(image, Image.Image):
        try:
            _go_to_picture(image)
            return _upright_rgb(image, value_range=value_range).image
        except UnreadableImage:
            raise
        except Exception as error:  # as in ``decode``; also of a file that was closed
            raise UnreadableImage("<image>", f"damaged: {first_line(error)}") from error
    array = np.asarray(image)
    deep = array.dtype == np.uint16
    if array.dtype != np.uint8 and not deep:
        raise UnreadableImage("<array>", f"expected uint8 or uint16, got {array.dtype}")
    if not array.size or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise UnreadableImage("<array>", f"expected pixels of shape (H, W) or (H, W, 1, 3 or 4), got {array.shape}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if not deep:
        return _to_rgb(Image.fromarray(np.ascontiguousarray(array)))
    alpha = Image.fromarray((array[..., 3] >> 8).astype(np.uint8)) if array.ndim == 3 and array.shape[2] == 4 else None
    values = array if array.ndim == 2 else array[..., :3]
    return _to_rgb(DeepValues(values, 65535, 16, alpha).to_8_bits(value_range))


def resize_and_crop(image: Image.Image, preprocessing: Preprocessing, *, max_decoded_pixels: int | None = None) -> Rgb:
    """The pixels that the network sees.

    Resized across first and then down, whatever the version of Pillow: from 13 on it would do otherwise with tall
    pictures, which gives other pixels by a grey level or two. ``exports.resize`` does the same inside exported files.

    Args:
        image: upright RGB.
        preprocessing: what is wanted.
        max_decoded_pixels: see ``decode``.

    Returns:
        (height, width, 3) uint8, 0-255.

    Raises:
        UnreadableImage: it is hundreds of times as long as it is wide, and would grow out of all proportion.
        LargeImage: it would grow beyond ``max_decoded_pixels``.
    """
    height, width = preprocessing.height, preprocessing.width
    resample = _RESAMPLING[preprocessing.interpolation]
    new_w, new_h = _resized(image, preprocessing)
    largest = new_w * max(new_h, image.height)
    if largest > RESIZED_AT_MOST:
        raise UnreadableImage("", f"too long for its width: {image.width:,} x {image.height:,} pixels")
    if max_decoded_pixels is not None and largest > max_decoded_pixels:
        raise LargeImage(largest)
    if image.width != new_w:
        image = image.resize((new_w, image.height), resample)
    if image.height != new_h:
        image = image.resize((new_w, new_h), resample)
    left, top = round((new_w - width) / 2), round((new_h - height) / 2)
    if left < 0 or top < 0:
        canvas = Image.new("RGB", (width, height), preprocessing.fill)
        canvas.paste(image, (-left, -top))
        return np.asarray(canvas)
    return np.asarray(image.crop((left, top, left + width, top + height)))


def _resized(image: Image.Image, preprocessing: Preprocessing) -> tuple[int, int]:
    """(width, height) before the crop."""
    scale_h, scale_w = preprocessing.resize_to
    if preprocessing.crop_mode == "squash":
        return scale_w, scale_h
    if preprocessing.crop_mode == "border":
        ratio = max(image.height / scale_h, image.width / scale_w)
        return max(1, round(image.width / ratio)), max(1, round(image.height / ratio))
    if scale_h == scale_w:
        short = min(image.size)
        return int(scale_w * image.width / short), int(scale_h * image.height / short)
    ratio = min(image.height / scale_h, image.width / scale_w)
    return max(preprocessing.width, round(image.width / ratio)), max(preprocessing.height, round(image.height / ratio))


def map_images(
    work: Callable[[Item], Result], items: Iterable[Item], *, ahead: int = 64, threads: int | None = None
) -> Iterator[Result]:
    """Runs ``work`` (decoding releases the interpreter's lock) in threads and yields the results in order.

    Never more than ``ahead`` results wait to be taken, so memory does not grow with the number of items.

    Args:
        work: is given an item.
        items: for it.
        ahead: see above.
        threads: how many; as many as there are processors for this process where it is not given.
    """
    with ThreadPoolExecutor(threads or usable_cpus()) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def has_expected_suffix(path: str, image_format: str) -> bool:
    """Whether a file's ending is one that its real format goes by."""
    expected = _FORMAT_SUFFIXES.get(image_format)
    return expected is None or Path(path).suffix.lower() in expected


def _opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=_known_formats())
    _go_to_picture(image)
    return image


def _go_to_picture(image: Image.Image) -> None:
    """Moves to the first frame; in a TIFF to the first page that is no thumbnail and no mask, else to the largest."""
    if image.format != "TIFF":
        if image.tell():
            image.seek(0)
        return
    areas: list[int] = []
    for page in range(MOST_THUMBNAILS):
        try:
            image.seek(page)
        except Exception:  # no more pages, or damaged ones, for which Pillow raises a dozen kinds
            break
        if not (tag(image, NEW_SUBFILE_TYPE) or 0) & THUMBNAIL_OR_MASK and tag(image, SUBFILE_TYPE) != REDUCED:
            return
        areas.append(image.width * image.height)
    if areas:
        image.seek(areas.index(max(areas)))


def _upright_rgb(
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
    if max_decoded_pixels is not None and (pixels := _taken(image, width * height)) > max_decoded_pixels:
        raise LargeImage(pixels)
    bits, used_bits = 8, 8
    deep = deep_values(image, data, exact=value_range is not None)
    image.load()
    turn = _TURNS.get(_orientation(image))  # after loading, by which Pillow turns a TIFF itself
    if deep is not None:
        if deep.bits > 8:
            bits, used_bits = deep.bits, deep.used_bits
        image = deep.to_8_bits(value_range if deep.bits > 8 else None)
    upright = _to_rgb(image if turn is None else image.transpose(turn))
    size = (height, width) if turn in _SIDEWAYS else (width, height)
    return DecodedImage(upright, *size, kind, bits, used_bits)


def _taken(image: Image.Image, stored: int) -> int:
    """Pixels that an opened picture will take the memory of: up to 16 bytes each.

    A progressive JPEG has coefficients of 6 bytes for each of its stored pixels, however small it is decoded.
    """
    own = image.width * image.height
    return own + stored * 6 // 16 if "progressive" in image.info else own


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1-8; 1 where there is none or the tags are damaged (the picture may still be whole)."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged tag raises anything from struct.error to SyntaxError
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise UnreadableImage("", "signed, 32-bit or float pixels have no agreed white: save it with 8 or 16 bits")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        if image.getchannel("A").getextrema() == (0, 0):  # written by programs that do not know of alpha
            return image.convert("RGB")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _is_camera_raw(name: str, data: bytes) -> bool:
    """By its content, or by its name where its content is a TIFF: such a file holds a small preview."""
    if data.startswith((b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0")) or data[4:11] == b"ftypcrx":
        return True
    if not data.startswith((b"II*\0", b"MM\0*")):
        return False
    return data[8:10] == b"CR" or Path(name).suffix.lower() in CAMERA_RAW


def _reason(data: bytes, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return f"too large to open: more than {limit:.0f} megapixels"
    if isinstance(error, UnidentifiedImageError):
        if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"):
            return f"HEIC needs an extra: {install_command('heif')}"
        if data.startswith(b"\x89PNG") and not any(data[16:24]):
            return "no pixels (0 x 0)"
        if not any(data[:4096]):
            return "not an image: only zero bytes"
        if _looks_like_text(data):
            return "not an image: a text file"
        return "not an image, or its beginning is damaged"
    if isinstance(error, MemoryError):
        return "too large for this machine's memory"
    text = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return f"truncated: the file ends too early ({len(data):,} bytes)"
    return f"damaged: {text}"


def _looks_like_text(data: bytes) -> bool:
    head = data[:1024]
    return b"\0" not in head and sum(byte < 9 or 13 < byte < 32 for byte in head) == 0


def _is_laborious(data: bytes) -> bool:
    """Whether a JPEG has more scans or segments than are usual; what lies behind its end (a film, another) is none."""
    place, scans = 2, 0
    for _ in range(MOST_SEGMENTS):
        found = _MARKER.search(data, place)
        if found is None or found[0][1] == END_OF_IMAGE:
            return False
        scans += found[0][1] == START_OF_SCAN
        if scans > MOST_SCANS:
            return True
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return True


@cache
def _known_formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that can be read here; HEIC and HEIF where the plugin is installed."""
    if is_installed("heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
