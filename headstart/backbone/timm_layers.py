"""Timm's layers that need special treatment, imported when they are first used."""

from __future__ import annotations

from functools import cache as once
from typing import Any, Self, cast

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


class _NothingKept(dict[str, Any]):
    """A cache in which no key is ever found, so that every value is computed again."""

    def __contains__(self, key: object) -> bool:
        return False

    def __len__(self) -> int:
        return 0

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        return type(self)()


def recompute_position_biases(module: nn.Module) -> None:
    """Lets attention layers compute their position biases from their weights in every forward pass.

    In inference mode TinyViT, EfficientViT, LeViT and EfficientFormer keep these biases after the first forward pass.
    Layers are fine-tuned in inference mode: the biases would not be trained, and later results would be of old weights.
    """
    for part in module.modules():
        if hasattr(part, "attention_bias_cache"):
            cast(Any, part).attention_bias_cache = _NothingKept()
