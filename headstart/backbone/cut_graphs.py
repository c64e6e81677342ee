"""Cutting a traced network: where it can be cut, and the graphs of its prefix and suffix."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import fx, nn

from headstart.backbone.layers import group_names
from headstart.backbone.shapes import BATCHES
from headstart.backbone.side_by_side import JOINING, network_of, networks
from headstart.backbone.tracing import TracedNetwork, asks_for_shape, features_beside

_PASS_THROUGH = (nn.Identity, nn.Dropout)


@dataclass(frozen=True)
class Cut:
    """A place where a network, or several side by side, can be cut.

    Attributes:
        node: whose value the rest of the first network is computed from.
        others: the same of each network beside the first one.
        beside: nodes before it whose values, (N, features), the output contains unchanged.
        after: all nodes that are computed from values at the cut.
        depth: share of the floating-point operations of the first network up to ``node``, 0-1.
        parameters_after: number of weights that the part after the cut uses.
    """

    node: fx.Node
    others: tuple[fx.Node, ...]
    beside: tuple[fx.Node, ...]
    after: frozenset[fx.Node]
    depth: float
    parameters_after: int = 0

    @property
    def activations(self) -> tuple[fx.Node, ...]:
        """The nodes that layers follow."""
        return (self.node, *self.others)

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """All nodes whose values cross the cut."""
        return (*self.activations, *self.beside)


def find_cuts(trace: TracedNetwork, module: nn.Module) -> dict[str, Cut]:
    """Where a network can be cut.

    Networks side by side are cut together: wherever the first one can be, and each other one at the last place that
    is not deeper, in shares of its forward pass.

    Returns:
        Boundary name -> cut, in execution order: the ends of layer groups and of their direct children.
    """
    first, *others = (_cuts_of(trace, module, name) for name in networks(module))
    depths = _depths(trace, module)
    places = [[(depths[node], node) for node, _ in found.values()] for found in others]
    if not all(places):  # a network beside the first one cannot be cut
        return {}
    cuts = {}
    for name, (node, beside) in first.items():
        depth = depths[node]
        nodes = tuple(([other for share, other in found if share <= depth] or [found[0][1]])[-1] for found in places)
        cut = Cut(node, nodes, beside, _computed_from(trace, (node, *nodes, *beside)), depth)
        if len(cut.nodes) > 1 and any(trace.values[0][one][0] != BATCHES[0] for one in cut.activations):
            continue  # windows of several images in one axis
        try:
            suffix = suffix_graph(trace, cut)
        except NotReproducible:
            continue
        cuts[name] = replace(cut, parameters_after=count_parameters(module, suffix))
    return cuts


def _cuts_of(trace: TracedNetwork, module: nn.Module, network: str) -> dict[str, tuple[fx.Node, tuple[fx.Node, ...]]]:
    """Where one of the networks of a module can be cut: boundary name -> ``node`` and ``beside`` of ``Cut``."""
    nodes, groups = list(trace.graph.nodes), group_names(module)
    owner = {node: network_of(trace.layer_of[node], module) for node in nodes}
    own = (network, JOINING) if network == networks(module)[0] else (network,)  # averages of layers are of the first
    inside = {node for node in nodes if node.op == "placeholder" or owner[node] in own}
    beside = {node for node in features_beside(trace.graph) if node in inside and _is_vector(trace, node)}
    place = {node: i for i, node in enumerate(nodes)}
    output_of = nodes[-1].all_input_nodes[0]
    last: dict[str, fx.Node] = {}
    for node in nodes:
        path = trace.layer_of[node]
        while path:
            if node in trace.depends_on_image:
                last[path] = node
            path = path.rpartition(".")[0]
    cuts: dict[str, tuple[fx.Node, tuple[fx.Node, ...]]] = {}
    pending: dict[fx.Node, int] = {}
    for i, node in enumerate(nodes[:-1]):
        if node not in inside:
            continue
        if node in trace.depends_on_image:
            users = [user for user in node.users if not asks_for_shape(user)]
            uses = [place[user] for user in users if owner[user] in (network, JOINING)]
            pending[node] = max(uses, default=i)
        for other in [n for n, until in pending.items() if until <= i and n is not node]:
            del pending[other]
        single = node in trace.tensors and isinstance(trace.values[0][node], torch.Size)
        bypassing = tuple(other for other in pending if other is not node)
        if node not in pending or not beside.issuperset(bypassing) or node in beside:
            continue
        if not single or node is output_of or node.op == "placeholder":
            continue
        if node.op == "call_module" and isinstance(module.get_submodule(cast(str, node.target)), _PASS_THROUGH):
            continue
        names = [p for p in last if last[p] is node and any(p == g or p.rpartition(".")[0] == g for g in groups)]
        if names:
            cuts[min(names, key=lambda name: name.count("."))] = (node, bypassing)
    return cuts


def _depths(trace: TracedNetwork, module: nn.Module) -> dict[fx.Node, float]:
    """Node -> share of the floating-point operations of its network up to the node, 0-1."""
    until: dict[fx.Node, tuple[str, int]] = {}
    total: dict[str, int] = {}
    for node in trace.graph.nodes:
        network = network_of(trace.layer_of[node], module)
        total[network] = total.get(network, 0) + trace.flops[node]
        until[node] = network, total[network]
    return {node: flops / max(1, total[network]) for node, (network, flops) in until.items()}


def _computed_from(trace: TracedNetwork, given: Sequence[fx.Node]) -> frozenset[fx.Node]:
    """All other nodes that are computed from the values of some nodes."""
    found = set(given)
    for node in trace.graph.nodes:
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return frozenset(found.difference(given))


def _is_vector(trace: TracedNetwork, node: fx.Node) -> bool:
    """True if the value of a node is one vector per image."""
    shape = trace.values[0][node]
    return isinstance(shape, torch.Size) and len(shape) == 2 and shape[0] == BATCHES[0]


class NotReproducible(Exception):
    """A suffix needs a value that can be computed neither from the activation's shape nor from the weights."""


def prefix_graph(trace: TracedNetwork, cut: Cut) -> fx.Graph:
    """The graph from the image to the values at a cut: a tensor, or a tuple if there are several."""
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
    graph.output(values if len(values) > 1 else values[0])
    return graph


def suffix_graph(trace: TracedNetwork, cut: Cut) -> fx.Graph:
    """The graph from the values at a cut, one input each, to the output.

    Sizes and position tables that the suffix needs are computed again, with the sizes of the traced image as constants.

    Raises:
        NotReproducible: the suffix needs another value that depends on the image.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {cut.node: graph.placeholder("activation")}
    copies |= {node: graph.placeholder(f"beside_{place}") for place, node in enumerate(cut.nodes[1:])}
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

    for node in trace.graph.nodes:
        if node in cut.after and (node in trace.depends_on_image or node.op == "output"):
            arguments = fx.map_arg(node.args, needed), fx.map_arg(node.kwargs, needed)
            if node.op == "output":
                graph.output(arguments[0][0])
            else:
                args, kwargs = cast("tuple[tuple[Any, ...], dict[str, Any]]", arguments)
                copies[node] = graph.create_node(node.op, node.target, args, kwargs, name=node.name)
    return graph


def join_values(graph: fx.Graph) -> None:
    """Makes the output of a graph one row per image, where it is several values at a cut."""
    output = graph.output_node()
    values = cast("tuple[fx.Node, ...]", output.args[0])
    with graph.inserting_before(output):
        flat = [graph.call_function(torch.flatten, (value, 1)) for value in values]
        joined = graph.call_function(torch.cat, (flat, 1))
    output.args = (joined,)


def split_values(graph: fx.Graph, shapes: Sequence[tuple[int, ...]]) -> list[fx.Node]:
    """Makes the inputs of a graph one row per image, as ``join_values`` makes them.

    Args:
        graph: its inputs are the values at a cut.
        shapes: of each value of one image.

    Returns:
        The nodes of the values.
    """
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_before(inputs[0]):
        rows = graph.placeholder("rows")
        parts = graph.call_function(torch.split, (rows, [math.prod(shape) for shape in shapes], 1))
        flat = [graph.call_function(operator.getitem, (parts, place)) for place in range(len(shapes))]
        values = [
            graph.call_function(torch.unflatten, (one, 1, shape)) if len(shape) > 1 else one
            for one, shape in zip(flat, shapes, strict=True)
        ]
    for old, new in zip(inputs, values, strict=True):
        old.replace_all_uses_with(new)
        graph.erase_node(old)
    return values


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
