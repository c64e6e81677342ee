"""Lowering of layers to ONNX: convolution, normalisation, pooling, attention."""

# ruff: noqa: ARG001  (all operations have one signature)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.engine.onnx_array_operations import operand_name, require_batch_first
from headstart.engine.onnx_graph import GraphValue, GraphWriter, NotLowered, RecordedTensor


def _absorb_padding(w: GraphWriter, x: RecordedTensor, filling: float) -> tuple[str, list[int], list[int]]:
    """(name, (top, left), (bottom, right)): merges a padding node into the layer that follows it."""
    name, places = w.name(x), x.ndim - 2
    node = w.producers.get(name)
    if node is None or node.op_type != "Pad" or node.input[2] != w.name(filling):
        return name, [0] * places, [0] * places
    data = next(t.raw_data for t in w.model.graph.initializer if t.name == node.input[1])
    pads = np.frombuffer(data, np.int64).tolist()
    return node.input[0], pads[2 : x.ndim], pads[x.ndim + 2 :]


def lower_convolution(
    w: GraphWriter,
    out: Tensor,
    x: RecordedTensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> GraphValue:
    """Convolutions with constant weights; padding before them is merged into them."""
    if transposed or isinstance(weight, RecordedTensor):
        raise NotLowered("a transposed convolution or computed weights")
    source, before, after = _absorb_padding(w, x, 0.0)
    pads = [a + b for a, b in zip(padding, before, strict=True)] + [a + b for a, b in zip(padding, after, strict=True)]
    names = [source, w.name(weight), *([] if bias is None else [w.name(bias)])]
    name = w.one("Conv", *names, strides=stride, pads=pads, dilations=dilation, group=groups)
    return GraphValue(name, require_batch_first(x))


def lower_batch_norm(
    w: GraphWriter, out: Any, x: RecordedTensor, weight: Any, bias: Any, mean: Any, variance: Any, *rest: Any
) -> list[GraphValue]:
    """BatchNorm with constant statistics."""
    *training, _, eps = rest
    if any(training) or mean is None:
        raise NotLowered("BatchNorm uses statistics of the batch")
    scale = torch.ones_like(mean) if weight is None else weight
    shift = torch.zeros_like(mean) if bias is None else bias
    names = [w.name(t) for t in (x, scale, shift, mean, variance)]
    return [GraphValue(w.one("BatchNormalization", *names, epsilon=eps), require_batch_first(x))]


def lower_layer_norm(
    w: GraphWriter, out: Any, x: RecordedTensor, shape: Sequence[int], weight: Any, bias: Any, eps: float
) -> list[GraphValue]:
    """LayerNorm."""
    scale = torch.ones(*shape) if weight is None else weight
    names = [w.name(t) for t in (x, scale, bias) if t is not None]
    name = w.one("LayerNormalization", *names, axis=-len(shape), epsilon=eps)
    if x.value.batch >= x.ndim - len(shape):
        raise NotLowered("a norm over the batch axis")
    return [GraphValue(name, x.value.batch)]


def lower_group_norm(
    w: GraphWriter,
    out: Any,
    x: RecordedTensor,
    weight: Any,
    bias: Any,
    images: int,
    channels: int,
    places: int,
    groups: int,
    eps: float,
) -> list[GraphValue]:
    """GroupNorm, as InstanceNormalization of each group."""
    batch = require_batch_first(x)
    flat = w.one("Reshape", w.name(x), w.ints(-1, groups, channels // groups * places))
    ones, zeros = w.name(torch.ones(groups)), w.name(torch.zeros(groups))
    normal = w.one("InstanceNormalization", flat, ones, zeros, epsilon=eps)
    name = w.one("Reshape", normal, w.ints(-1, *x.shape[1:]))
    column = (channels, *[1] * (x.ndim - 2))
    for kind, tensor in (("Mul", weight), ("Add", bias)):
        if tensor is not None:
            name = w.one(kind, name, w.name(tensor.reshape(column)))
    return [GraphValue(name, batch)]


def _to_pair(numbers: Any) -> list[int]:
    return [numbers] * 2 if isinstance(numbers, int) else list(numbers) * (2 if len(numbers) == 1 else 1)


def _overhang(
    x: Tensor, out: Tensor, kernel: list[int], stride: list[int], pads: list[int], spread: list[int]
) -> list[int]:
    """How far the last window reaches beyond the bottom and right edges, at least 0."""
    reach = [
        (n - 1) * s + d * (k - 1) + 1 - size - p
        for n, s, d, k, size, p in zip(out.shape[2:], stride, spread, kernel, x.shape[2:], pads, strict=True)
    ]
    return [max(0, r) for r in reach]


def lower_max_pool(
    w: GraphWriter,
    out: Any,
    x: RecordedTensor,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil: bool = False,
) -> list[GraphValue]:
    """Max pooling."""
    batch, kernel = require_batch_first(x), _to_pair(kernel)
    stride, pads, spread = _to_pair(stride) if stride else kernel, _to_pair(padding), _to_pair(dilation)
    ends = _overhang(x, out[0] if isinstance(out, tuple) else out, kernel, stride, pads, spread)
    name = w.one("MaxPool", w.name(x), kernel_shape=kernel, strides=stride, pads=pads + ends, dilations=spread)
    return [GraphValue(name, batch)]


def lower_average_pool(
    w: GraphWriter,
    out: Tensor,
    x: RecordedTensor,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil: bool = False,
    count_padding: bool = True,
    divisor: int | None = None,
) -> GraphValue:
    """Average pooling."""
    batch, kernel = require_batch_first(x), _to_pair(kernel)
    stride, pads = _to_pair(stride) if stride else kernel, _to_pair(padding)
    ends = _overhang(x, out, kernel, stride, pads, [1, 1])
    counted = int(count_padding and any(pads))
    if divisor is not None or (counted and any(end > pad for end, pad in zip(ends, pads, strict=True))):
        raise NotLowered("average pooling with a window that exceeds the padding")
    if counted:
        ends = pads
    name = w.one(
        "AveragePool", w.name(x), kernel_shape=kernel, strides=stride, pads=pads + ends, count_include_pad=counted
    )
    return GraphValue(name, batch)


def lower_adaptive_average(w: GraphWriter, out: Tensor, x: RecordedTensor, size: Any) -> GraphValue:
    """Adaptive average pooling with equal windows."""
    if any(a % b for a, b in zip(x.shape[2:], out.shape[2:], strict=True)):
        raise NotLowered("adaptive average pooling with windows of different sizes")
    kernel = [a // b for a, b in zip(x.shape[2:], out.shape[2:], strict=True)]
    if kernel == [1, 1]:
        return x.value
    return GraphValue(w.one("AveragePool", w.name(x), kernel_shape=kernel, strides=kernel), require_batch_first(x))


def lower_attention(
    w: GraphWriter,
    out: Any,
    query: RecordedTensor,
    key: Tensor,
    value: Tensor,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> list[GraphValue]:
    """Scaled dot-product attention."""
    if dropout or causal or not all(isinstance(t, RecordedTensor) for t in (query, key, value)):
        raise NotLowered("attention with dropout, a causal mask or constant operands")
    if attn_mask is not None and attn_mask.dtype != torch.float32:
        raise NotLowered("an attention mask that is not float32")
    factor = w.name(1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    turned = w.one("Transpose", w.name(key), perm=[0, 1, 3, 2])
    scores = w.one("MatMul", w.one("Mul", w.name(query), factor), turned)
    if attn_mask is not None:
        scores = w.one(
            "Add", scores, operand_name(w, attn_mask, torch.empty((*query.shape[:3], key.shape[2]), device="meta"), 0)
        )
    return [GraphValue(w.one("MatMul", w.one("Softmax", scores, axis=-1), w.name(value)), require_batch_first(query))]
