"""Pillow's resize and crop in tensors, so that an exported graph contains the preprocessing.

Pillow resizes in two passes, columns first, with fixed-point weights of 22 fractional bits, and rounds after each pass.
Matrix products that are exact in float32 do the same here, so that the pixels equal those of
``data.preprocessing.resize_and_crop``. Neighbouring output columns share a window of the image: a product with all
columns takes ten times as long for an image of 12 megapixels.

Source: Pillow's ``src/libImaging/Resample.c``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from headstart.data.preprocessing import Preprocessing
from headstart.errors import ExportError

WEIGHT_BITS = 22
"""Fractional bits of a weight, as in Pillow."""

LOW_BITS = 11
"""Lower bits of a weight, multiplied separately: products and sums of each half are integers below 2 ** 24."""

COLUMNS = 32
"""Output columns that share a window."""

Size = Any
"""A number of pixels; symbolic while a graph is captured."""


def _box(x: Tensor) -> Tensor:
    return ((x > -0.5) & (x <= 0.5)).double()


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _hamming(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1, _sinc(x) * (0.54 + 0.46 * torch.cos(math.pi * x)), 0.0)


def _cubic(x: Tensor) -> Tensor:
    a, x = -0.5, x.abs()
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _lanczos(x: Tensor) -> Tensor:
    return torch.where((x >= -3) & (x < 3), _sinc(x) * _sinc(x / 3), 0.0)


def _sinc(x: Tensor) -> Tensor:
    turned = math.pi * torch.where(x == 0, 1.0, x)
    return torch.where(x == 0, 1.0, torch.sin(turned) / turned)


FILTERS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "box": (_box, 0.5),
    "bilinear": (_triangle, 1.0),
    "hamming": (_hamming, 1.0),
    "bicubic": (_cubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
"""Interpolation -> (filter, its support in pixels of the smaller image)."""


class ResizeAndCrop(nn.Module):
    """Raw pixels of any size -> the network's input; ``resize_and_crop`` as a module.

    Args:
        preprocessing: size, crop and interpolation.

    Raises:
        ExportError: the interpolation is not one of ``FILTERS``.
    """

    fill: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        if preprocessing.interpolation not in FILTERS:
            raise ExportError(
                f"interpolation {preprocessing.interpolation!r} cannot be exported; expected one of "
                f"{', '.join(FILTERS)}."
            )
        self.preprocessing = preprocessing
        self.register_buffer("fill", torch.tensor(preprocessing.fill).float().view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Resizes, crops and fills.

        Args:
            pixels: (N, H, W, 3) uint8, 0-255, any H and W.

        Returns:
            (N, 3, height, width) float32, integers in 0-255.
        """
        target = self.preprocessing
        rows, columns = pixels.shape[1], pixels.shape[2]
        (new_h, new_w), pace = self._sizes(_as_tensor(rows), _as_tensor(columns)), self._paces(rows, columns)
        down = _Axis(rows, new_h, target.height, target.height, pace[0], target.interpolation)
        across = _Axis(columns, new_w, target.width, COLUMNS, pace[1], target.interpolation)
        chosen = pixels.index_select(1, down.window.flatten())  # rows inside any window
        chosen = chosen.index_select(2, across.window.flatten())
        chosen = torch.unflatten(chosen, 2, across.window.shape)
        narrow = across(chosen.permute(0, 4, 2, 1, 3).float())  # (N, 3, groups, rows, columns of a group)
        narrow = narrow.transpose(2, 3).flatten(3)[..., : target.width]
        fitted = down(narrow.transpose(2, 3)[:, :, None]).squeeze(2).transpose(2, 3)
        if target.crop_mode == "border":
            inside = down.inside[:, None] & across.inside[: target.width]
            fitted = torch.where(inside, fitted, self.fill)
        return fitted

    def _sizes(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """(height, width) of the resized image, as in ``preprocessing.resize_and_crop``; float64 integers."""
        target = self.preprocessing
        scale_h, scale_w = target.resize_to
        if target.crop_mode == "squash":
            return torch.full_like(rows, scale_h), torch.full_like(columns, scale_w)
        if target.crop_mode == "border":
            ratio = torch.maximum(rows / scale_h, columns / scale_w)
            return (rows / ratio).round().clamp(min=1), (columns / ratio).round().clamp(min=1)
        if scale_h == scale_w:
            short = torch.minimum(rows, columns)
            # Half of a pixel more changes no quotient of integers, and floor() is right where a runtime divides less
            # exactly than float64: OpenVINO multiplies by the reciprocal in float32.
            return ((scale_h * rows + 0.5) / short).floor(), ((scale_w * columns + 0.5) / short).floor()
        ratio = torch.minimum(rows / scale_h, columns / scale_w)
        return (rows / ratio).round().clamp(min=target.height), (columns / ratio).round().clamp(min=target.width)

    def _paces(self, rows: Size, columns: Size) -> tuple[tuple[Size, int], tuple[Size, int]]:
        """Upper bounds, down and across, on input pixels per output pixel, as (numerator, denominator).

        They ignore that the resized size is rounded to integers; windows have a margin for that.
        """
        target = self.preprocessing
        scale_h, scale_w = target.resize_to
        if target.crop_mode == "squash":
            return (rows, scale_h), (columns, scale_w)
        if target.crop_mode == "border":  # a narrow image may shrink to one or two columns, where rounding matters
            pace = 3 * torch.sym_max(rows * scale_w, columns * scale_h), 2 * scale_h * scale_w
        else:
            pace = torch.sym_min(rows * scale_w, columns * scale_h), scale_h * scale_w
        return pace, pace


class _Axis:
    """Resizing along one axis: windows of input pixels, and the weights of the pixels in each window.

    Args:
        length: size of the image along the axis in pixels.
        new: () float64 size of the resized image.
        count: output pixels, taken from the center of the resized image.
        group: output pixels that share a window.
        pace: see ``ResizeAndCrop._paces``.
        interpolation: one of ``FILTERS``.

    Attributes:
        window: (groups, pixels of a window) int64 positions of input pixels, 0 to ``length`` - 1.
        weights: (groups, pixels of a window, 2 * group) float32 upper and lower half of each weight.
        inside: (groups * group,) bool: whether an output pixel lies in the resized image.
    """

    def __init__(
        self, length: Size, new: Tensor, count: int, group: int, pace: tuple[Size, int], interpolation: str
    ) -> None:
        weigh, reach = FILTERS[interpolation]
        groups = math.ceil(count / group)
        scale = _as_tensor(length) / new
        widened = scale.clamp(min=1)
        spare = (new - count) / 2  # negative where the image is padded; rounded as in ``preprocessing.crop_or_pad``
        places = torch.arange(groups * group, dtype=torch.float64) + torch.where(spare < 0, spare.ceil(), spare.round())
        self.inside = (places >= 0) & (places < new)
        centres = ((places + 0.5) * scale).view(groups, group, 1)
        low = (centres - reach * widened + 0.5).trunc().clamp(min=0)
        high = torch.minimum((centres + reach * widened + 0.5).trunc(), _as_tensor(length))
        first = (centres[:, :1] - reach * widened - 1).floor().view(groups, 1)
        size = (math.ceil(group + 2 * reach + 3) * pace[0]) // pace[1] + math.ceil(2 * reach) + 5
        looked_at = first + torch.arange(size, dtype=torch.float64)
        here = looked_at[:, None]
        weights = weigh((here - centres + 0.5) * (1 / widened))
        weights = torch.where((here >= low) & (here < high), weights, 0.0)
        total = weights.sum(2, keepdim=True)
        whole = (weights / torch.where(total == 0, 1.0, total) * 2**WEIGHT_BITS).abs() + 0.5
        whole = whole.floor() * torch.where(weights < 0, -1.0, 1.0)
        upper = (whole / 2**LOW_BITS).floor()
        self.weights = torch.cat([upper, whole - upper * 2**LOW_BITS], 1).transpose(1, 2).float()
        self.window = torch.minimum(looked_at.clamp(min=0), _as_tensor(length) - 1).long()
        self.group = group

    def __call__(self, x: Tensor) -> Tensor:
        """(..., groups, any, pixels of a window) -> (..., groups, any, group), rounded to integers."""
        upper, lower = torch.split(x @ self.weights, self.group, -1)
        total = upper + (lower / 2**LOW_BITS).floor()  # what is left of the lower half cannot reach the next integer
        rounded: Tensor = (total / 2 ** (WEIGHT_BITS - LOW_BITS) + 0.5).floor().clamp(0, 255)
        return rounded


def _as_tensor(size: Size) -> Tensor:
    """() float64."""
    return torch.full((), size, dtype=torch.float64)
