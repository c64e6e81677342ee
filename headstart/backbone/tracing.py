"""Tracing a backbone with torch.fx, and analysing its graph: shapes, operations, and what depends on the image."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from headstart.backbone.feature_spec import FeatureSpec
from headstart.backbone.layers import Layout
from headstart.backbone.pooling import Pooling, pooled
from headstart.backbone.shapes import record_shapes
from headstart.backbone.timm_layers import untraceable_functions, untraceable_modules
from headstart.concurrency import ProcessLock
from headstart.errors import OptionError, first_line

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
    trace: TracedNetwork,
    module: nn.Module,
    height: int,
    width: int,
    *,
    end: fx.Node | None = None,
    pool: Pooling = "auto",
    layers: Sequence[fx.Node] = (),
) -> TracedNetwork:
    """The same network with other features.

    Args:
        trace: of the network; its graph is changed.
        module: the network.
        height: of the images, in pixels.
        width: of the images, in pixels.
        end: the node that ends the network, whose value is pooled; later nodes are removed. None keeps the features.
        pool: how the value of ``end`` is pooled.
        layers: nodes whose means over all positions are appended to the features.
    """
    graph, layout = trace.graph, Layout.of(module)
    if end is not None:
        end_graph(graph, end, pool, layout)
    if layers:
        append_means(graph, layers, layout)
    layer_of = {node: trace.layer_of.get(node, "") for node in graph.nodes}
    return _analyse(graph, layer_of, module, height, width)


def end_graph(graph: fx.Graph, end: fx.Node, pool: Pooling, layout: Layout) -> None:
    """Ends a graph at a node, whose value is pooled."""
    graph.erase_node(graph.output_node())
    with graph.inserting_after(end):
        features = graph.call_function(pooled, (end, pool, layout.channels_last, layout.prefix_tokens))
    graph.output(features)
    drop_unused(graph)


def append_means(graph: fx.Graph, layers: Sequence[fx.Node], layout: Layout) -> None:
    """Appends the means over all positions of the values of some nodes to the output (N, D) of a graph."""
    output = graph.output_node()
    joined, means = output.all_input_nodes[0], list[fx.Node]()
    for node in layers:
        with graph.inserting_after(node):
            means.append(graph.call_function(pooled, (node, "avg", layout.channels_last, layout.prefix_tokens)))
    is_joined = joined.target is torch.cat and joined.args[1:] == (1,)  # as those of networks side by side
    features = joined.all_input_nodes if is_joined else [joined]
    with graph.inserting_before(output):
        output.args = (graph.call_function(torch.cat, ([*features, *means], 1)),)
    drop_unused(graph)


def features_beside(graph: fx.Graph) -> frozenset[fx.Node]:
    """Nodes whose values are part of the output and of nothing else, if the output is a concatenation."""
    joined = graph.output_node().all_input_nodes[0]
    if joined.target is not torch.cat:
        return frozenset()
    return frozenset(node for node in joined.all_input_nodes if list(node.users) == [joined])


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
    overwritten = runs[1].overwritten()
    one, two = ({node: run.values[node.name] for node in nodes if node.op != "output"} for run in runs)
    return TracedNetwork(
        graph=graph,
        layer_of=layer_of,
        depends_on_image=image_dependent(graph),
        values=(one, two),
        tensors=frozenset(node for node in nodes if node.name in runs[0].tensors),
        flops={node: runs[0].flops[node.name] for node in nodes},
        overwritten=frozenset(node for node in nodes if node.name in overwritten),
    )


def image_dependent(graph: fx.Graph) -> frozenset[fx.Node]:
    """Nodes whose value depends on the content of the image, not only on its shape."""
    first, *others = graph.nodes
    dependent = {first}  # the image; other inputs keep their defaults
    for node in others:
        if not asks_for_shape(node) and any(arg in dependent for arg in node.all_input_nodes):
            dependent.add(node)
    return frozenset(dependent)


def asks_for_shape(node: fx.Node) -> bool:
    """True if a node reads a tensor's shape, dtype or device."""
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES


def with_features(module: nn.Module, spec: FeatureSpec) -> nn.Module:
    """A timm network with other features, as a graph if torch.fx can trace it: (N, 3, H, W) -> features.

    Args:
        module: the network.
        spec: without ``cut``, which needs the freeze boundaries, see ``split.SplittableBackbone.whole``.

    Raises:
        OptionError: the network cannot be traced, or has no such layer, and ``spec`` has layers.
    """
    if spec.is_plain:
        return module
    tracer = _BackboneTracer(WHOLE if spec.pool == "auto" else BEFORE_POOLING)
    try:
        with TRACING:
            graph = tracer.trace(module)
    except Exception as error:  # torch.fx raises whatever the network's own code raises when traced
        if spec.layers:
            raise OptionError(
                f"layers {', '.join(spec.layers)}: torch.fx cannot trace this backbone ({first_line(error)}). Leave "
                "the option out."
            ) from error
        return _PooledNetwork(module, spec.pool)
    layers = [_last_node(graph, tracer.layer_of, name) for name in spec.layers]
    if spec.pool != "auto":
        end_graph(graph, graph.output_node().all_input_nodes[0], spec.pool, Layout.of(module))
    if layers:
        append_means(graph, layers, Layout.of(module))
    return fx.GraphModule(module, graph)


def _last_node(graph: fx.Graph, layer_of: dict[fx.Node, str], layer: str) -> fx.Node:
    """The node of a layer's output."""
    dependent = image_dependent(graph)
    found = [node for node in graph.nodes if node in dependent and f"{layer_of[node]}.".startswith(f"{layer}.")]
    if not found:
        raise OptionError(f"layers {layer}: the backbone has no such layer; headstart layers lists them.")
    last: fx.Node = found[-1]
    return last


class _PooledNetwork(nn.Module):
    """A timm network that cannot be traced, with its pooling replaced by another one."""

    def __init__(self, module: nn.Module, pool: Pooling) -> None:
        super().__init__()
        self.module, self.pool, self.layout = module, pool, Layout.of(module)

    def forward(self, x: Tensor) -> Tensor:
        x = cast(Any, self.module).forward_features(x)
        return pooled(x, self.pool, self.layout.channels_last, self.layout.prefix_tokens)
