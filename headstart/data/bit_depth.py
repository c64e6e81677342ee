"""Bit depth: reading images of 9 to 16 bits per channel, and scaling their values to 8 bits."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.PpmImagePlugin import PpmImageFile

from .tiff import tag

LEVELS = 65536
"""Levels of a histogram over the full scale of a file, for every bit depth."""

ValueRange = tuple[float, float]
"""(black, white) as shares of a file's full scale, 0 <= black < white <= 1."""

_WHITE_IS_ZERO, _PHOTOMETRIC, _BITS_PER_SAMPLE = 0, 262, 258
"""TIFF: the value "white is zero" of the tag PhotometricInterpretation, and the tags' numbers."""

_SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


@dataclass(frozen=True)
class DeepValues:
    """Unscaled pixel values of an image file.

    Attributes:
        values: (H, W) or (H, W, 3) uint16, 0 to ``white``; or uint8, if only the upper 8 of 16 bits were read.
        white: value of white, such as 4095 for 12 bits per channel.
        bits: bits per channel of the file.
        alpha: (H, W) uint8 opacity, 0-255; None if the file has no alpha channel.
    """

    values: npt.NDArray[np.uint16] | npt.NDArray[np.uint8]
    white: int
    bits: int
    alpha: Image.Image | None = None

    @property
    def used_bits(self) -> int:
        """Bits per channel that the largest value needs."""
        used = int(self.values.max()).bit_length()
        return used and used + self.bits - self.white.bit_length()

    def to_8_bits(self, value_range: ValueRange | None = None) -> Image.Image:
        """Scales the values to an 8-bit image of mode L, RGB or RGBA.

        Args:
            value_range: (black, white), which become 0 and 255; None for the file's full scale.
        """
        scale = np.arange(self.white + 1)
        if value_range is not None:
            low, high = value_range
            table = np.rint(255 * ((scale / self.white - low) / (high - low)).clip(0, 1))
        elif self.white == LEVELS - 1:
            table = np.asarray(scale >> 8)  # as libpng and Pillow reduce 16 bits to 8
        else:
            table = np.rint(255 * scale / self.white)
        image = Image.fromarray(table.astype(np.uint8)[self.values])
        if self.alpha is not None:
            image = image.convert("RGB")
            image.putalpha(self.alpha)
        return image

    def histogram(self) -> npt.NDArray[np.float64]:
        """(LEVELS,) float64 share of the values at each level of the full scale; sums to 1."""
        counts = np.bincount(self.values.ravel(), minlength=self.white + 1)
        places = np.rint(np.arange(self.white + 1) * ((LEVELS - 1) / self.white)).astype(np.int64)
        return np.bincount(places, weights=counts / counts.sum(), minlength=LEVELS).astype(np.float64)


def range_of(histogram: npt.NDArray[np.float64], shares: tuple[float, float]) -> ValueRange:
    """The values at two quantiles of a histogram.

    Args:
        histogram: (LEVELS,) share of the values at each level; sums to 1.
        shares: quantiles of black and white, each in [0, 1].

    Returns:
        (black, white) as shares of the full scale, at least one level apart.
    """
    reached = np.cumsum(histogram)
    last = LEVELS - 1
    low, high = (min(int(np.searchsorted(reached, share - 1e-9)), last) for share in shares)
    high = max(high, min(low + 1, last))
    return min(low, high - 1) / last, high / last


def deep_values(image: Image.Image, data: bytes = b"", *, exact: bool = True) -> DeepValues | None:
    """The unscaled values of an opened image; None if it has up to 8 bits per channel, or values that are not integers.

    Pillow keeps 16 bits of grey images only; of colour images it keeps the upper 8. The lower 8 are read by decoding
    a second time with the byte order swapped.

    Args:
        image: opened on the right page, not loaded yet.
        data: content of the file; needed for colour images, PGM and PPM.
        exact: False if the upper 8 bits of colour images suffice.
    """
    if isinstance(image, PpmImageFile) and image.tile and image.tile[0].codec_name == "ppm" and data:
        return _read_pnm(image, data)
    if image.mode.startswith("I;16"):
        white = (1 << _bits_per_sample(image)) - 1
        values = np.minimum(np.asarray(image).astype(np.uint16), white)
        inverted = tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO
        return DeepValues(np.asarray(white - values if inverted else values, np.uint16), white, white.bit_length())
    if image.mode == "I" and image.format == "PPM":
        return DeepValues(np.asarray(image).astype(np.uint16), LEVELS - 1, 16)
    if not isinstance(image, ImageFile.ImageFile) or not data or not (raw := _raw_mode(image)):
        return None
    image.load()
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    upper = np.asarray(image)[..., :3]
    if not exact:
        return DeepValues(upper, 255, 16, alpha)
    values = upper.astype(np.uint16)
    values <<= 8
    values |= _lower_bytes(image, data, raw)[..., :3]
    return DeepValues(values, LEVELS - 1, 16, alpha)


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """Pillow's raw mode of 16-bit colour images, which names the byte order; "" for any other image."""
    if image.mode not in ("RGB", "RGBA") or not image.tile:
        return ""
    args = image.tile[0].args
    raw = args if isinstance(args, str) else str(args[0]) if args else ""
    return raw if raw[:-1] in ("RGB;16", "RGBX;16", "RGBA;16") else ""


def _lower_bytes(image: ImageFile.ImageFile, data: bytes, raw: str) -> npt.NDArray[np.uint8]:
    other = Image.open(io.BytesIO(data), formats=[image.format or ""])
    other.seek(image.tell())
    assert isinstance(other, ImageFile.ImageFile)
    swapped = raw[:-1] + _SWAPPED[raw[-1]]
    other.tile = [
        tile._replace(args=swapped if isinstance(tile.args, str) else (swapped, *(tile.args or ())[1:]))
        for tile in other.tile
    ]
    return np.asarray(other)


def _read_pnm(image: PpmImageFile, data: bytes) -> DeepValues | None:
    """Reads a binary PGM or PPM whose maximum is not 255 or 65535; Pillow would scale it pixel by pixel in Python.

    Raises:
        EOFError: the file is too short.
    """
    _, _, offset, args = image.tile[0]
    assert isinstance(args, tuple)
    white, channels = int(args[1]), len(image.getbands())
    kind = np.dtype(np.uint8 if white < 256 else ">u2")
    count = image.width * image.height * channels
    if len(data) - offset < count * kind.itemsize:
        raise EOFError
    values = np.frombuffer(data, kind, count, offset).astype(np.uint16)
    shape = (image.height, image.width) if channels == 1 else (image.height, image.width, channels)
    return DeepValues(np.minimum(values, white).reshape(shape), white, white.bit_length())


def _bits_per_sample(image: Image.Image) -> int:
    bits = tag(image, _BITS_PER_SAMPLE)
    return bits if bits is not None and 8 < bits < 16 else 16
