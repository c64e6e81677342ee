"""Depthwise convolution with a fast gradient of its filters on a CPU.

oneDNN has a fast gradient for depthwise filters of 3x3 and a slow one for larger filters: 1,152 channels of 5x5 on a
7x7 map, batch 32, take 56 ms in bfloat16, against 0.7 ms forward (two cores). But a 5x5 filter's gradient is made of
four 3x3 ones, each of the same input shifted: 5 ms, and exact (LOG.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

TILE = 3
"""Side of the filter whose gradient is fast."""

Edges = tuple[tuple[int, int], tuple[int, int]]
"""((top, bottom), (left, right)) in pixels."""


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether each channel has a filter of its own, and nothing else is unusual."""
    return conv.groups == conv.in_channels == conv.out_channels > 1 and tuple(conv.dilation) == (1, 1)


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor, *, stride: tuple[int, ...], padding: Edges) -> Tensor:
    """The convolution of each channel with its own filter.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, h, w), of the same dtype.
        bias: (C,), of the same dtype.
        stride: (down, right).
        padding: zeros around ``x``.

    Returns:
        (N, C, H', W').
    """
    sides = weight.shape[2:]
    if x.device.type == "cpu" and weight.requires_grad and min(sides) >= TILE and max(sides) > TILE:
        y: Tensor = _LargeDepthwise.apply(x, weight, bias, stride, padding)
        return y
    x, edge = evenly_padded(x, padding)
    return functional.conv2d(x, weight, bias, stride, edge, 1, len(weight))


def evenly_padded(x: Tensor, padding: Edges) -> tuple[Tensor, tuple[int, int]]:
    """(the input, padded where its edges differ; the equal padding that is left to the convolution)."""
    (top, bottom), (left, right) = padding
    if (top, left) == (bottom, right):
        return x, (top, left)
    return functional.pad(x, [left, right, top, bottom]), (0, 0)


class _LargeDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...], padding: Edges) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = tuple(stride), padding
        padded, edge = evenly_padded(x, padding)
        return functional.conv2d(padded, weight, bias, stride, edge, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        x, weight = ctx.saved_tensors
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_x = _input_gradient(gradient, weight, x.shape, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            to_weight = _filter_gradient(x, gradient, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            exact = torch.promote_types(gradient.dtype, torch.float32)
            to_bias = gradient.sum((0, 2, 3), dtype=exact).to(weight.dtype)
        return to_x, to_weight, to_bias, None, None


def _input_gradient(
    gradient: Tensor, weight: Tensor, shape: torch.Size, stride: tuple[int, ...], padding: Edges
) -> Tensor:
    """The gradient, spread out by the stride, convolved with the filters turned by half a turn."""
    turned, (height, width) = weight.flip(2, 3), weight.shape[2:]
    (top, bottom), (left, right) = padding
    before, after = (height - 1 - top, width - 1 - left), (height - 1 - bottom, width - 1 - right)
    if stride == (1, 1) and before == after and min(before) >= 0:
        return functional.conv2d(gradient, turned, None, 1, before, 1, len(weight))
    n, c, h, w = shape
    spread = gradient.new_zeros((n, h + top + bottom + height - 1, w + left + right + width - 1, c)).permute(0, 3, 1, 2)
    down, aside = stride
    rows = slice(height - 1, height + down * (gradient.shape[2] - 1), down)
    columns = slice(width - 1, width + aside * (gradient.shape[3] - 1), aside)
    spread[:, :, rows, columns] = gradient
    spread = spread[:, :, top : top + h + height - 1, left : left + w + width - 1]
    spread = spread.contiguous(memory_format=torch.channels_last)
    return functional.conv2d(spread, turned, None, 1, 0, 1, len(weight))


def _filter_gradient(x: Tensor, gradient: Tensor, weight: Tensor, stride: tuple[int, ...], padding: Edges) -> Tensor:
    """(C, 1, h, w), tile by tile; where tiles overlap they agree."""
    (top, bottom), (left, right) = padding
    padded = functional.pad(x, [left, right, top, bottom])
    out = torch.empty_like(weight)
    tile = weight.new_empty((len(weight), 1, TILE, TILE))
    high, wide = (step * (count - 1) + TILE for step, count in zip(stride, gradient.shape[2:], strict=True))
    for i in _starts(weight.shape[2]):
        for j in _starts(weight.shape[3]):
            seen = padded[:, :, i : i + high, j : j + wide].contiguous(memory_format=torch.channels_last)
            out[:, :, i : i + TILE, j : j + TILE] = torch.ops.aten.convolution_backward(
                gradient, seen, tile, None, stride, [0, 0], [1, 1], False, [0, 0], len(weight), [False, True, False]
            )[1]
    return out


def _starts(side: int) -> list[int]:
    """Where tiles begin that cover a filter's side."""
    return [*range(0, side - TILE, TILE), side - TILE]
