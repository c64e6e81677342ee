"""Lowering of a frozen pass to an ONNX graph, by recording the network as it runs: 0.1 s where exporters take 15 s.

``OPERATIONS`` lists the supported operations; a new one is a function in ``onnx_array_operations`` or
``onnx_layer_operations`` and a line here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headstart.backbone.pixel_net import PixelNet
from headstart.deferred_compiler import compiler_deferred
from headstart.engine import onnx_array_operations as array
from headstart.engine import onnx_layer_operations as layer
from headstart.engine.onnx_graph import GraphWriter, Lowering

__all__ = ["OPERATIONS", "onnx_bytes"]


def onnx_bytes(net: PixelNet) -> bytes:
    """The frozen pass for images of its size as an ONNX model; the same network gives the same bytes.

    Args:
        net: on the CPU, in float32.

    Returns:
        A serialised ``ModelProto``: "pixels", (N, H, W, 3) uint8 -> "features", (N, ...) float32, equal to ``net``'s.

    Raises:
        NotLowered: an operation is not supported, or the weights exceed the size limit of an ONNX file.
        Exception: whatever the network's own code raises.
    """
    size = net.backbone.preprocessing
    shape_of = dict.fromkeys(BATCH_NORMS, _batch_norm_outputs)
    writer = GraphWriter(size.height, size.width, OPERATIONS, CONSTANT_FIRST, shape_of)
    with torch.inference_mode(False), torch.no_grad(), compiler_deferred():  # shape inference names it, no more
        return writer.finish(net(writer.pixels))


def _batch_norm_outputs(x: Tensor) -> tuple[Any, ...]:
    """PyTorch's own shape inference takes a millisecond for each BatchNorm."""
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)


BATCH_NORMS = ("_native_batch_norm_legit_no_training", "native_batch_norm")

CONSTANT_FIRST = frozenset({"add", "addmm", "bmm", "cat", "div", "mm", "mul", "sub"})
"""Operations whose first argument may be a constant."""

OPERATIONS: dict[str, Lowering] = {
    "_adaptive_avg_pool2d": layer.lower_adaptive_average,
    "_native_batch_norm_legit_no_training": layer.lower_batch_norm,
    "_reshape_alias": array.lower_reshape,
    "_scaled_dot_product_flash_attention_for_cpu": layer.lower_attention,
    "_safe_softmax": array.lower_softmax,
    "_softmax": array.lower_softmax,
    "_to_copy": array.lower_copy,
    "_unsafe_view": array.lower_reshape,
    "abs": array.elementwise("Abs"),
    "add": array.binary("Add"),
    "addmm": array.lower_addmm,
    "alias": array.lower_copy,
    "amax": array.reduction("ReduceMax", "GlobalMaxPool"),
    "as_strided": array.lower_as_strided,
    "avg_pool2d": layer.lower_average_pool,
    "bmm": array.lower_matmul,
    "cat": array.lower_cat,
    "clamp": array.lower_clamp,
    "clamp_min": array.lower_clamp,
    "clone": array.lower_copy,
    "constant_pad_nd": array.lower_pad,
    "convolution": layer.lower_convolution,
    "detach": array.lower_copy,
    "div": array.binary("Div"),
    "exp": array.elementwise("Exp"),
    "expand": array.lower_expand,
    "gelu": array.lower_gelu,
    "hardsigmoid": array.elementwise("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hardswish": array.elementwise("HardSwish"),
    "hardtanh": array.lower_hardtanh,
    "leaky_relu": array.lower_leaky_relu,
    "linalg_vector_norm": array.lower_vector_norm,
    "max_pool2d_with_indices": layer.lower_max_pool,
    "mean": array.reduction("ReduceMean", "GlobalAveragePool"),
    "mm": array.lower_matmul,
    "mul": array.binary("Mul"),
    "native_batch_norm": layer.lower_batch_norm,
    "native_group_norm": layer.lower_group_norm,
    "native_layer_norm": layer.lower_layer_norm,
    "neg": array.elementwise("Neg"),
    "permute": array.lower_permute,
    "pow": array.lower_power,
    "relu": array.elementwise("Relu"),
    "roll": array.lower_roll,
    "rsqrt": array.lower_rsqrt,
    "rsub": array.binary("Sub", reverse=True),
    "select": array.lower_select,
    "sigmoid": array.elementwise("Sigmoid"),
    "silu": array.lower_silu,
    "slice": array.lower_slice,
    "split": array.lower_split,
    "split_with_sizes": array.lower_split,
    "sqrt": array.elementwise("Sqrt"),
    "squeeze": array.lower_squeeze,
    "sub": array.binary("Sub"),
    "sum": array.reduction("ReduceSum"),
    "t": array.lower_permute,
    "tanh": array.elementwise("Tanh"),
    "transpose": array.lower_permute,
    "unbind": array.lower_unbind,
    "unsqueeze": array.lower_squeeze,
    "view": array.lower_reshape,
}
"""Name of an ATen operation -> its lowering."""
