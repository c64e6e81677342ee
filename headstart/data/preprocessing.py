"""Preprocessing: the deterministic resize and crop from a decoded image to the network's input.

Training, prediction, serving and exported files use the same definition (``exports.resize`` repeats it in tensors).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import LargeImage, OptionError, UnreadableImage
from .bit_depth import ValueRange

DECODER_VERSION = 4
"""Incremented whenever ``decode`` or ``resize_and_crop`` gives other pixels; part of every cache key."""

MIN_DECODED_SIDE = 256
"""Shorter side in pixels that a reduced JPEG keeps, unless the network's input needs more."""

MAX_RESIZED_PIXELS = 100_000_000
"""Limit for the resized image, before the crop. A line of 1 x 40,000 pixels resized to a width of 256 would take
8 GB."""

CropMode = Literal["center", "squash", "border"]

Fit = Literal["auto", "crop", "pad", "squash"]
"""How an image is fitted into the network's input: "auto" as the weights were trained, "crop" to its center, "pad" the
whole image with bars in the mean colour, "squash" the whole image without keeping its aspect ratio."""

_CROP_MODES: dict[Fit, CropMode] = {"crop": "center", "pad": "border", "squash": "squash"}

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
        crop_pct: side of the crop relative to the resized image, in (0, 1]; 1 where the whole image is to be seen.
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

    def with_fit(self, fit: Fit) -> Preprocessing:
        """The same input with another way to fit an image in. "pad" and "squash" cut nothing off.

        Raises:
            OptionError: no such fit.
        """
        if fit == "auto":
            return self
        if fit not in _CROP_MODES:
            raise OptionError(f"fit {fit!r}: expected one of {', '.join(get_args(Fit))}.")
        crop_pct = self.crop_pct if fit == "crop" else 1.0
        return replace(self, crop_mode=_CROP_MODES[fit], crop_pct=crop_pct)

    @property
    def sentence(self) -> str:
        """One sentence for the user: how an image is fitted into the input."""
        size, resized = (f"{h} x {w} pixels" for h, w in ((self.height, self.width), self.resize_to))
        if self.crop_mode == "center":
            return f"Images are resized to cover {resized} and cropped to the central {size}."
        images, crop = ("Whole images", "") if size == resized else ("Images", f", cropped to the central {size}")
        if self.crop_mode == "squash":
            return f"{images} are resized to {resized} without keeping their aspect ratio{crop}."
        return f"{images} are resized to fit into {resized}{crop} and padded with the mean colour."


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
    new_w, new_h = resized_size(image.size, preprocessing, max_decoded_pixels=max_decoded_pixels)
    resample = _RESAMPLING[preprocessing.interpolation]
    if image.width != new_w:
        image = image.resize((new_w, image.height), resample)
    if image.height != new_h:
        image = image.resize((new_w, new_h), resample)
    return crop_or_pad(image, preprocessing)


def resized_size(
    size: tuple[int, int], preprocessing: Preprocessing, *, max_decoded_pixels: int | None = None
) -> tuple[int, int]:
    """(width, height) in pixels of the resized image, before the crop.

    Args:
        size: (width, height) of the image in pixels.
        preprocessing: size and crop.
        max_decoded_pixels: see ``resize_and_crop``.

    Raises:
        UnreadableImage, LargeImage: see ``resize_and_crop``.
    """
    new_w, new_h = _resized(size, preprocessing)
    largest = new_w * max(new_h, size[1])
    if largest > MAX_RESIZED_PIXELS:
        raise UnreadableImage("", f"aspect ratio too extreme: {size[0]:,} x {size[1]:,} pixels")
    if max_decoded_pixels is not None and largest > max_decoded_pixels:
        raise LargeImage(largest)
    return new_w, new_h


def crop_or_pad(image: Image.Image, preprocessing: Preprocessing) -> Rgb:
    """The center of a resized image; padded with ``fill`` where it is smaller than the input.

    Args:
        image: resized RGB of any size.
        preprocessing: size of the input, and colour of the padding.

    Returns:
        (height, width, 3) uint8, 0-255.
    """
    height, width = preprocessing.height, preprocessing.width
    left, top = _offset(image.width, width), _offset(image.height, height)
    if image.width < width or image.height < height:
        canvas = Image.new("RGB", (width, height), preprocessing.fill)
        canvas.paste(image, (-left, -top))
        return np.asarray(canvas)
    return np.asarray(image.crop((left, top, left + width, top + height)))


def shown_size(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """The part of the input that shows the image, without the padding of crop mode "border".

    Args:
        size: (width, height) of the image in pixels.
        preprocessing: size of the input and crop mode.

    Returns:
        (width, height) in pixels.
    """
    if preprocessing.crop_mode == "border":
        return _resized(size, replace(preprocessing, crop_pct=1.0))
    return preprocessing.width, preprocessing.height


def _offset(length: int, count: int) -> int:
    """Start of the ``count`` central pixels of ``length``; negative where they are padded. Rounded as timm rounds."""
    return -((count - length) // 2) if length < count else round((length - count) / 2)


def _resized(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """(width, height) of the resized image, before the crop; rounded as timm rounds."""
    (width, height), (scale_h, scale_w) = size, preprocessing.resize_to
    if preprocessing.crop_mode == "squash":
        return scale_w, scale_h
    if preprocessing.crop_mode == "border":
        ratio = max(height / scale_h, width / scale_w)
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    if scale_h == scale_w:
        short = min(size)
        return int(scale_w * width / short), int(scale_h * height / short)
    ratio = min(height / scale_h, width / scale_w)
    return max(preprocessing.width, round(width / ratio)), max(preprocessing.height, round(height / ratio))
