"""Fusion of convolution, BatchNorm and activation (BatchNorm folding).

With constant statistics, BatchNorm is a scale and a shift per channel, which can be merged into the convolution before
it: one pass over the activation instead of three. Two functions rewrite a traced network in this way, with the same
result as its original layers:

- ``fold_for_inference`` merges the weights once, in float32 or bfloat16, and computes each unit as one oneDNN call;
- ``fold_for_training`` merges them at every step from the network's parameters, which it trains, and computes the
  gradient of large depthwise filters faster (``depthwise.py``).
"""

from __future__ import annotations

import copy
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from headstart.backbone.timm_layers import batch_norm_with_activation, conv2d_same, same_padding
from headstart.engine.depthwise import depthwise_conv, evenly_padded, is_depthwise
from headstart.engine.torch_internals import (
    has_bfloat16_instructions,
    has_onednn_bfloat16,
    has_onednn_fused_convolution,
    onednn_fused_convolution,
)

Attribute = tuple[str, list[Any], str]
"""OneDNN's description of an activation: name, numbers, algorithm."""

_NO_ACTIVATION: Attribute = ("none", [], "")


@dataclass(frozen=True)
class Unit:
    """A convolution with the BatchNorm and activation that follow it, if nothing else uses its output.

    Attributes:
        conv: the convolution, which the network calls once.
        norm: the BatchNorm after it, with constant statistics, or None.
        activation: the elementwise function after these, or None.
        nodes: of the graph, first to last.
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None
    activation: nn.Module | None
    nodes: tuple[fx.Node, ...]


def find_units(traced: fx.GraphModule) -> list[Unit]:
    """The units of a traced network, in execution order.

    A convolution that is called more than once is excluded, because its inputs have different shapes and means.
    """
    num_calls = Counter(_module(traced, node) for node in traced.graph.nodes)
    units = []
    for node in traced.graph.nodes:
        conv = _module(traced, node)
        if type(conv) not in (nn.Conv2d, conv2d_same()) or num_calls[conv] > 1 or len(node.args) != 1:
            continue
        if cast(nn.Conv2d, conv).padding_mode == "zeros":
            units.append(_unit_from(traced, node, cast(nn.Conv2d, conv)))
    return units


@dataclass(frozen=True)
class UnitInput:
    """The input of a unit on a sample.

    Attributes:
        shape: (N, C, H, W).
        mean: (C,) float64, over images and positions.
    """

    shape: torch.Size
    mean: Tensor


def record_inputs(traced: fx.GraphModule, units: Sequence[Unit], sample: Tensor) -> list[UnitInput]:
    """Runs a sample and records the input of each unit.

    Args:
        traced: the network.
        units: of this network.
        sample: (N, 3, H, W), normalised.
    """
    inputs_of: dict[nn.Module, UnitInput] = {}

    def record(conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        inputs_of[conv] = UnitInput(inputs[0].shape, inputs[0].mean((0, 2, 3), dtype=torch.float64))

    hooks = [unit.conv.register_forward_pre_hook(record) for unit in units]
    try:
        with torch.inference_mode():
            traced(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return [inputs_of[unit.conv] for unit in units]


def can_fold_for_inference(device: torch.device) -> bool:
    """True if folding is faster on a device. On a CPU it needs oneDNN's convolution fused with an activation."""
    if device.type == "cpu":
        return has_onednn_fused_convolution()
    return device.type == "cuda"


def has_bfloat16(device: torch.device) -> bool:
    """True if a device has optimised convolutions in bfloat16; on a CPU with AVX-512 or newer."""
    if device.type == "cpu":
        return has_onednn_bfloat16()
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def has_fast_bfloat16(device: torch.device) -> bool:
    """True if a device has bfloat16 instructions; with AVX-512 alone oneDNN emulates them, slower than float32."""
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return has_bfloat16(device)
    return has_bfloat16(device) and has_bfloat16_instructions()


def fold_for_inference(
    traced: fx.GraphModule, units: Sequence[Unit], inputs: Sequence[UnitInput], *, low_precision_from: int | None = None
) -> fx.GraphModule:
    """The same network with each unit as one fused layer; its weights are copies.

    In bfloat16 most of the error would come from rounding the weights. Depthwise filters are rounded so that the sum of
    each filter is preserved (their inputs are similar, because they are neighbours), and the change of a channel's mean
    output that rounding causes is compensated by its bias, which stays in float32.

    Args:
        traced: the network, in inference mode.
        units: to fold.
        inputs: of the units, for the image size that the network will run on; it is valid for no other size.
        low_precision_from: index of the first unit that computes in bfloat16; None: all compute in float32.
    """

    def step(number: int) -> nn.Module:
        low = low_precision_from is not None and number >= low_precision_from
        return _FoldedConv(units[number], inputs[number], torch.bfloat16 if low else torch.float32)

    folded = _rewrite(traced, units, step)
    if low_precision_from is not None:
        _keep_others_in_float32(folded)
    return folded


def fold_for_training(traced: fx.GraphModule, dtype: torch.dtype) -> fx.GraphModule:
    """The same network with each unit as one fused layer that trains the network's parameters.

    Args:
        traced: the network, in inference mode: BatchNorm's statistics are constants, its scale and shift are trained if
            they require gradients. A BatchNorm in training mode is not folded.
        dtype: in which the units compute, and of their output; the parameters keep their dtype.
    """
    units = find_units(traced)
    return _rewrite(traced, units, lambda number: _TrainedConv(units[number], dtype))


class _FoldedConv(nn.Module):
    weight: Tensor
    bias: Tensor

    def __init__(self, unit: Unit, unit_input: UnitInput, dtype: torch.dtype) -> None:
        super().__init__()
        conv = unit.conv
        weight, bias = (t.detach() for t in _folded(unit, torch.float64))
        weight, self.padding, self.surround = _evenly_padding(conv, weight, unit_input.shape)
        if dtype != torch.float32:
            rounded = (_round_keeping_sums if is_depthwise(conv) else _round)(weight, dtype)
            bias = bias + _mean_response(weight - rounded, unit_input.mean.to(weight.device), conv.groups)
            weight = rounded
        self.dtype = dtype
        self.stride, self.dilation, self.groups = list(conv.stride), list(conv.dilation), conv.groups
        self.register_buffer("weight", weight.to(dtype).contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias.to(torch.float32))
        self.uses_onednn = weight.device.type == "cpu" and (dtype != torch.bfloat16 or has_bfloat16(weight.device))
        fused = _onednn_name(unit.activation) if self.uses_onednn else None
        self.attribute = fused or _NO_ACTIVATION
        self.activation = None if fused else unit.activation

    def forward(self, x: Tensor) -> Tensor:
        if self.surround:
            x = functional.pad(x, self.surround)
        x = x.to(self.dtype, memory_format=torch.channels_last)
        if self.uses_onednn:
            y = onednn_fused_convolution(
                x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups, *self.attribute
            )
        else:
            bias = self.bias.to(self.dtype)
            y = functional.conv2d(x, self.weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return cast(Tensor, y if self.activation is None else self.activation(y))


class _TrainedConv(nn.Module):
    def __init__(self, unit: Unit, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv = unit.conv
        self.norm = unit.norm
        self.activation = copy.copy(unit.activation)
        if hasattr(self.activation, "inplace"):  # an in-place change of a view makes autograd copy the activation
            cast(Any, self.activation).inplace = False
        self.unit = unit
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        exact = torch.promote_types(self.dtype, torch.float32)
        weight, bias = (t.to(self.dtype) for t in _folded(self.unit, exact))
        conv = self.conv
        x = x.to(self.dtype)
        if is_depthwise(conv):
            y = depthwise_conv(x, weight, bias, stride=conv.stride, padding=_edges(conv, x.shape))
        elif conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1 and not _pads(conv):
            rows = functional.linear(x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), weight.flatten(1), bias)
            y = rows.view(x.shape[0], x.shape[2], x.shape[3], -1).permute(0, 3, 1, 2)
        else:
            x, edge = evenly_padded(x, _edges(conv, x.shape))
            y = functional.conv2d(x, weight, bias, conv.stride, edge, conv.dilation, conv.groups)
        return cast(Tensor, y if self.activation is None else self.activation(y))


def _folded(unit: Unit, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(weight, bias) of the convolution merged with its BatchNorm; differentiable in the parameters of both."""
    weight = unit.conv.weight.to(dtype)
    bias = weight.new_zeros(len(weight)) if unit.conv.bias is None else unit.conv.bias.to(dtype)
    norm = unit.norm
    if norm is None:
        return weight, bias
    mean, variance = cast(Tensor, norm.running_mean).to(dtype), cast(Tensor, norm.running_var).to(dtype)
    scale = torch.rsqrt(variance + norm.eps)
    if norm.affine:
        scale = scale * norm.weight.to(dtype)
    bias = (bias - mean) * scale
    return weight * scale.view(-1, 1, 1, 1), bias + norm.bias.to(dtype) if norm.affine else bias


def _module(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(cast(str, node.target)) if node.op == "call_module" else None


def _unit_from(traced: fx.GraphModule, first: fx.Node, conv: nn.Conv2d) -> Unit:
    nodes = [first]
    norm: nn.BatchNorm2d | None = None
    activation: nn.Module | None = None
    while len(nodes[-1].users) == 1 and activation is None:
        node = next(iter(nodes[-1].users))
        module = _module(traced, node)
        if isinstance(module, nn.Identity):
            pass
        elif norm is None and type(module) in _batch_norms() and _is_constant(cast(nn.BatchNorm2d, module)):
            norm = cast(nn.BatchNorm2d, module)
            if isinstance(norm, batch_norm_with_activation()) and not isinstance(norm.act, nn.Identity):
                activation = cast(nn.Module, norm.act)
        elif module is not None and _onednn_name(module):
            activation = module
        else:
            break
        nodes.append(node)
    return Unit(conv, norm, activation, tuple(nodes))


def _batch_norms() -> tuple[type[nn.Module], ...]:
    return nn.BatchNorm2d, batch_norm_with_activation()


def _is_constant(norm: nn.BatchNorm2d) -> bool:
    return norm.running_mean is not None and not norm.training


def _onednn_name(activation: nn.Module | None) -> Attribute | None:
    """OneDNN's description of an activation; None if oneDNN does not have it or the module is not an activation."""
    if activation is None:
        return _NO_ACTIVATION
    if isinstance(activation, nn.Hardtanh):
        return "hardtanh", [float(activation.min_val), float(activation.max_val)], ""
    if isinstance(activation, nn.GELU):
        return "gelu", [], activation.approximate
    names = {nn.ReLU: "relu", nn.SiLU: "swish", nn.Hardswish: "hardswish", nn.Sigmoid: "sigmoid"}
    name = names.get(type(activation))
    return (name, [], "") if name else None


def _rewrite(traced: fx.GraphModule, units: Sequence[Unit], step: Callable[[int], nn.Module]) -> fx.GraphModule:
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(traced.graph, copies))
    rewritten = fx.GraphModule(traced, graph)
    for number, unit in enumerate(units):
        name = f"_unit{number}"
        rewritten.add_submodule(name, step(number))
        first, last = copies[unit.nodes[0]], copies[unit.nodes[-1]]
        with rewritten.graph.inserting_before(first):
            folded = rewritten.graph.call_module(name, first.args)
        last.replace_all_uses_with(folded)
        for node in reversed(unit.nodes):
            rewritten.graph.erase_node(copies[node])
    rewritten.delete_all_unused_submodules()
    rewritten.recompile()
    return rewritten


def _keep_others_in_float32(folded: fx.GraphModule) -> None:
    """Converts the inputs of all other layers with weights to float32; BatchNorm accepts both dtypes."""
    for node in folded.graph.nodes:
        module = _module(folded, node)
        if (
            not node.args
            or module is None
            or isinstance(module, (_FoldedConv, *_batch_norms()))
            or not list(module.parameters())
        ):
            continue
        with folded.graph.inserting_before(node):
            node.args = (folded.graph.call_method("float", (node.args[0],)), *node.args[1:])
    folded.recompile()


def _pads(conv: nn.Conv2d) -> bool:
    return isinstance(conv.padding, str) or any(conv.padding)


def _edges(conv: nn.Conv2d, shape: torch.Size) -> tuple[tuple[int, int], tuple[int, int]]:
    """((top, bottom), (left, right)) of the padding for an input shape."""
    both = []
    for axis in (0, 1):
        size, kernel = shape[2 + axis], conv.kernel_size[axis]
        if isinstance(conv, conv2d_same()) or conv.padding == "same":
            total = same_padding(size, kernel, conv.stride[axis], conv.dilation[axis])
            both.append((total // 2, total - total // 2))
        else:
            edge = 0 if conv.padding == "valid" else cast("tuple[int, int]", conv.padding)[axis]
            both.append((edge, edge))
    return both[0], both[1]


def _evenly_padding(conv: nn.Conv2d, weight: Tensor, shape: torch.Size) -> tuple[Tensor, list[int], list[int]]:
    """A kernel enlarged by zeros whose result with symmetric padding equals TensorFlow's "same" padding.

    Padding the activation instead would copy it, which takes longer than the convolution. Dilated convolutions need
    that, because no larger kernel is equivalent.

    Returns:
        The kernel; the symmetric padding (vertical, horizontal); padding of the activation: none, or [left, right, top,
        bottom].
    """
    (top, bottom), (left, right) = _edges(conv, shape)
    if (top, left) == (bottom, right):
        return weight, [top, left], []
    if tuple(conv.dilation) != (1, 1):
        return weight, [0, 0], [left, right, top, bottom]
    return functional.pad(weight, [right - left, 0, bottom - top, 0]), [bottom, right], []


def _round(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype).to(weight.dtype)


def _round_keeping_sums(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds (C, 1, h, w) filters with error diffusion, from the largest value of each filter to the smallest."""
    flat = weight.flatten(1)
    order = flat.abs().argsort(1, descending=True)
    rounded, error = torch.zeros_like(flat), flat.new_zeros(len(flat), 1)
    for index in torch.split(order, 1, dim=1):
        exact = flat.gather(1, index) + error
        nearest = _round(exact, dtype)
        rounded.scatter_(1, index, nearest)
        error = exact - nearest
    return rounded.view_as(weight)


def _mean_response(weight: Tensor, mean: Tensor, groups: int) -> Tensor:
    """(C_out,): output of a convolution whose input is the mean of each channel at every position."""
    inputs = mean.view(groups, 1, -1).expand(-1, len(weight) // groups, -1).reshape(len(weight), -1)
    return (weight.sum((2, 3)) * inputs).sum(1)
