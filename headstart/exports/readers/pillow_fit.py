"""Headstart's resize and crop with Pillow, for readers of formats with a fixed input size.

Runs outside Headstart: imports nothing of it. The same as ``data.preprocessing.resize_and_crop``, from the metadata.
"""

from __future__ import annotations

from typing import Any

import numpy
from PIL import Image


def fitted(pixels: numpy.ndarray, preprocessing: dict[str, Any]) -> numpy.ndarray:
    """(H, W, 3) uint8 of any size -> (height, width, 3) uint8, resized, and cropped or padded.

    Args:
        pixels: RGB, upright, 0-255.
        preprocessing: of the file's metadata.
    """
    image = Image.fromarray(pixels)
    height, width = preprocessing["height"], preprocessing["width"]
    new_w, new_h = _resized(image.size, preprocessing)
    resample = Image.Resampling[preprocessing["interpolation"].upper()]
    if image.width != new_w:  # columns first, in a separate call: Pillow would choose the order by the image
        image = image.resize((new_w, image.height), resample)
    if image.height != new_h:
        image = image.resize((new_w, new_h), resample)
    left, top = _offset(new_w, width), _offset(new_h, height)
    fill = tuple(min(255, round(255 * m)) for m in preprocessing["mean"])
    canvas = Image.new("RGB", (width, height), fill)
    canvas.paste(image, (-left, -top))
    return numpy.asarray(canvas)


def _resized(size: tuple[int, int], preprocessing: dict[str, Any]) -> tuple[int, int]:
    """(width, height) of the resized image, before the crop."""
    width, height = size
    scale_h, scale_w = (int(preprocessing[side] / preprocessing["crop_pct"]) for side in ("height", "width"))
    if preprocessing["crop_mode"] == "squash":
        return scale_w, scale_h
    if preprocessing["crop_mode"] == "border":
        ratio = max(height / scale_h, width / scale_w)
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    if scale_h == scale_w:
        short = min(width, height)
        return int(scale_w * width / short), int(scale_h * height / short)
    ratio = min(height / scale_h, width / scale_w)
    return max(preprocessing["width"], round(width / ratio)), max(preprocessing["height"], round(height / ratio))


def _offset(length: int, count: int) -> int:
    """Start of the ``count`` central pixels of ``length``; negative where they are padded."""
    return -((count - length) // 2) if length < count else round((length - count) / 2)
