"""Variety that costs nothing: activations jittered, blended and pasted into one another as they are read."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from headstart.backbone.layers import Layout


def jittered(x: Tensor, deviation: float, layout: Layout, chance: np.random.Generator) -> Tensor:
    """Each channel of each activation times a factor around 1.

    Args:
        x: (N, ...).
        deviation: standard deviation of the factors.
        layout: says which axis holds the channels.
        chance: of the draw.

    Source: after Bär et al., "Frozen Feature Augmentation for Few-Shot Image Classification", CVPR 2024.
    """
    first = x.ndim == 4 and not layout.channels_last
    shape = (*x.shape[:2], 1, 1) if first else (len(x), *[1] * (x.ndim - 2), x.shape[-1])
    return x * torch.from_numpy((1 + deviation * chance.standard_normal(shape)).astype(np.float32)).to(x.device)


def blended(x: Tensor, alpha: float, chance: np.random.Generator) -> tuple[Tensor, Tensor, float]:
    """Weighted means of pairs.

    Args:
        x: (N, ...).
        alpha: both parameters of the beta distribution of the first one's share.
        chance: of the draw.

    Returns:
        The blend; (N,) int64, the second of each pair; the share of the first, 0.5-1.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """
    share = float(chance.beta(alpha, alpha))
    share, other = max(share, 1 - share), torch.from_numpy(chance.permutation(len(x)))
    return share * x + (1 - share) * x[other], other, share


def pasted(x: Tensor, layout: Layout, chance: np.random.Generator) -> tuple[Tensor, Tensor, float]:
    """A rectangle of each activation replaced by that of another one, at the same place.

    Args:
        x: (N, ...).
        layout: says which axes hold the places; without them nothing is pasted.
        chance: of the draw.

    Returns:
        As ``blended``; the share is that of the area, 0-1.

    Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV
    2019, with pictures; the places of an activation stand for those of its picture.
    """
    other = torch.from_numpy(chance.permutation(len(x)))
    side, down, right = math.sqrt(1 - float(chance.random())), float(chance.random()), float(chance.random())
    grid = layout.grid(x.shape)
    if grid is None:
        return x, other, 1.0
    height, width = (round(side * count) for count in grid)
    top, left = math.floor(down * (grid[0] - height + 1)), math.floor(right * (grid[1] - width + 1))
    rows, columns = slice(top, top + height), slice(left, left + width)
    x = x.clone()
    if x.ndim == 3:
        places = torch.arange(grid[0] * grid[1]).view(grid)[rows, columns].flatten() + layout.prefix_tokens
        x[:, places] = x[other][:, places]
    elif layout.channels_last:
        x[:, rows, columns] = x[other][:, rows, columns]
    else:
        x[:, :, rows, columns] = x[other][:, :, rows, columns]
    return x, other, 1 - height * width / (grid[0] * grid[1])
