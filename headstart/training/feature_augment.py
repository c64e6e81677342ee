"""Augmentation of activations when they are read: channel jitter, mixup and CutMix."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from headstart.backbone.layers import Layout


def augment(
    x: Tensor,
    layout: Layout,
    rng: np.random.Generator,
    *,
    jitter: float,
    cutmix_share: float,
    mixup_alpha: float,
    beside: Tensor | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Channel jitter, then CutMix or mixup of a batch.

    Args:
        x: (N, ...) activations.
        layout: meaning of their axes.
        rng: random generator of this step.
        jitter: see ``jitter_channels``; 0: none.
        cutmix_share: probability of CutMix.
        mixup_alpha: see ``mixup``, which is used in the other steps; 0: none.
        beside: (N, D) averages of earlier layers; they are mixed in the shares of the mixture.

    Returns:
        The batch, with ``beside`` one row per image: the flattened activations, then ``beside``; (N,) int64, the
        partner of each image; the share of the image itself in the mixture, 0-1.
    """
    if beside is not None:
        x, partner, share = augment(x, layout, rng, jitter=jitter, cutmix_share=cutmix_share, mixup_alpha=mixup_alpha)
        if jitter:
            beside = jitter_channels(beside, jitter, layout, rng)
        other = beside if share == 1.0 else share * beside + (1 - share) * beside[partner]
        return torch.cat([x.flatten(1), other], 1), partner, share
    if jitter:
        x = jitter_channels(x, jitter, layout, rng)
    if rng.random() < cutmix_share:
        return cutmix(x, layout, rng)
    if mixup_alpha:
        return mixup(x, mixup_alpha, rng)
    return x, torch.arange(len(x)), 1.0


def jitter_channels(x: Tensor, deviation: float, layout: Layout, rng: np.random.Generator) -> Tensor:
    """Multiplies each channel of each activation by a random factor with mean 1.

    Args:
        x: (N, ...).
        deviation: standard deviation of the factors.
        layout: tells which axis holds the channels.
        rng: random generator.

    Source: after Bär et al., "Frozen Feature Augmentation for Few-Shot Image Classification", CVPR 2024.
    """
    first = x.ndim == 4 and not layout.channels_last
    shape = (*x.shape[:2], 1, 1) if first else (len(x), *[1] * (x.ndim - 2), x.shape[-1])
    return x * torch.from_numpy((1 + deviation * rng.standard_normal(shape)).astype(np.float32)).to(x.device)


def mixup(x: Tensor, alpha: float, rng: np.random.Generator) -> tuple[Tensor, Tensor, float]:
    """Mixup: weighted means of pairs of activations.

    Args:
        x: (N, ...).
        alpha: both parameters of the beta distribution of the share.
        rng: random generator.

    Returns:
        The means; (N,) int64, the partner of each activation; the share of the activation itself, 0.5-1.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """
    share = float(rng.beta(alpha, alpha))
    share, other = max(share, 1 - share), torch.from_numpy(rng.permutation(len(x)))
    return share * x + (1 - share) * x[other], other, share


def cutmix(x: Tensor, layout: Layout, rng: np.random.Generator) -> tuple[Tensor, Tensor, float]:
    """CutMix: a rectangle of each activation is replaced by the same rectangle of another one.

    Args:
        x: (N, ...).
        layout: tells which axes are positions; activations without positions are not changed.
        rng: random generator.

    Returns:
        As ``mixup``; the share is that of the area, 0-1.

    Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV
    2019, for images; here the positions of an activation take the place of pixels.
    """
    other = torch.from_numpy(rng.permutation(len(x)))
    side, down, right = math.sqrt(1 - float(rng.random())), float(rng.random()), float(rng.random())
    grid = layout.grid(x.shape)
    if grid is None:
        return x, other, 1.0
    height, width = (round(side * count) for count in grid)
    top, left = math.floor(down * (grid[0] - height + 1)), math.floor(right * (grid[1] - width + 1))
    rows, columns = slice(top, top + height), slice(left, left + width)
    x = x.clone()
    if x.ndim == 3:
        positions = torch.arange(grid[0] * grid[1]).view(grid)[rows, columns].flatten() + layout.prefix_tokens
        x[:, positions] = x[other][:, positions]
    elif layout.channels_last:
        x[:, rows, columns] = x[other][:, rows, columns]
    else:
        x[:, :, rows, columns] = x[other][:, :, rows, columns]
    return x, other, 1 - height * width / (grid[0] * grid[1])
