"""Cutting a traced network: where it can be cut, and the graphs of its prefix and suffix."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx, nn

from headstart.backbone.layers import group_names
from headstart.backbone.tracing import TracedNetwork, asks_for_shape

_PASS_THROUGH = (nn.Identity, nn.Dropout)


def find_cuts(trace: TracedNetwork, module: nn.Module) -> dict[str, fx.Node]:
    """Where a network can be cut.

    Returns:
        Boundary name -> node, in execution order: the ends of layer groups and of their direct children.
    """
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
    cuts: dict[str, fx.Node] = {}
    pending: dict[fx.Node, int] = {}
    for i, node in enumerate(nodes[:-1]):
        if node in trace.depends_on_image:
            uses = [place[user] for user in node.users if not asks_for_shape(user)]
            pending[node] = max(uses, default=i)
        for other in [n for n, until in pending.items() if until <= i and n is not node]:
            del pending[other]
        single = node in trace.tensors and isinstance(trace.values[0][node], torch.Size)
        if list(pending) != [node] or not single or node is output_of or node.op == "placeholder":
            continue
        if node.op == "call_module" and isinstance(module.get_submodule(cast(str, node.target)), _PASS_THROUGH):
            continue
        names = [p for p in last if last[p] is node and any(p == g or p.rpartition(".")[0] == g for g in groups)]
        if names and _has_suffix(trace, node):
            cuts[min(names, key=lambda name: name.count("."))] = node
    return cuts


def _has_suffix(trace: TracedNetwork, cut: fx.Node) -> bool:
    try:
        suffix_graph(trace, cut)
    except NotReproducible:
        return False
    return True


class NotReproducible(Exception):
    """A suffix needs a value that can be computed neither from the activation's shape nor from the weights."""


def prefix_graph(trace: TracedNetwork, cut: fx.Node) -> fx.Graph:
    """The graph from the image to the value of a node."""
    needed, pending = {cut}, [cut]
    while pending:
        new = set(pending.pop().all_input_nodes) - needed
        needed |= new
        pending += new
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in trace.graph.nodes:
        if node in needed or node.op == "placeholder":
            copies[node] = graph.node_copy(node, lambda old: copies[old])
    graph.output(copies[cut])
    return graph


def suffix_graph(trace: TracedNetwork, cut: fx.Node) -> fx.Graph:
    """The graph from the value of a node to the output.

    Sizes and position tables that the suffix needs are computed again, with the sizes of the traced image as constants.

    Raises:
        NotReproducible: the suffix needs another value that depends on the image.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {cut: graph.placeholder("activation")}
    leading = tuple(values[cut][0] for values in trace.values)
    lead: list[fx.Node] = []

    def from_shape(one: Any, two: Any) -> Any:
        """A number that does not depend on the batch size, or is proportional to the activation's first axis."""
        if isinstance(one, (tuple, list)) and type(one) is type(two) and len(one) == len(two):
            return tuple(from_shape(a, b) for a, b in zip(one, two, strict=True))
        if one == two:
            return one
        if isinstance(one, int) and isinstance(two, int) and one * leading[1] == two * leading[0]:
            if not lead:
                lead.append(graph.call_method("size", (copies[cut], 0)))
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
        is_after = is_after or node is cut
    return graph


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
