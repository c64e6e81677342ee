"""Pooling: how the last map or token sequence of a backbone becomes a feature vector.

A new pooling is a function here, its line in ``POOLINGS``, and its name in ``Pooling``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from headstart.backbone.layers import Layout
from headstart.errors import OptionError

Pooling = Literal["auto", "avg", "max", "avgmax", "token", "flatten", "none"]
"""As in the pretrained network ("auto"; the mean if the backbone is cut at an inner layer); mean or maximum over all
positions; both concatenated; the class token; all values flattened; or no pooling: the map itself, for a head that
convolves."""


def check_pooling(pool: str, layout: Layout, architecture: str) -> None:
    """Checks that a pooling exists and is possible for a backbone.

    Raises:
        OptionError: no such pooling, or the backbone has no class token.
    """
    if pool not in get_args(Pooling):
        raise OptionError(f"pool {pool!r}: expected one of {', '.join(get_args(Pooling))}.")
    if pool == "token" and not layout.prefix_tokens:
        raise OptionError(f"pool 'token': {architecture} has no class token.")


def pooled(x: Tensor, pool: Pooling, channels_last: bool = False, prefix_tokens: int = 0) -> Tensor:
    """Features of an activation. An activation without positions, (N, C), is returned unchanged.

    Args:
        x: (N, C, H, W), (N, H, W, C), (N, tokens, C) or (N, C).
        pool: see ``Pooling``; "auto" is the mean.
        channels_last: see ``layers.Layout``.
        prefix_tokens: see ``layers.Layout``.

    Returns:
        (N, C); (N, 2C) for "avgmax"; (N, all values) for "flatten"; ``x`` for "none".

    Raises:
        OptionError: "token", and ``x`` has no class token.
    """
    return x if x.ndim == 2 else POOLINGS[pool](x, Layout(channels_last, prefix_tokens))


def _mean(x: Tensor, layout: Layout) -> Tensor:
    return _positions(x, layout).mean(1)


def _maximum(x: Tensor, layout: Layout) -> Tensor:
    return _positions(x, layout).amax(1)


def _mean_and_maximum(x: Tensor, layout: Layout) -> Tensor:
    return torch.cat([_mean(x, layout), _maximum(x, layout)], 1)


def _class_token(x: Tensor, layout: Layout) -> Tensor:
    if x.ndim != 3 or not layout.prefix_tokens:
        raise OptionError("pool 'token': the backbone has no class token.")
    return x[:, 0]


def _flatten(x: Tensor, _layout: Layout) -> Tensor:
    return x.flatten(1)


def _unchanged(x: Tensor, _layout: Layout) -> Tensor:
    return x


def _positions(x: Tensor, layout: Layout) -> Tensor:
    """(N, positions, C), without prefix tokens."""
    if x.ndim == 3:
        return x[:, layout.prefix_tokens :]
    return x.flatten(1, 2) if layout.channels_last else x.flatten(2).transpose(1, 2)


POOLINGS: dict[Pooling, Callable[[Tensor, Layout], Tensor]] = {
    "auto": _mean,
    "avg": _mean,
    "max": _maximum,
    "avgmax": _mean_and_maximum,
    "token": _class_token,
    "flatten": _flatten,
    "none": _unchanged,
}
"""Name -> (activation, layout) -> features."""
