"""Cutting a traced network: where it can be cut, and the graphs of its prefix and suffix."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn

from headstart.backbone.layers import group_names
from headstart.backbone.shapes import BATCHES
from headstart.backbone.tracing import TracedNetwork, asks_for_shape, features_beside

_PASS_THROUGH = (nn.Identity, nn.Dropout)


@dataclass(frozen=True)
class Cut:
    """A place where a network can be cut.

    Attributes:
        node: whose value the rest of the network is computed from.
        beside: nodes before it whose values, (N, features), the output contains unchanged.
    """

    node: fx.Node
    beside: tuple[fx.Node, ...] = ()

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """All nodes whose values cross the cut."""
        return (self.node, *self.beside)


def find_cuts(trace: TracedNetwork, module: nn.Module) -> dict[str, Cut]:
    """Where a network can be cut.

    Returns:
        Boundary name -> cut, in execution order: the ends of layer groups and of their direct children.
    """
    beside = {node for node in features_beside(trace.graph) if _is_vector(trace, node)}
    nodes, groups = list(trace.graph.nodes), group_names(module)
    place = {node: i for i, node in enumerate(nodes)}
    output_of = nodes[-1].all_input_nodes[0]
    last: dict[str, fx.Node] = {}
    for node in nodes:
        path = trace.layer_of[node]
        while path:
            if node in trace.depends_on_image:
                last[path] = node
            path = path.rpartition(".")[0]
    cuts: dict[str, Cut] = {}
    pending: dict[fx.Node, int] = {}
    for i, node in enumerate(nodes[:-1]):
        if node in trace.depends_on_image:
            uses = [place[user] for user in node.users if not asks_for_shape(user)]
            pending[node] = max(uses, default=i)
        for other in [n for n, until in pending.items() if until <= i and n is not node]:
            del pending[other]
        single = node in trace.tensors and isinstance(trace.values[0][node], torch.Size)
        cut = Cut(node, tuple(other for other in pending if other is not node))
        if node not in pending or not beside.issuperset(cut.beside) or node in beside:
            continue
        if not single or node is output_of or node.op == "placeholder":
            continue
        if cut.beside and trace.values[0][node][0] != BATCHES[0]:  # windows of several images in one axis
            continue
        if node.op == "call_module" and isinstance(module.get_submodule(cast(str, node.target)), _PASS_THROUGH):
            continue
        names = [p for p in last if last[p] is node and any(p == g or p.rpartition(".")[0] == g for g in groups)]
        if names and _has_suffix(trace, cut):
            cuts[min(names, key=lambda name: name.count("."))] = cut
    return cuts


def _is_vector(trace: TracedNetwork, node: fx.Node) -> bool:
    """True if the value of a node is one vector per image."""
    shape = trace.values[0][node]
    return isinstance(shape, torch.Size) and len(shape) == 2 and shape[0] == BATCHES[0]


def _has_suffix(trace: TracedNetwork, cut: Cut) -> bool:
    try:
        suffix_graph(trace, cut)
    except NotReproducible:
        return False
    return True


class NotReproducible(Exception):
    """A suffix needs a value that can be computed neither from the activation's shape nor from the weights."""


def prefix_graph(trace: TracedNetwork, cut: Cut) -> fx.Graph:
    """The graph from the image to the values at a cut: a tensor, or a tuple if there are values beside it."""
    needed, pending = set(cut.nodes), list(cut.nodes)
    while pending:
        new = set(pending.pop().all_input_nodes) - needed
        needed |= new
        pending += new
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in trace.graph.nodes:
        if node in needed or node.op == "placeholder":
            copies[node] = graph.node_copy(node, lambda old: copies[old])
    values = tuple(copies[node] for node in cut.nodes)
    graph.output(values if cut.beside else values[0])
    return graph


def suffix_graph(trace: TracedNetwork, cut: Cut) -> fx.Graph:
    """The graph from the values at a cut, one input each, to the output.

    Sizes and position tables that the suffix needs are computed again, with the sizes of the traced image as constants.

    Raises:
        NotReproducible: the suffix needs another value that depends on the image.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {cut.node: graph.placeholder("activation")}
    copies |= {node: graph.placeholder(f"beside_{place}") for place, node in enumerate(cut.beside)}
    leading = tuple(values[cut.node][0] for values in trace.values)
    lead: list[fx.Node] = []

    def from_shape(one: Any, two: Any) -> Any:
        """A number that does not depend on the batch size, or is proportional to the activation's first axis."""
        if isinstance(one, (tuple, list)) and type(one) is type(two) and len(one) == len(two):
            return tuple(from_shape(a, b) for a, b in zip(one, two, strict=True))
        if one == two:
            return one
        if isinstance(one, int) and isinstance(two, int) and one * leading[1] == two * leading[0]:
            if not lead:
                lead.append(graph.call_method("size", (copies[cut.node], 0)))
            first = lead[0]
            if one == leading[0]:
                return first
            return graph.call_function(_scaled, (first, one, leading[0]))
        raise NotReproducible(f"{one} and {two}")

    def needed(node: fx.Node) -> Any:
        if node not in copies:
            if node in trace.depends_on_image:
                raise NotReproducible(node.name)
            if node in trace.tensors:
                copies[node] = graph.node_copy(node, needed)
            else:
                copies[node] = from_shape(*(values[node] for values in trace.values))
        return copies[node]

    is_after = False
    for node in trace.graph.nodes:
        if is_after and (node in trace.depends_on_image or node.op == "output"):
            arguments = fx.map_arg(node.args, needed), fx.map_arg(node.kwargs, needed)
            if node.op == "output":
                graph.output(arguments[0][0])
            else:
                args, kwargs = cast("tuple[tuple[Any, ...], dict[str, Any]]", arguments)
                copies[node] = graph.create_node(node.op, node.target, args, kwargs, name=node.name)
        is_after = is_after or node is cut.node
    return graph


def join_values(graph: fx.Graph) -> None:
    """Makes the output of a graph one row per image, where it is the values at a cut with values beside it."""
    output = graph.output_node()
    first, *beside = cast("tuple[fx.Node, ...]", output.args[0])
    with graph.inserting_before(output):
        flat = graph.call_function(torch.flatten, (first, 1))
        joined = graph.call_function(torch.cat, ([flat, *beside], 1))
    output.args = (joined,)


def split_values(graph: fx.Graph, shape: tuple[int, ...], widths: Sequence[int]) -> fx.Node:
    """Makes the inputs of a graph one row per image, as ``join_values`` makes them.

    Args:
        graph: its first input is an activation, the others are values beside it.
        shape: of the activation of one image.
        widths: of the other values.

    Returns:
        The node of the activation.
    """
    first, *beside = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_before(first):
        rows = graph.placeholder("rows")
        values = graph.call_function(torch.split, (rows, [math.prod(shape), *widths], 1))
        flat = graph.call_function(operator.getitem, (values, 0))
        activation = graph.call_function(torch.unflatten, (flat, 1, shape)) if len(shape) > 1 else flat
        others = [graph.call_function(operator.getitem, (values, place)) for place in range(1, len(widths) + 1)]
    for old, new in zip([first, *beside], [activation, *others], strict=True):
        old.replace_all_uses_with(new)
        graph.erase_node(old)
    return activation


def _scaled(first: int, numerator: int, denominator: int) -> int:
    return first * numerator // denominator


def count_parameters(root: nn.Module, graph: fx.Graph) -> int:
    """Number of weights that a graph uses."""
    used = {id(p): p.numel() for node in graph.nodes for p in parameters_of(root, node)}
    return sum(used.values())


def parameters_of(root: nn.Module, node: fx.Node) -> list[nn.Parameter]:
    """Parameters that a node uses."""
    if node.op == "call_module":
        return list(root.get_submodule(cast(str, node.target)).parameters())
    if node.op == "get_attr":
        owner, _, attribute = cast(str, node.target).rpartition(".")
        value = getattr(root.get_submodule(owner), attribute)
        return [value] if isinstance(value, nn.Parameter) else []
    return []
