"""Augmentation of activations when they are read: channel jitter, mixup and CutMix.

What a step does to a batch is drawn before the batch is read, so that several processes can each augment a part of it
with the numbers that one process would have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headstart.backbone.layers import Layout

Region = tuple[slice, slice]
"""Rows and columns of positions."""

Parts = tuple[Tensor, ...]
"""(n, ...) activations of some images, of each network, then (n, D) features that bypass the boundary, if any."""


@dataclass(frozen=True)
class StepAugmentation:
    """What one step does to a batch of N images.

    Attributes:
        factors: (N, ...) factors of the channels of each part; None without jitter.
        partner: (N,) int64, the image that each one is mixed with.
        share: of the image itself in the mixture, 0-1; 1 where nothing is mixed.
        regions: the positions that CutMix replaces in each part; None: all of the part is mixed, in these shares.
        layouts: meaning of the axes of each part.
    """

    factors: tuple[Tensor, ...] | None
    partner: Tensor
    share: float
    regions: tuple[Region | None, ...]
    layouts: tuple[Layout, ...]

    def apply(self, own: Parts, places: Sequence[int] | None = None, others: Parts | None = None) -> Tensor:
        """Augments a batch, or a part of it.

        Args:
            own: of the images.
            places: of the images in the batch; None: the whole batch.
            others: of their partners, where something is mixed and a part of the batch is given.

        Returns:
            (n, ...) activations; of several parts one row per image, all parts flattened.
        """
        parts = self._jittered(own, places)
        if self.share != 1.0:
            partners = self._partners(parts, places, others)
            each = zip(parts, partners, self.regions, self.layouts, strict=True)
            parts = tuple(self._mixed(x, other, region, layout) for x, other, region, layout in each)
        return parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], 1)

    def _partners(self, own: Parts, places: Sequence[int] | None, others: Parts | None) -> Parts:
        if places is None or others is None:
            return tuple(part[self.partner] for part in own)
        return self._jittered(others, self.partner[list(places)].tolist())

    def _jittered(self, parts: Parts, places: Sequence[int] | None) -> Parts:
        if self.factors is None:
            return parts
        return tuple(x * _some(one, places).to(x.device) for x, one in zip(parts, self.factors, strict=True))

    def _mixed(self, x: Tensor, other: Tensor, region: Region | None, layout: Layout) -> Tensor:
        if region is None:
            return self.share * x + (1 - self.share) * other
        rows, columns = region
        x = x.clone()
        if x.ndim == 3:
            grid = layout.grid(x.shape)
            assert grid is not None  # because the region was drawn in it
            positions = torch.arange(grid[0] * grid[1]).view(grid)[rows, columns].flatten()
            positions += layout.prefix_tokens
            x[:, positions] = other[:, positions]
        elif layout.channels_last:
            x[:, rows, columns] = other[:, rows, columns]
        else:
            x[:, :, rows, columns] = other[:, :, rows, columns]
        return x


def draw_augmentation(
    shapes: Sequence[Sequence[int]],
    layouts: Sequence[Layout],
    rng: np.random.Generator,
    *,
    jitter: float,
    cutmix_share: float,
    mixup_alpha: float,
) -> StepAugmentation:
    """Draws what is done to a batch: channel jitter, then CutMix or mixup.

    Args:
        shapes: of the parts of the batch, (N, ...) each, as ``Boundary.activations`` gives them.
        layouts: meaning of the axes of each; parts without a layout, the last ones, have no positions.
        rng: random generator of this step.
        jitter: standard deviation of the factors of channels; 0: none.
        cutmix_share: probability of CutMix. Where the first part has no positions, nothing is replaced; another part
            without positions is mixed in the shares of the first one's areas.
        mixup_alpha: both parameters of mixup's beta distribution, which is used in the other steps; 0: none.
    """
    layouts = (*layouts, *(Layout() for _ in range(len(shapes) - len(layouts))))
    count = shapes[0][0]
    factors = [_jitter(shapes[0], jitter, layouts[0], rng)] if jitter else []
    partner, share = torch.arange(count), 1.0
    regions: list[Region | None] = [None] * len(shapes)
    if rng.random() < cutmix_share:
        partner, share, regions = _draw_cutmix(shapes, layouts, rng)
    elif mixup_alpha:
        partner, share = _draw_mixup(count, mixup_alpha, rng)
    if jitter:
        others = zip(shapes[1:], layouts[1:], strict=True)
        factors += [_jitter(shape, jitter, layout, rng) for shape, layout in others]
    return StepAugmentation(tuple(factors) if jitter else None, partner, share, tuple(regions), layouts)


def _jitter(shape: Sequence[int], deviation: float, layout: Layout, rng: np.random.Generator) -> Tensor:
    """Random factors with mean 1 for each channel of each activation, which broadcast to ``shape``.

    Source: after Bär et al., "Frozen Feature Augmentation for Few-Shot Image Classification", CVPR 2024.
    """
    first = len(shape) == 4 and not layout.channels_last
    factors = (*shape[:2], 1, 1) if first else (shape[0], *[1] * (len(shape) - 2), shape[-1])
    return torch.from_numpy((1 + deviation * rng.standard_normal(factors)).astype(np.float32))


def _draw_mixup(count: int, alpha: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """The partner of each of ``count`` activations, and the share of the activation itself, 0.5-1.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """
    share = float(rng.beta(alpha, alpha))
    return torch.from_numpy(rng.permutation(count)), max(share, 1 - share)


def _draw_cutmix(
    shapes: Sequence[Sequence[int]], layouts: Sequence[Layout], rng: np.random.Generator
) -> tuple[Tensor, float, list[Region | None]]:
    """The partner of each activation, the share of the area that stays, and the rectangle that is replaced.

    The rectangle has the same place and size in each part, as far as its positions allow.

    Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV
    2019, for images; here the positions of an activation take the place of pixels.
    """
    partner = torch.from_numpy(rng.permutation(shapes[0][0]))
    side, down, right = math.sqrt(1 - float(rng.random())), float(rng.random()), float(rng.random())
    grids = [layout.grid(torch.Size(shape)) for shape, layout in zip(shapes, layouts, strict=True)]
    if grids[0] is None:
        return partner, 1.0, [None] * len(grids)

    def region_in(grid: tuple[int, int]) -> Region:
        height, width = (round(side * count) for count in grid)
        top, left = math.floor(down * (grid[0] - height + 1)), math.floor(right * (grid[1] - width + 1))
        return slice(top, top + height), slice(left, left + width)

    regions = [None if grid is None else region_in(grid) for grid in grids]
    height, width = (round(side * count) for count in grids[0])
    return partner, 1 - height * width / (grids[0][0] * grids[0][1]), regions


def _some(factors: Tensor, places: Sequence[int] | None) -> Tensor:
    return factors if places is None else factors[list(places)]
