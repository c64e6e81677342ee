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

Parts = tuple[Tensor, Tensor | None]
"""(n, ...) activations of some images, and (n, D) averages of earlier layers that bypass the boundary, if any."""


@dataclass(frozen=True)
class StepAugmentation:
    """What one step does to a batch of N images.

    Attributes:
        factors: (N, ...) factors of the channels; None without jitter.
        factors_beside: (N, D) likewise of what bypasses the boundary.
        partner: (N,) int64, the image that each one is mixed with.
        share: of the image itself in the mixture, 0-1; 1 where nothing is mixed.
        region: the positions that CutMix replaces; None: all of the activation is mixed, in these shares.
        layout: meaning of the activation's axes.
    """

    factors: Tensor | None
    factors_beside: Tensor | None
    partner: Tensor
    share: float
    region: Region | None
    layout: Layout

    def apply(self, own: Parts, places: Sequence[int] | None = None, others: Parts | None = None) -> Tensor:
        """Augments a batch, or a part of it.

        Args:
            own: of the images.
            places: of the images in the batch; None: the whole batch.
            others: of their partners, where something is mixed and a part of the batch is given.

        Returns:
            (n, ...) activations; with averages of earlier layers one row per image: the flattened activation, then
            these.
        """
        x, beside = self._jittered(own, places)
        if self.share != 1.0:
            other, other_beside = self._partners((x, beside), places, others)
            x = self._mixed(x, other)
            if beside is not None and other_beside is not None:
                beside = self.share * beside + (1 - self.share) * other_beside
        return x if beside is None else torch.cat([x.flatten(1), beside], 1)

    def _partners(self, own: Parts, places: Sequence[int] | None, others: Parts | None) -> Parts:
        if places is None or others is None:
            x, beside = own
            return x[self.partner], None if beside is None else beside[self.partner]
        return self._jittered(others, self.partner[list(places)].tolist())

    def _jittered(self, parts: Parts, places: Sequence[int] | None) -> Parts:
        x, beside = parts
        if self.factors is not None:
            x = x * _some(self.factors, places).to(x.device)
        if beside is not None and self.factors_beside is not None:
            beside = beside * _some(self.factors_beside, places).to(beside.device)
        return x, beside

    def _mixed(self, x: Tensor, other: Tensor) -> Tensor:
        if self.region is None:
            return self.share * x + (1 - self.share) * other
        rows, columns = self.region
        x = x.clone()
        if x.ndim == 3:
            grid = self.layout.grid(x.shape)
            assert grid is not None  # because the region was drawn in it
            positions = torch.arange(grid[0] * grid[1]).view(grid)[rows, columns].flatten()
            positions += self.layout.prefix_tokens
            x[:, positions] = other[:, positions]
        elif self.layout.channels_last:
            x[:, rows, columns] = other[:, rows, columns]
        else:
            x[:, :, rows, columns] = other[:, :, rows, columns]
        return x


def draw_augmentation(
    shape: Sequence[int],
    layout: Layout,
    rng: np.random.Generator,
    *,
    jitter: float,
    cutmix_share: float,
    mixup_alpha: float,
    beside: int = 0,
) -> StepAugmentation:
    """Draws what is done to a batch: channel jitter, then CutMix or mixup.

    Args:
        shape: of the batch of activations, (N, ...).
        layout: meaning of its axes.
        rng: random generator of this step.
        jitter: standard deviation of the factors of channels; 0: none.
        cutmix_share: probability of CutMix.
        mixup_alpha: both parameters of mixup's beta distribution, which is used in the other steps; 0: none.
        beside: averages of earlier layers for each image; they are mixed in the shares of the mixture.
    """
    count = shape[0]
    factors = _jitter(shape, jitter, layout, rng) if jitter else None
    partner, share, region = torch.arange(count), 1.0, None
    if rng.random() < cutmix_share:
        partner, share, region = _draw_cutmix(shape, layout, rng)
    elif mixup_alpha:
        partner, share = _draw_mixup(count, mixup_alpha, rng)
    factors_beside = _jitter((count, beside), jitter, layout, rng) if jitter and beside else None
    return StepAugmentation(factors, factors_beside, partner, share, region, layout)


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


def _draw_cutmix(shape: Sequence[int], layout: Layout, rng: np.random.Generator) -> tuple[Tensor, float, Region | None]:
    """The partner of each activation, the share of the area that stays, and the rectangle that is replaced.

    Activations without positions are not changed.

    Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV
    2019, for images; here the positions of an activation take the place of pixels.
    """
    partner = torch.from_numpy(rng.permutation(shape[0]))
    side, down, right = math.sqrt(1 - float(rng.random())), float(rng.random()), float(rng.random())
    grid = layout.grid(torch.Size(shape))
    if grid is None:
        return partner, 1.0, None
    height, width = (round(side * count) for count in grid)
    top, left = math.floor(down * (grid[0] - height + 1)), math.floor(right * (grid[1] - width + 1))
    region = slice(top, top + height), slice(left, left + width)
    return partner, 1 - height * width / (grid[0] * grid[1]), region


def _some(factors: Tensor, places: Sequence[int] | None) -> Tensor:
    return factors if places is None else factors[list(places)]
