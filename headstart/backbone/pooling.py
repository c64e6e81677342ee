"""How the map or the sequence that a backbone ends in becomes features."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from headstart.backbone.layers import Layout
from headstart.errors import OptionError

Pooling = Literal["auto", "avg", "max", "avgmax", "token", "flatten", "none"]
"""As the weights were trained ("auto"; the mean where the backbone is cut at an inner layer); the mean or the maximum
over all places; both side by side; the class token; every number as it is; or nothing at all: the map itself, for a
head that convolves."""


def check_pooling(pool: str, layout: Layout, architecture: str) -> None:
    """Checks that a backbone can be pooled so.

    Raises:
        OptionError: no such pooling, or no class token to take.
    """
    if pool not in get_args(Pooling):
        raise OptionError(f"pool {pool!r}: expected one of {', '.join(get_args(Pooling))}.")
    if pool == "token" and not layout.prefix_tokens:
        raise OptionError(f"pool 'token': {architecture} has no class token.")


def pooled(x: Tensor, pool: Pooling, channels_last: bool = False, prefix_tokens: int = 0) -> Tensor:
    """Features of an activation; of one that has no places, the activation as it is.

    Args:
        x: (N, C, H, W), (N, H, W, C), (N, tokens, C) or (N, C).
        pool: see ``Pooling``; "auto" is the mean.
        channels_last: see ``layers.Layout``.
        prefix_tokens: see there.

    Returns:
        (N, C); (N, 2C) for "avgmax"; (N, all numbers) for "flatten"; ``x`` for "none".

    Raises:
        OptionError: "token" of a map.
    """
    if x.ndim == 2 or pool == "none":
        return x
    if pool == "flatten":
        return x.flatten(1)
    if pool == "token":
        if x.ndim != 3 or not prefix_tokens:
            raise OptionError("pool 'token': there is no class token.")
        return x[:, 0]
    places = _as_places(x, channels_last)[:, prefix_tokens if x.ndim == 3 else 0 :]
    if pool == "max":
        return places.amax(1)
    return torch.cat([places.mean(1), places.amax(1)], 1) if pool == "avgmax" else places.mean(1)


def _as_places(x: Tensor, channels_last: bool) -> Tensor:
    """(N, places, C)."""
    if x.ndim == 3:
        return x
    return x.flatten(1, 2) if channels_last else x.flatten(2).transpose(1, 2)
