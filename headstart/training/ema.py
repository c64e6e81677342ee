"""Exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def update_average(average: Iterable[Tensor], weights: Iterable[Tensor], share: float | Tensor) -> None:
    """Moves averaged weights towards the current weights, in place: ``average += share * (weights - average)``.

    Args:
        average: the averaged weights.
        weights: the current weights, in the same order.
        share: 1 minus the decay, 0-1; a tensor on the weights' device inside a CUDA graph.
    """
    with torch.no_grad():
        for averaged, current in zip(average, weights, strict=True):
            averaged.lerp_(current, share)


def decay_at(step: int, decay: float) -> float:
    """The decay of a step: rises from 2/11 at step 0 to ``decay``, so that the average forgets the first weights."""
    return min(decay, (2 + step) / (11 + step))
