"""Splitting a backbone at a freeze boundary: a frozen prefix and a trainable suffix.

The network is traced by torch.fx. A node of its graph is a boundary if everything after it is a function of its value
and of nothing else that depends on the image's content. Sizes and position tables depend on the image's shape only; a
suffix that needs them computes them again, with the sizes of the traced shape as constants.

Prefix and suffix share the backbone's parameters and buffers: training the suffix trains the backbone.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import cast, final

import torch
from torch import Tensor, fx, nn

from headstart.backbone.cut_graphs import (
    Cut,
    count_parameters,
    find_cuts,
    join_values,
    parameters_of,
    prefix_graph,
    split_values,
    suffix_graph,
)
from headstart.backbone.feature_spec import PLAIN, FeatureSpec
from headstart.backbone.layers import Layout, evaluating, group_names
from headstart.backbone.shapes import BATCHES, blank_input
from headstart.backbone.side_by_side import SideBySide, members_of
from headstart.backbone.tracing import (
    BEFORE_POOLING,
    TRACING,
    WHOLE,
    TracedNetwork,
    drop_unused,
    end_network,
    trace_network,
    with_features,
)
from headstart.engine.torch_internals import TRACED_CONSTANT
from headstart.errors import OptionError, suggestion

HEAD = "head"
"""The boundary after the whole backbone: everything is frozen, the suffix is empty."""

INPUT = "input"
"""The boundary before the whole backbone: nothing is frozen, the prefix is empty."""


@dataclass(frozen=True)
class Boundary:
    """A freeze boundary: a point where a backbone can be cut.

    Attributes:
        name: the last layer before it, "blocks.4", "layer3.1"; ``INPUT`` and ``HEAD`` at the two ends.
        shape: of what one image is at the boundary, without the batch axis: the activation, or, where there are
            several values, each flattened, in the order of ``activations``.
        bytes_per_image: of this in half precision.
        cost_before: share of the forward pass's floating-point operations before it, 0-1.
        depth: the same of the first network alone, where several are side by side.
        parameters_after: number of weights after it, without the classifier's.
        activation_shape: of the activation of one image.
        other_shapes: of the activations of the networks beside the first one.
        beside: numbers of features of each earlier layer that bypass it.
    """

    name: str
    shape: tuple[int, ...]
    bytes_per_image: int
    cost_before: float
    depth: float
    parameters_after: int
    activation_shape: tuple[int, ...] = ()
    other_shapes: tuple[tuple[int, ...], ...] = ()
    beside: tuple[int, ...] = ()

    @property
    def value_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the values of one image: activations of every network, then the features that bypass it."""
        return (self.activation_shape, *self.other_shapes, *((width,) for width in self.beside))

    def activations(self, rows: Tensor) -> tuple[Tensor, ...]:
        """(N, *shape) -> the activation of each network, and the features that bypass the boundary, if any, as one."""
        shapes = [self.activation_shape, *self.other_shapes]
        if self.beside:
            shapes.append((sum(self.beside),))
        if len(shapes) == 1:
            return (rows,)
        parts = torch.split(rows, [math.prod(shape) for shape in shapes], 1)
        return tuple(part.reshape(len(rows), *shape) for part, shape in zip(parts, shapes, strict=True))


@final
class SplittableBackbone:
    """A backbone, complete or ended at an inner boundary, with its freeze boundaries from stem to head.

    Args:
        module: a timm network without a classifier, (N, 3, H, W) -> (N, D). It is traced in inference mode and not
            changed.
        height: of the images, in pixels; a suffix is valid for images of this size only.
        width: of the images, in pixels.
        spec: which outputs the features are.

    Raises:
        OptionError: ``spec.cut`` or one of ``spec.layers`` is not a boundary; lists the boundaries.

    Attributes:
        module: the network.
        boundaries: from stem to head; the first is ``INPUT``, the last ``HEAD``; only ``HEAD`` if there is an obstacle.
        obstacle: why the network can only be cut at the head, or "".
        layouts: of the activations of each network, the first one first.
    """

    def __init__(self, module: nn.Module, *, height: int, width: int, spec: FeatureSpec = PLAIN) -> None:
        self.module = module
        self.obstacle = ""
        self.layouts = [Layout.of(member) for member in members_of(module).values()]
        self.spec = spec
        self._cuts: dict[str, Cut] = {}
        self._parts: dict[str, list[tuple[str, list[str]]]] = {}
        with TRACING, evaluating(module):
            try:
                whole = spec.pool == "auto" or bool(spec.cut)
                self._trace = trace_network(module, height, width, WHOLE if whole else BEFORE_POOLING)
                self._cuts = find_cuts(self._trace, module)
            except Exception as error:  # torch.fx raises whatever the network's own code raises when traced
                self.obstacle = f"torch.fx cannot trace it: {' '.join(str(error).split())[:200]}"
            if not spec.is_plain:
                self._set_features(height, width)
            self.boundaries = self._list_boundaries(height, width)

    def _set_features(self, height: int, width: int) -> None:
        """Changes the traced network's features to those of ``spec``."""
        spec = self.spec
        for name in (*filter(None, [spec.cut]), *spec.layers):
            if self.obstacle or name not in self._cuts:
                verb = "cut" if name == spec.cut else "read"
                why = self.obstacle or f"it can be {verb} at {', '.join(self._cuts)}"
                raise OptionError(f"the backbone cannot be {verb} at {name!r}: {why}.{suggestion(name, self._cuts)}")
        if self.obstacle:
            return
        end = self._cuts[spec.cut].node if spec.cut else None
        if end is None and spec.pool != "auto":
            end = self._trace.graph.output_node().all_input_nodes[0]
        layers = [self._cuts[name].node for name in spec.layers]
        self._trace = end_network(self._trace, self.module, height, width, end=end, pool=spec.pool, layers=layers)
        self._cuts = find_cuts(self._trace, self.module)

    @property
    def feature_widths(self) -> tuple[int, ...]:
        """Number of features of each network, as they are in the output; of a single network that of all features."""
        if self.obstacle or not isinstance(self.module, SideBySide):
            return (math.prod(self.boundaries[-1].shape),)
        joined = self._trace.graph.output_node().all_input_nodes[0]
        return tuple(self._trace.values[0][node][1] for node in joined.all_input_nodes[: len(self.layouts)])

    def whole(self) -> nn.Module:
        """The complete network: (N, 3, H, W) -> (N, D) features, or the map if ``pool`` is "none"."""
        if self.spec.is_plain or self.obstacle:
            return with_features(self.module, self.spec)
        return fx.GraphModule(self.module, self._trace.graph)

    def copied(self) -> SplittableBackbone:
        """The same boundaries for a copy of the network, which can be trained without changing this one."""
        return self.of(copy.deepcopy(self.module))

    def of(self, module: nn.Module) -> SplittableBackbone:
        """The same boundaries for another network of the same architecture."""
        other = copy.copy(self)
        other.module = module
        for name, constant in vars(self.module).items():
            if name.startswith(TRACED_CONSTANT) and not hasattr(module, name):
                setattr(module, name, constant)
        return other

    def prefix(self, name: str) -> nn.Module:
        """The part before a boundary: (N, 3, H, W) -> the activation at the boundary.

        Raises:
            OptionError: no such boundary; lists the boundaries.
        """
        self._require(name)
        if name == INPUT:
            return nn.Identity()
        if name == HEAD:
            return self.whole()
        graph = prefix_graph(self._trace, self._cuts[name])
        if len(self._cuts[name].nodes) > 1:
            join_values(graph)
        return fx.GraphModule(self.module, graph)

    def suffix(self, name: str) -> nn.Module:
        """The part after a boundary: the activation -> (N, D) features, or the map if ``pool`` is "none".

        Raises:
            OptionError: no such boundary; lists the boundaries.
        """
        self._require(name)
        if name == HEAD:
            return nn.Identity()
        if name == INPUT:
            return fx.GraphModule(self.module, self._trace.graph)
        return self._after(name, suffix_graph(self._trace, self._cuts[name]))

    def halves(self, name: str) -> tuple[fx.GraphModule, fx.GraphModule]:
        """The parts before and after an inner boundary, with the activation itself between them.

        Returns:
            (N, 3, H, W) -> the activation, or a tuple of it, the activations of the networks beside the first one, and
            the features that bypass it; and the inverse: the same values, one argument each, -> features.

        Raises:
            OptionError: no such boundary; lists the boundaries.
        """
        self._require(name)
        cut = self._cuts[name]
        before, after = prefix_graph(self._trace, cut), suffix_graph(self._trace, cut)
        return fx.GraphModule(self.module, before), fx.GraphModule(self.module, after)

    def tapped(self, name: str, *, values: int | None = None) -> fx.GraphModule:
        """The complete network with more outputs: (N, 3, H, W) -> (N, D) features, and the values at a boundary.

        Args:
            name: of the boundary.
            values: how many of ``Boundary.value_shapes`` are given; all by default.

        Raises:
            OptionError: no such boundary, or ``INPUT`` or ``HEAD``; lists the boundaries.
        """
        self._require(name)
        if name in (INPUT, HEAD):
            raise OptionError(f"boundary {name!r}: expected an inner boundary.")
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        features = graph.graph_copy(self._trace.graph, copies)
        taps = []
        for node in self._cuts[name].nodes[:values]:
            with graph.inserting_after(copies[node]):
                taps.append(graph.call_method("clone", (copies[node],)))  # later layers may work in place
        graph.output((features, *taps))
        return fx.GraphModule(self.module, graph)

    def segment(self, first: str, last: str) -> nn.Module:
        """The part between two boundaries: the activation at ``first`` -> the activation at ``last``.

        Raises:
            OptionError: no such boundary, or ``last`` is not after ``first``.
        """
        self._require(first)
        self._require(last)
        order = [boundary.name for boundary in self.boundaries]
        if order.index(first) >= order.index(last):
            raise OptionError(f"boundary {last!r} is not after {first!r}.")
        if first == INPUT:
            return self.prefix(last)
        if last == HEAD:
            return self.suffix(first)
        graph = suffix_graph(self._trace, self._cuts[first])
        for node in list(graph.nodes):
            if node.op == "output":
                graph.erase_node(node)
        end = self._cuts[last]
        inputs = {f"beside_{place}": node.name for place, node in enumerate(self._cuts[first].nodes[1:])}
        found = {inputs.get(node.name, node.name): node for node in graph.nodes}
        values = tuple(found[node.name] for node in end.nodes)
        graph.output(values if len(values) > 1 else values[0])
        if len(values) > 1:
            join_values(graph)
        drop_unused(graph)
        return self._after(first, graph)

    def _after(self, name: str, graph: fx.Graph) -> fx.GraphModule:
        """A graph that begins at a boundary, whose inputs become one row per image if there are several.

        An activation is copied first if the next layers would overwrite it in place.
        """
        cut = self._cuts[name]
        values = [next(iter(graph.nodes))]
        if len(cut.nodes) > 1:
            boundary = next(b for b in self.boundaries if b.name == name)
            values = split_values(graph, boundary.value_shapes)
        for node, value in zip(cut.nodes, values, strict=True):
            if node in self._trace.overwritten:
                with graph.inserting_after(value):
                    copy = graph.call_method("clone", (value,))
                value.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)
        return fx.GraphModule(self.module, graph)

    def parts(self, name: str) -> list[tuple[str, list[str]]]:
        """The weights after a boundary, grouped by part, in execution order.

        A part is a layer group ("blocks.11" of a vision transformer, "norm"), or a child of a group that is a sequence
        of blocks ("blocks.5.0", "layer4.1"); weights that belong to no part are listed under the part before them.

        Returns:
            (part, names of its parameters in the network), from the boundary to the head.

        Raises:
            OptionError: no such boundary.
        """
        self._require(name)
        if name not in self._parts:
            self._parts[name] = [] if name == HEAD else self._find_parts(name)
        return self._parts[name]

    def _find_parts(self, name: str) -> list[tuple[str, list[str]]]:
        groups = group_names(self.module)
        names = {id(p): n for n, p in self.module.named_parameters()}
        found: dict[str, dict[str, None]] = {}
        part = name
        graph = self._trace.graph if name == INPUT else suffix_graph(self._trace, self._cuts[name])
        for node in graph.nodes:
            if used := [names[id(p)] for p in parameters_of(self.module, node)]:
                part = self._part_of(cast(str, node.target), groups) or part
                found.setdefault(part, {}).update(dict.fromkeys(used))
        return [(part, list(parameters)) for part, parameters in found.items()]

    def _part_of(self, target: str, groups: list[str]) -> str:
        path = target.split(".")
        depth = next((n for n in range(len(path), 0, -1) if ".".join(path[:n]) in groups), 0)
        if depth and isinstance(self.module.get_submodule(".".join(path[:depth])), nn.Sequential):
            depth += 1
        return ".".join(path[:depth])

    def _require(self, name: str) -> None:
        if name not in (names := [boundary.name for boundary in self.boundaries]):
            why = f" ({self.obstacle})" if self.obstacle else ""
            raise OptionError(f"no boundary named {name!r}. The boundaries are: {', '.join(names)}{why}.")

    def _list_boundaries(self, height: int, width: int) -> list[Boundary]:
        found = [_boundary(self._trace, name, cut) for name, cut in self._cuts.items() if cut.parameters_after]
        if self.obstacle:
            with torch.inference_mode():
                shape = self.whole()(blank_input(self.module, (1, 3, height, width))).shape[1:]
            return [Boundary(HEAD, tuple(shape), 2 * shape.numel(), 1.0, 1.0, 0, tuple(shape))]
        shape = self._trace.values[0][self._trace.graph.output_node().all_input_nodes[0]][1:]
        head = Boundary(HEAD, tuple(shape), 2 * shape.numel(), 1.0, 1.0, 0, tuple(shape))
        weights = count_parameters(self.module, self._trace.graph)
        image = (3, height, width)
        return [Boundary(INPUT, image, 2 * math.prod(image), 0.0, 0.0, weights, image), *found, head]


def _boundary(trace: TracedNetwork, name: str, cut: Cut) -> Boundary:
    def shape_of(node: fx.Node) -> tuple[int, ...]:
        whole = trace.values[0][node]
        return tuple(whole[1:]) if whole[0] == BATCHES[0] else (whole[0] // BATCHES[0], *whole[1:])

    shapes = [shape_of(node) for node in cut.nodes]
    numbers = sum(math.prod(shape) for shape in shapes)
    return Boundary(
        name=name,
        shape=(numbers,) if len(shapes) > 1 else shapes[0],
        bytes_per_image=2 * numbers,
        cost_before=1 - sum(trace.flops[node] for node in cut.after) / max(1, sum(trace.flops.values())),
        depth=cut.depth,
        parameters_after=cut.parameters_after,
        activation_shape=shapes[0],
        other_shapes=tuple(shapes[1 : 1 + len(cut.others)]),
        beside=tuple(math.prod(shape) for shape in shapes[1 + len(cut.others) :]),
    )
