"""Timm's layers that need special treatment, imported when they are first used."""

from __future__ import annotations

from functools import cache as once
from typing import Any, cast

from torch import nn


@once
def _layers() -> Any:
    from timm import layers

    return layers


def conv2d_same() -> type[nn.Conv2d]:
    """Convolution with TensorFlow's "same" padding."""
    return cast(type[nn.Conv2d], _layers().Conv2dSame)


def batch_norm_with_activation() -> type[nn.BatchNorm2d]:
    """BatchNorm followed by an activation in one layer; its attribute ``act`` is the activation."""
    return cast(type[nn.BatchNorm2d], _layers().BatchNormAct2d)


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> int:
    """Total padding along an axis for TensorFlow's "same" padding."""
    return int(_layers().get_same_padding(size, kernel, stride, dilation))


def untraceable_functions() -> tuple[Any, ...]:
    """Functions that torch.fx must not trace into."""
    return tuple(_layers().get_notrace_functions())


def untraceable_modules() -> tuple[type[nn.Module], ...]:
    """Modules that torch.fx must not trace into."""
    return tuple(_layers().get_notrace_modules())
