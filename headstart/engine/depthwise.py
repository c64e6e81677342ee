"""Depthwise convolution with a fast gradient of its filters on a CPU.

In bfloat16 oneDNN has a fast gradient for depthwise filters of 3x3 and a slow one for larger filters: 1,152 channels of
5x5 on a 7x7 map, batch 32, take 56 ms, against 0.7 ms forward (two cores). The gradient of a 5x5 filter consists of
four 3x3 gradients, each of the same input shifted: 5 ms, and exact (docs/results/2026-11-22-depthwise-gradients.md). In
float32 oneDNN's own gradient is faster, 14 ms against 24; but together with the bias's gradient, which is a sum, it
takes 5 ms longer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

TILE = 3
"""Side of the filters whose gradient is fast in oneDNN."""

Edges = tuple[tuple[int, int], tuple[int, int]]
"""((top, bottom), (left, right)) in pixels."""


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution is depthwise (one filter per channel), without dilation."""
    return conv.groups == conv.in_channels == conv.out_channels > 1 and tuple(conv.dilation) == (1, 1)


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor, *, stride: tuple[int, ...], padding: Edges) -> Tensor:
    """Depthwise convolution: each channel with a separate filter.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, h, w), of the same dtype.
        bias: (C,), of the same dtype.
        stride: (down, right).
        padding: rows and columns of zeros around ``x``.

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
    """(the input, padded if its padding is asymmetric; the symmetric padding that is left to the convolution)."""
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
        if x.dtype == torch.float32:
            to_x, to_weight = _pytorch_gradients(x, gradient, weight, ctx.stride, ctx.padding, ctx.needs_input_grad[:2])
        else:
            if ctx.needs_input_grad[0]:
                to_x = _input_gradient(gradient, weight, x.shape, ctx.stride, ctx.padding)
            if ctx.needs_input_grad[1]:
                to_weight = _filter_gradient(x, gradient, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            to_bias = gradient.permute(0, 2, 3, 1).reshape(-1, len(weight)).sum(0)
        return to_x, to_weight, to_bias, None, None


def _pytorch_gradients(
    x: Tensor, gradient: Tensor, weight: Tensor, stride: tuple[int, ...], padding: Edges, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """PyTorch's gradients of the input and of the filters, if they are needed."""
    padded, edge = evenly_padded(x, padding)
    to_padded, to_weight, _ = torch.ops.aten.convolution_backward(
        gradient, padded, weight, None, stride, edge, [1, 1], False, [0, 0], len(weight), [*needed, False]
    )
    if padded is x or to_padded is None:
        return to_padded, to_weight
    (top, _), (left, _) = padding
    inner = to_padded[:, :, top : top + x.shape[2], left : left + x.shape[3]]
    return inner.contiguous(memory_format=torch.channels_last), to_weight


def _input_gradient(
    gradient: Tensor, weight: Tensor, shape: torch.Size, stride: tuple[int, ...], padding: Edges
) -> Tensor:
    """The gradient convolved with the flipped filters; with a stride, phase by phase."""
    (top, bottom), (left, right) = padding
    height, width = weight.shape[2:]
    before, after = (height - 1 - top, width - 1 - left), (height - 1 - bottom, width - 1 - right)
    if stride == (1, 1) and before == after and min(before) >= 0:
        return functional.conv2d(gradient, weight.flip(2, 3), None, 1, before, 1, len(weight))
    n, c, h, w = shape
    padded = _channels_last_zeros(gradient, (n, c, h + top + bottom, w + left + right))
    for rows, columns in _phases(stride):
        part = weight[:, :, rows, columns].flip(2, 3)
        if part.numel():
            edge = (part.shape[2] - 1, part.shape[3] - 1)
            met = functional.conv2d(gradient, part, None, 1, edge, 1, len(weight))
            place = padded[:, :, rows, columns]
            place[:, :, : met.shape[2], : met.shape[3]] = met
    return padded[:, :, top : top + h, left : left + w].contiguous(memory_format=torch.channels_last)


def _filter_gradient(x: Tensor, gradient: Tensor, weight: Tensor, stride: tuple[int, ...], padding: Edges) -> Tensor:
    """(C, 1, h, w), phase by phase and tile by tile; overlapping tiles have equal values."""
    (top, bottom), (left, right) = padding
    padded = functional.pad(x, [left, right, top, bottom])
    out = torch.empty_like(weight)
    tile = weight.new_empty((len(weight), 1, TILE, TILE))
    high, wide = (count - 1 + TILE for count in gradient.shape[2:])
    for rows, columns in _phases(stride):
        phase, part = padded[:, :, rows, columns], out[:, :, rows, columns]
        for i in _starts(part.shape[2]):
            for j in _starts(part.shape[3]):
                seen = phase[:, :, i : i + high, j : j + wide]
                short = [0, wide - seen.shape[3], 0, high - seen.shape[2]]  # where a phase of the filter is under TILE
                seen = functional.pad(seen, short) if any(short) else seen
                found = torch.ops.aten.convolution_backward(
                    gradient,
                    seen.contiguous(memory_format=torch.channels_last),
                    tile,
                    None,
                    [1, 1],
                    [0, 0],
                    [1, 1],
                    False,
                    [0, 0],
                    len(weight),
                    [False, True, False],
                )[1]
                place = part[:, :, i : i + TILE, j : j + TILE]
                place.copy_(found[:, :, : place.shape[2], : place.shape[3]])
    return out


def _phases(stride: tuple[int, ...]) -> list[tuple[slice, slice]]:
    """A strided convolution is a sum of convolutions without stride, each of every n-th row and column."""
    return [(slice(i, None, stride[0]), slice(j, None, stride[1])) for i in range(stride[0]) for j in range(stride[1])]


def _channels_last_zeros(like: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    n, c, h, w = shape
    return like.new_zeros((n, h, w, c)).permute(0, 3, 1, 2)


def _starts(side: int) -> list[int]:
    """Start positions of the tiles that cover a filter's side."""
    return sorted({*range(0, side - TILE, TILE), max(0, side - TILE)})
