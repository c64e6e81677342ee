"""Tracing a backbone with torch.fx, and analysing its graph: shapes, operations, and what depends on the image."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, fx, nn

from headstart.backbone.layers import Layout
from headstart.backbone.pooling import Pooling, pooled
from headstart.backbone.shapes import record_shapes
from headstart.backbone.timm_layers import untraceable_functions, untraceable_modules
from headstart.concurrency import ProcessLock

WHOLE, BEFORE_POOLING = "forward", "forward_features"
"""Timm's methods for the whole network, and for the network without its pooling."""

TRACING = ProcessLock()
"""Held while a network is traced: torch.fx replaces ``nn.Module.__call__`` for the whole process, and two traces that
overlap would leave it replaced."""

_SHAPE_ATTRIBUTES = frozenset({"shape", "dtype", "device", "ndim"})
_SHAPE_METHODS = frozenset({"size", "dim", "numel"})


@dataclass(frozen=True)
class TracedNetwork:
    """A traced network, and what running it without computing on batches of two sizes showed.

    Attributes:
        graph: of layers and functions.
        layer_of: node -> the layer that it belongs to.
        depends_on_image: nodes whose value depends on the content of the image, not only on its shape.
        values: for each batch size, node -> its value; a tensor's shape as ``torch.Size``.
        tensors: nodes whose value is a tensor or a sequence that contains one.
        flops: node -> floating-point operations for ``shapes.BATCHES[0]`` images.
        overwritten: nodes whose value a later node changes in place.
    """

    graph: fx.Graph
    layer_of: dict[fx.Node, str]
    depends_on_image: frozenset[fx.Node]
    values: tuple[dict[fx.Node, Any], dict[fx.Node, Any]]
    tensors: frozenset[fx.Node]
    flops: dict[fx.Node, int]
    overwritten: frozenset[fx.Node]


def trace(module: nn.Module) -> fx.GraphModule:
    """A network as a graph of its layers, which are shared, not copied.

    Raises:
        Exception: whatever the network's own code raises if torch.fx cannot trace it.
    """
    with TRACING:
        return fx.GraphModule(module, _BackboneTracer().trace(module))


class _BackboneTracer(fx.Tracer):
    """A torch.fx tracer that honours timm's list of untraceable modules and records the layer of each node.

    It traces calls of one thread only. Calls from other threads arrive here too, because torch.fx replaces methods
    of ``nn.Module`` itself; they are passed on unchanged.
    """

    def __init__(self, method: str = WHOLE) -> None:
        super().__init__(autowrap_functions=untraceable_functions())
        self.traced_func_name = method
        self.leaves = untraceable_modules()
        self.layer = ""
        self.layer_of: dict[fx.Node, str] = {}
        self.thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        parent, self.layer = self.layer, self.path_of_module(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self.layer = parent

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self.layer_of[node] = self.layer
        return node


def trace_network(module: nn.Module, height: int, width: int, method: str) -> TracedNetwork:
    """Traces and analyses a network for images of one size; ``method`` is ``WHOLE`` or ``BEFORE_POOLING``."""
    tracer = _BackboneTracer(method)
    graph = tracer.trace(module)
    return _analyse(graph, tracer.layer_of, module, height, width)


def end_network(
    trace: TracedNetwork, end: fx.Node, module: nn.Module, pool: Pooling, height: int, width: int
) -> TracedNetwork:
    """The same network ended at a node, whose value is pooled; the rest is removed."""
    end_graph(trace.graph, end, pool, Layout.of(module))
    layer_of = {node: trace.layer_of.get(node, "") for node in trace.graph.nodes}
    return _analyse(trace.graph, layer_of, module, height, width)


def end_graph(graph: fx.Graph, end: fx.Node, pool: Pooling, layout: Layout) -> None:
    """Ends a graph at a node, whose value is pooled."""
    graph.erase_node(graph.output_node())
    with graph.inserting_after(end):
        features = graph.call_function(pooled, (end, pool, layout.channels_last, layout.prefix_tokens))
    graph.output(features)
    drop_unused(graph)


def drop_unused(graph: fx.Graph) -> None:
    """Removes the nodes that the output does not depend on."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("output", "placeholder"):
            graph.erase_node(node)


def _analyse(
    graph: fx.Graph, layer_of: dict[fx.Node, str], module: nn.Module, height: int, width: int
) -> TracedNetwork:
    runs = record_shapes(graph, module, height, width)
    nodes = list(graph.nodes)
    dependent = {nodes[0]}  # the image; other inputs keep their defaults
    for node in nodes[1:]:
        if not asks_for_shape(node) and any(arg in dependent for arg in node.all_input_nodes):
            dependent.add(node)
    overwritten = runs[1].overwritten()
    one, two = ({node: run.values[node.name] for node in nodes if node.op != "output"} for run in runs)
    return TracedNetwork(
        graph=graph,
        layer_of=layer_of,
        depends_on_image=frozenset(dependent),
        values=(one, two),
        tensors=frozenset(node for node in nodes if node.name in runs[0].tensors),
        flops={node: runs[0].flops[node.name] for node in nodes},
        overwritten=frozenset(node for node in nodes if node.name in overwritten),
    )


def asks_for_shape(node: fx.Node) -> bool:
    """True if a node reads a tensor's shape, dtype or device."""
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES


def with_pooling(module: nn.Module, pool: Pooling) -> nn.Module:
    """A timm network with another pooling, as a graph if torch.fx can trace it: (N, 3, H, W) -> features."""
    if pool == "auto":
        return module
    try:
        with TRACING:
            graph = _BackboneTracer(BEFORE_POOLING).trace(module)
    except Exception:  # torch.fx raises whatever the network's own code raises when traced
        return _PooledNetwork(module, pool)
    end_graph(graph, graph.output_node().all_input_nodes[0], pool, Layout.of(module))
    return fx.GraphModule(module, graph)


class _PooledNetwork(nn.Module):
    """A timm network that cannot be traced, with its pooling replaced by another one."""

    def __init__(self, module: nn.Module, pool: Pooling) -> None:
        super().__init__()
        self.module, self.pool, self.layout = module, pool, Layout.of(module)

    def forward(self, x: Tensor) -> Tensor:
        x = cast(Any, self.module).forward_features(x)
        return pooled(x, self.pool, self.layout.channels_last, self.layout.prefix_tokens)
