"""Shapes, operations and in-place changes in a traced network, found by running it on tensors without data."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from headstart.backbone.layers import BatchNorm
from headstart.concurrency import start_method_kept
from headstart.deferred_compiler import compiler_deferred
from headstart.engine.torch_internals import fake_tensors, flop_counter, version_of

BATCHES = (2, 3)
"""Batch sizes that the graph is run with, to find the sizes that depend on the batch."""


def record_shapes(graph: fx.Graph, module: nn.Module, height: int, width: int) -> list[ShapeRecorder]:
    """Runs a graph on images of one size, once for each of ``BATCHES``; operations are counted in the first run."""
    try:
        return record_on_meta(graph, module, height, width)
    except Exception:  # a network that creates tensors on a fixed device
        return record_with_fake_tensors(graph, module, height, width)


def record_on_meta(graph: fx.Graph, module: nn.Module, height: int, width: int) -> list[ShapeRecorder]:
    """Runs a graph on the device "meta", whose tensors have shapes but no data.

    Fake tensors give the same shapes, but their first use imports PyTorch's compiler, which takes two seconds.
    """
    tensors = [*module.parameters(), *module.buffers(), *(t for t in vars(module).values() if isinstance(t, Tensor))]
    copies: dict[int, Any] = {}
    for tensor in tensors:
        empty = torch.empty_like(tensor, device="meta")
        copies[id(tensor)] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
    device, shadow = next(module.parameters()).device, copy.deepcopy(module, copies)
    runs = []
    for count in BATCHES:
        recorder = ShapeRecorder(fx.GraphModule(shadow, graph), count_flops=count == BATCHES[0], device=device)
        with torch.inference_mode(False), torch.no_grad(), _UncountedAttention(), start_method_kept():
            recorder.run(blank_input(shadow, (count, 3, height, width)))
        runs.append(recorder)
    return runs


def record_with_fake_tensors(graph: fx.Graph, module: nn.Module, height: int, width: int) -> list[ShapeRecorder]:
    """Runs a graph on PyTorch's fake tensors, which have shapes and a device but no data."""
    runs = []
    for count in BATCHES:
        recorder = ShapeRecorder(fx.GraphModule(module, graph), count_flops=count == BATCHES[0])
        with torch.inference_mode(False), fake_tensors(), torch.no_grad(), start_method_kept():
            recorder.run(blank_input(module, (count, 3, height, width)))
        runs.append(recorder)
    return runs


def blank_input(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Zeros of a shape, with the device and dtype of a network's weights."""
    weight = next(module.parameters())
    return torch.zeros(shape, device=weight.device, dtype=weight.dtype)


class _UncountedAttention(TorchFunctionMode):
    """Attention returns its shape only, without its operations.

    On "meta" its matrix products would be counted, which a CPU's fused kernel hides. The counts decide which depths a
    run tries, so they must equal those on a CPU.
    """

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, _, value = (*args, *((kwargs or {})[name] for name in ("query", "key", "value")[len(args) :]))[:3]
        return query.new_empty((*query.shape[:-1], value.shape[-1]))


class ShapeRecorder(fx.Interpreter):
    """Runs a graph node by node on tensors without data, and records shapes and, if requested, operations.

    Args:
        module: the graph with its layers.
        count_flops: count floating-point operations too.
        device: of the network, if the layers are on the device "meta".
    """

    def __init__(self, module: fx.GraphModule, *, count_flops: bool, device: torch.device | None = None) -> None:
        super().__init__(module)
        self.count_flops, self.device = count_flops, device
        self.values: dict[str, Any] = {}
        self.tensors: set[str] = set()
        self.flops: dict[str, int] = {}
        self.versions: dict[str, tuple[Tensor, int]] = {}  # each tensor with its version when it was created

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the graph; some operations name PyTorch's compiler, none needs it."""
        with compiler_deferred():
            return super().run(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node and records its value."""
        if self.count_flops:
            with flop_counter() as counter:
                value = super().run_node(n)
            self.flops[n.name] = counter.get_total_flops()
        else:
            value = super().run_node(n)
        if any(isinstance(part, Tensor) for part in (value if isinstance(value, (tuple, list)) else [value])):
            self.tensors.add(n.name)
        if isinstance(value, Tensor):
            self.versions[n.name] = value, version_of(value)
        self.values[n.name] = value.shape if isinstance(value, Tensor) else value
        if isinstance(value, torch.device) and self.device is not None:
            self.values[n.name] = self.device  # a suffix may need the network's device, which is not "meta"
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a layer; BatchNorm only copies the shape of its input."""
        if isinstance(self.fetch_attr(target), BatchNorm):
            return torch.empty_like(args[0])  # PyTorch's shape inference for BatchNorm takes 75 % of the whole time
        return super().call_module(target, args, kwargs)

    def overwritten(self) -> set[str]:
        """Names of the nodes whose value was changed in place."""
        return {name for name, (value, version) in self.versions.items() if version_of(value) > version}
