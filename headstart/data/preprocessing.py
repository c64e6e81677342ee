"""Preprocessing: the deterministic resize and crop from a decoded image to the network's input.

Training, prediction, serving and exported files use the same definition (``exports.resize`` repeats it in tensors).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from headstart.data.bit_depth import ValueRange
from headstart.errors import LargeImage, UnreadableImage

DECODER_VERSION = 3
"""Incremented whenever ``decode`` or ``resize_and_crop`` gives other pixels; part of every cache key."""

MIN_DECODED_SIDE = 256
"""Shorter side in pixels that a reduced JPEG keeps, unless the network's input needs more."""

MAX_RESIZED_PIXELS = 100_000_000
"""Limit for the resized image, before the crop. A line of 1 x 40,000 pixels resized to a width of 256 would take
8 GB."""

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
"""Values of ``Preprocessing.interpolation``."""


@dataclass(frozen=True)
class Preprocessing:
    """The input that pretrained weights expect: size, crop, interpolation and normalisation.

    Attributes:
        height: input height of the network in pixels.
        width: input width of the network in pixels.
        crop_pct: side of the crop relative to the resized image, in (0, 1].
        crop_mode: "center" (resize the shorter side, crop the center), "squash" (resize both sides, crop the center)
            or "border" (resize the longer side, pad with the mean colour).
        interpolation: resampling filter, one of ``INTERPOLATIONS``.
        mean: per channel, for pixels in 0-1; applied inside the network.
        std: per channel, for pixels in 0-1; applied inside the network.
        value_range: (black, white) of images with more than 8 bits per channel, as shares of the file's full scale;
            None for the full scale. Images of 8 bits are not scaled.

    Source: timm's ``pretrained_cfg`` and ``transforms_imagenet_eval``, reproduced to the pixel.
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
        """(height, width) in pixels of the resized image, before the crop."""
        return int(self.height / self.crop_pct), int(self.width / self.crop_pct)

    @property
    def decode_at_least(self) -> int:
        """Shorter side in pixels that decoding must keep."""
        return max(MIN_DECODED_SIDE, *self.resize_to)

    def pixel_key(self) -> dict[str, Any]:
        """Everything that determines the pixels, for cache keys; without mean and std, which the network applies."""
        fields = {name: value for name, value in asdict(self).items() if name not in ("mean", "std")}
        fill = self.fill if self.crop_mode == "border" else None
        return fields | {"fill": fill, "decoder": DECODER_VERSION}

    @property
    def fill(self) -> tuple[int, int, int]:
        """The padding colour of crop mode "border": the mean, 0-255."""
        r, g, b = (min(255, round(255 * m)) for m in self.mean)
        return r, g, b


def resize_and_crop(image: Image.Image, preprocessing: Preprocessing, *, max_decoded_pixels: int | None = None) -> Rgb:
    """The pixels that the network sees.

    Columns are resized before rows. Pillow 13 reverses the order for tall images, which changes pixels by one or two
    grey levels, so both passes are separate calls here.

    Args:
        image: upright RGB.
        preprocessing: size, crop and interpolation.
        max_decoded_pixels: pixels that the resized image may have; None for no limit besides ``MAX_RESIZED_PIXELS``.

    Returns:
        (height, width, 3) uint8, 0-255.

    Raises:
        UnreadableImage: the aspect ratio is so extreme that the resized image exceeds ``MAX_RESIZED_PIXELS``.
        LargeImage: the resized image exceeds ``max_decoded_pixels``.
    """
    new_w, new_h = _resized(image, preprocessing)
    largest = new_w * max(new_h, image.height)
    if largest > MAX_RESIZED_PIXELS:
        raise UnreadableImage("", f"aspect ratio too extreme: {image.width:,} x {image.height:,} pixels")
    if max_decoded_pixels is not None and largest > max_decoded_pixels:
        raise LargeImage(largest)
    resample = _RESAMPLING[preprocessing.interpolation]
    if image.width != new_w:
        image = image.resize((new_w, image.height), resample)
    if image.height != new_h:
        image = image.resize((new_w, new_h), resample)
    return _crop(image, preprocessing)


def _crop(image: Image.Image, preprocessing: Preprocessing) -> Rgb:
    """The center of the resized image; padded if it is smaller than the input."""
    height, width = preprocessing.height, preprocessing.width
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    if left < 0 or top < 0:
        canvas = Image.new("RGB", (width, height), preprocessing.fill)
        canvas.paste(image, (-left, -top))
        return np.asarray(canvas)
    return np.asarray(image.crop((left, top, left + width, top + height)))


def _resized(image: Image.Image, preprocessing: Preprocessing) -> tuple[int, int]:
    """(width, height) of the resized image, before the crop; rounded as timm rounds."""
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
