"""Cutting a backbone in two: a prefix that is frozen and a suffix that may be trained.

The network is traced by torch.fx. A node of its graph is a boundary where nothing else that depends on what the picture
shows is needed afterwards: what follows is a function of that one tensor. Sizes and position tables depend on the
picture's shape alone; a suffix that needs them works them out again, with the sizes of the traced shape as constants.

Both sides share the backbone's own parameters and buffers: training the suffix trains the backbone.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from timm import layers as timm_layers
from torch import Tensor, fx, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from headstart.backbone.layers import Layout, evaluating, group_names
from headstart.backbone.pooling import Pooling, pooled
from headstart.concurrency import ProcessLock
from headstart.errors import OptionError, suggestion

HEAD = "head"
"""The boundary behind the whole backbone: everything frozen, the suffix empty."""

INPUT = "input"
"""The boundary before the whole backbone: nothing frozen, the prefix empty."""

_BATCHES = (2, 3)
_WHOLE, _BEFORE_POOLING = "forward", "forward_features"
_SHAPE_ATTRIBUTES = frozenset({"shape", "dtype", "device", "ndim"})
_PASSING_ON = (nn.Identity, nn.Dropout)
_SHAPE_METHODS = frozenset({"size", "dim", "numel"})


TRACING = ProcessLock()
"""Held while a network is traced: torch.fx replaces ``nn.Module.__call__`` for the whole process meanwhile, and two
traces that overlap leave it replaced for good."""

_CONSTANT = "_tensor_constant"
"""What torch.fx calls tensors that a network makes in its forward pass; it leaves them on the network."""


@dataclass(frozen=True)
class Boundary:
    """A place where a backbone can be cut.

    Attributes:
        name: of the last layer before it, "blocks.4", "layer3.1"; ``INPUT`` and ``HEAD`` at the two ends.
        shape: of the activation of one picture, without the batch axis.
        bytes_per_image: of that activation in half precision.
        cost_before: share of the forward pass's floating-point operations that lie before it, 0-1.
        parameters_after: weights behind it; the classifier's are not counted.
    """

    name: str
    shape: tuple[int, ...]
    bytes_per_image: int
    cost_before: float
    parameters_after: int


@final
class SplittableBackbone:
    """A backbone, whole or ended at an inner boundary, with the places where it can be cut in two, from stem to head.

    Args:
        module: a timm network without a classifier, (N, 3, H, W) -> (N, D). It is traced in inference mode and not
            changed.
        height: of the pictures, in pixels; a suffix is good for pictures of this size only.
        width: of the pictures, in pixels.
        pool: how its end becomes features.
        cut: name of the boundary at which the backbone ends: what lies behind is left out; "" for none.

    Raises:
        OptionError: no such boundary to end at; lists those that there are.

    Attributes:
        module: the network.
        boundaries: from stem to head; the first is ``INPUT``, the last ``HEAD``; that alone where there is an obstacle.
        obstacle: why the network cannot be cut elsewhere than at the head, or "".
    """

    def __init__(self, module: nn.Module, *, height: int, width: int, pool: Pooling = "auto", cut: str = "") -> None:
        self.module = module
        self.obstacle = ""
        self.pool = pool
        self.cut = cut
        self._cuts: dict[str, fx.Node] = {}
        self._parts: dict[str, list[tuple[str, list[str]]]] = {}
        with TRACING, evaluating(module):
            try:
                self._trace = _trace(module, height, width, _WHOLE if pool == "auto" or cut else _BEFORE_POOLING)
                self._cuts = _find_cuts(self._trace, module)
            except Exception as error:  # torch.fx raises whatever the network's own code raises when traced
                self.obstacle = f"torch.fx cannot trace it: {' '.join(str(error).split())[:200]}"
            if cut and (self.obstacle or cut not in self._cuts):
                why = self.obstacle or f"it can be at {', '.join(self._cuts)}"
                raise OptionError(f"the backbone cannot be cut at {cut!r}: {why}.{suggestion(cut, self._cuts)}")
            if not self.obstacle and not self._is_plain:
                end = self._cuts[cut] if cut else self._trace.graph.output_node().all_input_nodes[0]
                self._trace = _ended(self._trace, end, module, pool, height, width)
                self._cuts = _find_cuts(self._trace, module)
            self.boundaries = self._list_boundaries(height, width)

    @property
    def _is_plain(self) -> bool:
        """Whether timm's own forward pass is meant."""
        return self.pool == "auto" and not self.cut

    def whole(self) -> nn.Module:
        """All of it: (N, 3, H, W) -> (N, D) features, or the map where nothing is pooled."""
        if self._is_plain or self.obstacle:
            return with_pooling(self.module, self.pool)
        return fx.GraphModule(self.module, self._trace.graph)

    def copied(self) -> SplittableBackbone:
        """The same cuts of a copy of the network, which may be trained without touching this one."""
        return self.of(copy.deepcopy(self.module))

    def of(self, module: nn.Module) -> SplittableBackbone:
        """The same cuts of another network of the same architecture."""
        other = copy.copy(self)
        other.module = module
        for name, constant in vars(self.module).items():
            if name.startswith(_CONSTANT) and not hasattr(module, name):
                setattr(module, name, constant)
        return other

    def prefix(self, name: str) -> nn.Module:
        """The frozen part before a boundary: (N, 3, H, W) -> the activation at the boundary.

        Raises:
            OptionError: no such boundary; lists those that there are.
        """
        self._require(name)
        if name == INPUT:
            return nn.Identity()
        if name == HEAD:
            return self.whole()
        return fx.GraphModule(self.module, _prefix_graph(self._trace, self._cuts[name]))

    def suffix(self, name: str) -> nn.Module:
        """The part behind a boundary: the activation -> (N, D) features, or the map where nothing is pooled.

        Raises:
            OptionError: no such boundary; lists those that there are.
        """
        self._require(name)
        if name == HEAD:
            return nn.Identity()
        if name == INPUT:
            return fx.GraphModule(self.module, self._trace.graph)
        suffix = fx.GraphModule(self.module, _suffix_graph(self._trace, self._cuts[name]))
        return self._sparing_its_input(suffix, name)

    def tapped(self, name: str) -> fx.GraphModule:
        """The whole network: (N, 3, H, W) -> its (N, D) features, and the activation at a boundary on the way there.

        Raises:
            OptionError: no such boundary but ``INPUT`` and ``HEAD``; lists those that there are.
        """
        self._require(name)
        if name in (INPUT, HEAD):
            raise OptionError(f"there is nothing to tap at {name}.")
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        features = graph.graph_copy(self._trace.graph, copies)
        cut = copies[self._cuts[name]]
        with graph.inserting_after(cut):
            tap = graph.call_method("clone", (cut,))  # the layers behind may work in place
        graph.output((features, tap))
        return fx.GraphModule(self.module, graph)

    def segment(self, first: str, last: str) -> nn.Module:
        """The part between two boundaries: the activation at ``first`` -> the activation at ``last``.

        Raises:
            OptionError: no such boundary, or ``last`` does not lie behind ``first``.
        """
        self._require(first)
        self._require(last)
        order = [boundary.name for boundary in self.boundaries]
        if order.index(first) >= order.index(last):
            raise OptionError(f"boundary {last} does not lie behind {first}.")
        if first == INPUT:
            return self.prefix(last)
        if last == HEAD:
            return self.suffix(first)
        graph = _suffix_graph(self._trace, self._cuts[first])
        for node in list(graph.nodes):
            if node.op == "output":
                graph.erase_node(node)
        end = next(node for node in graph.nodes if node.name == self._cuts[last].name)
        with graph.inserting_after(end):
            graph.output(end)
        _drop_unused(graph)
        return self._sparing_its_input(fx.GraphModule(self.module, graph), first)

    def _sparing_its_input(self, part: fx.GraphModule, name: str) -> fx.GraphModule:
        """Copies the activation at a boundary first where the network's next layers would overwrite it in place."""
        if self._cuts[name] in self._trace.overwritten:
            placeholder = next(iter(part.graph.nodes))
            with part.graph.inserting_after(placeholder):
                copy = part.graph.call_method("clone", (placeholder,))
            placeholder.replace_all_uses_with(copy, delete_user_cb=lambda user: user is not copy)
            part.recompile()
        return part

    def parts(self, name: str) -> list[tuple[str, list[str]]]:
        """The weights behind a boundary, by the part that they belong to, in execution order.

        A part is a layer group ("blocks.11" of a vision transformer, "norm"), or an entry of one that is a sequence of
        blocks ("blocks.5.0", "layer4.1"); weights that belong to none come under the part before them.

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
        graph = self._trace.graph if name == INPUT else _suffix_graph(self._trace, self._cuts[name])
        for node in graph.nodes:
            if own := [names[id(p)] for p in _parameters_of(self.module, node)]:
                part = self._part_of(cast(str, node.target), groups) or part
                found.setdefault(part, {}).update(dict.fromkeys(own))
        return [(part, list(own)) for part, own in found.items()]

    def _part_of(self, target: str, groups: list[str]) -> str:
        path = target.split(".")
        depth = next((n for n in (2, 1) if ".".join(path[:n]) in groups), 0)
        if depth and isinstance(self.module.get_submodule(".".join(path[:depth])), nn.Sequential):
            depth += 1
        return ".".join(path[:depth])

    def _require(self, name: str) -> None:
        if name not in (known := [boundary.name for boundary in self.boundaries]):
            why = f" ({self.obstacle})" if self.obstacle else ""
            raise OptionError(f"no boundary named {name!r}. There are: {', '.join(known)}{why}.")

    def _list_boundaries(self, height: int, width: int) -> list[Boundary]:
        found = [
            b
            for name, node in self._cuts.items()
            if (b := _boundary(self._trace, self.module, name, node)).parameters_after
        ]
        if self.obstacle:
            with torch.inference_mode():
                shape = self.whole()(_blank(self.module, (1, 3, height, width))).shape[1:]
            return [Boundary(HEAD, tuple(shape), 2 * shape.numel(), 1.0, 0)]
        shape = self._trace.values[0][self._trace.graph.output_node().all_input_nodes[0]][1:]
        head = Boundary(HEAD, tuple(shape), 2 * shape.numel(), 1.0, 0)
        weights = _count_parameters(self.module, self._trace.graph)
        return [Boundary(INPUT, (3, height, width), 6 * height * width, 0.0, weights), *found, head]


def with_pooling(module: nn.Module, pool: Pooling) -> nn.Module:
    """A timm network with another pooling, as a graph where torch.fx can trace it: (N, 3, H, W) -> features."""
    if pool == "auto":
        return module
    try:
        with TRACING:
            graph = _Tracer(_BEFORE_POOLING).trace(module)
    except Exception:  # torch.fx raises whatever the network's own code raises when traced
        return _Pooled(module, pool)
    _end(graph, graph.output_node().all_input_nodes[0], pool, Layout.of(module))
    return fx.GraphModule(module, graph)


class _Pooled(nn.Module):
    """A timm network that cannot be traced, up to where it would pool, and another pooling."""

    def __init__(self, module: nn.Module, pool: Pooling) -> None:
        super().__init__()
        self.module, self.pool, self.layout = module, pool, Layout.of(module)

    def forward(self, x: Tensor) -> Tensor:
        x = cast(Any, self.module).forward_features(x)
        return pooled(x, self.pool, self.layout.channels_last, self.layout.prefix_tokens)


@dataclass(frozen=True)
class _Traced:
    """A traced network, and what was seen when batches of two sizes were run through it without computing."""

    graph: fx.Graph
    layer_of: dict[fx.Node, str]
    shown: frozenset[fx.Node]
    """Nodes whose value depends on what the picture shows, and not on its shape alone."""
    values: tuple[dict[fx.Node, Any], dict[fx.Node, Any]]
    """Of each node: a tensor's shape as ``torch.Size``, anything else as it is."""
    tensors: frozenset[fx.Node]
    """Nodes whose value is a tensor, or several."""
    flops: dict[fx.Node, int]
    overwritten: frozenset[fx.Node]
    """Nodes whose value a later node changes in place."""


def trace(module: nn.Module) -> fx.GraphModule:
    """A network as a graph of its layers, which it shares.

    Raises:
        Exception: whatever the network's own code raises where torch.fx cannot trace it.
    """
    with TRACING:
        return fx.GraphModule(module, _Tracer().trace(module))


class _Tracer(fx.Tracer):
    """fx's tracer with timm's list of what to leave whole, noting the layer that each node belongs to.

    It traces what its own thread calls. Networks that other threads run meanwhile come here as well, since torch.fx
    replaces the methods of ``nn.Module`` itself; they run as if nobody traced.
    """

    def __init__(self, method: str = _WHOLE) -> None:
        super().__init__(autowrap_functions=tuple(cast(Any, timm_layers).get_notrace_functions()))
        self.traced_func_name = method
        self.whole = tuple(cast(Any, timm_layers).get_notrace_modules())
        self.inside = ""
        self.layer_of: dict[fx.Node, str] = {}
        self.thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.whole) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        outside, self.inside = self.inside, self.path_of_module(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self.inside = outside

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self.layer_of[node] = self.inside
        return node


class _Operations(FlopCounterMode):
    """Counts operations of this thread alone: torch's hooks that tell modules apart would run in every thread."""

    def __init__(self) -> None:
        super().__init__(display=False)
        self.mod_tracker = cast(Any, _OneModule())


class _OneModule:
    """In the place of ``ModuleTracker``: all operations belong to the whole."""

    parents = ("Global",)

    def __enter__(self) -> None:
        """Sets no hooks."""

    def __exit__(self, *_: object) -> None:
        """There are none to remove."""


class _UncountedAttention(TorchFunctionMode):
    """Attention gives its shape alone: on "meta" its products would be counted, which a CPU's fused kernel hides.

    The counts decide which depths a run tries, so they stay what they are on a CPU.
    """

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, _, value = (*args, *((kwargs or {})[name] for name in ("query", "key", "value")[len(args) :]))[:3]
        return query.new_empty((*query.shape[:-1], value.shape[-1]))


class _Recorder(fx.Interpreter):
    """Runs the graph node by node on tensors without content, and writes down shapes, and operations where wanted."""

    def __init__(self, module: fx.GraphModule, *, counting: bool, device: torch.device | None = None) -> None:
        super().__init__(module)
        self.counting, self.device = counting, device
        self.values: dict[str, Any] = {}
        self.tensors: set[str] = set()
        self.flops: dict[str, int] = {}
        self.made: dict[str, tuple[Tensor, int]] = {}
        """Each tensor with the count of its changes when it was made; views share their tensor's count."""

    def run_node(self, n: fx.Node) -> Any:
        if self.counting:
            with _Operations() as counter:
                value = super().run_node(n)
            self.flops[n.name] = counter.get_total_flops()
        else:
            value = super().run_node(n)
        if any(isinstance(part, Tensor) for part in (value if isinstance(value, (tuple, list)) else [value])):
            self.tensors.add(n.name)
        if isinstance(value, Tensor):
            self.made[n.name] = value, value._version
        self.values[n.name] = value.shape if isinstance(value, Tensor) else value
        if isinstance(value, torch.device) and self.device is not None:
            self.values[n.name] = self.device  # a suffix may need the network's device, which is not "meta"
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(self.fetch_attr(target), nn.modules.batchnorm._BatchNorm):
            return torch.empty_like(args[0])  # PyTorch takes three quarters of all this time to find the same
        return super().call_module(target, args, kwargs)

    def overwritten(self) -> set[str]:
        """Names of the nodes whose value was changed after it was made."""
        return {name for name, (value, version) in self.made.items() if value._version > version}


def _trace(module: nn.Module, height: int, width: int, method: str) -> _Traced:
    tracer = _Tracer(method)
    graph = tracer.trace(module)
    return _seen(graph, tracer.layer_of, module, height, width)


def _ended(trace: _Traced, end: fx.Node, module: nn.Module, pool: Pooling, height: int, width: int) -> _Traced:
    """The same graph with its output at a node, pooled; what lies behind that is gone."""
    _end(trace.graph, end, pool, Layout.of(module))
    layer_of = {node: trace.layer_of.get(node, "") for node in trace.graph.nodes}
    return _seen(trace.graph, layer_of, module, height, width)


def _end(graph: fx.Graph, end: fx.Node, pool: Pooling, layout: Layout) -> None:
    graph.erase_node(graph.output_node())
    with graph.inserting_after(end):
        features = graph.call_function(pooled, (end, pool, layout.channels_last, layout.prefix_tokens))
    graph.output(features)
    _drop_unused(graph)


def _drop_unused(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("output", "placeholder"):
            graph.erase_node(node)


def _seen(graph: fx.Graph, layer_of: dict[fx.Node, str], module: nn.Module, height: int, width: int) -> _Traced:
    try:
        runs = _shapes_on_meta(graph, module, height, width)
    except Exception:  # a network that makes tensors on a fixed device
        runs = _shapes_of_fake_tensors(graph, module, height, width)
    nodes = list(graph.nodes)
    shown = {nodes[0]}  # the picture; other inputs keep their defaults
    for node in nodes[1:]:
        if not _asks_shape(node) and any(arg in shown for arg in node.all_input_nodes):
            shown.add(node)
    overwritten = runs[1].overwritten()
    one, two = ({node: run.values[node.name] for node in nodes if node.op != "output"} for run in runs)
    return _Traced(
        graph=graph,
        layer_of=layer_of,
        shown=frozenset(shown),
        values=(one, two),
        tensors=frozenset(node for node in nodes if node.name in runs[0].tensors),
        flops={node: runs[0].flops[node.name] for node in nodes},
        overwritten=frozenset(node for node in nodes if node.name in overwritten),
    )


def _shapes_on_meta(graph: fx.Graph, module: nn.Module, height: int, width: int) -> list[_Recorder]:
    """Runs batches of two sizes through the graph on the device "meta", which has shapes and no numbers.

    ``FakeTensorMode`` gives the same shapes, but its first use imports PyTorch's compiler, which takes two seconds.
    """
    tensors = [*module.parameters(), *module.buffers(), *(t for t in vars(module).values() if isinstance(t, Tensor))]
    copies: dict[int, Any] = {}
    for tensor in tensors:
        empty = torch.empty_like(tensor, device="meta")
        copies[id(tensor)] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
    device, shadow = next(module.parameters()).device, copy.deepcopy(module, copies)
    runs = []
    for count in _BATCHES:
        recorder = _Recorder(fx.GraphModule(shadow, graph), counting=count == _BATCHES[0], device=device)
        with torch.inference_mode(False), torch.no_grad(), _UncountedAttention():
            recorder.run(_blank(shadow, (count, 3, height, width)))
        runs.append(recorder)
    return runs


def _shapes_of_fake_tensors(graph: fx.Graph, module: nn.Module, height: int, width: int) -> list[_Recorder]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    runs = []
    for count in _BATCHES:
        recorder = _Recorder(fx.GraphModule(module, graph), counting=count == _BATCHES[0])
        with torch.inference_mode(False), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            recorder.run(_blank(module, (count, 3, height, width)))
        runs.append(recorder)
    return runs


def _asks_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES


def _find_cuts(trace: _Traced, module: nn.Module) -> dict[str, fx.Node]:
    """Boundary name -> node, in execution order: the ends of groups and of their direct parts."""
    nodes, groups = list(trace.graph.nodes), group_names(module)
    place = {node: i for i, node in enumerate(nodes)}
    output_of = nodes[-1].all_input_nodes[0]
    last: dict[str, fx.Node] = {}
    for node in nodes:
        path = trace.layer_of[node]
        while path:
            if node in trace.shown:
                last[path] = node
            path = path.rpartition(".")[0]
    cuts: dict[str, fx.Node] = {}
    pending: dict[fx.Node, int] = {}
    for i, node in enumerate(nodes[:-1]):
        if node in trace.shown:
            uses = [place[user] for user in node.users if not _asks_shape(user)]
            pending[node] = max(uses, default=i)
        for other in [n for n, until in pending.items() if until <= i and n is not node]:
            del pending[other]
        single = node in trace.tensors and isinstance(trace.values[0][node], torch.Size)
        if list(pending) != [node] or not single or node is output_of or node.op == "placeholder":
            continue
        if node.op == "call_module" and isinstance(module.get_submodule(cast(str, node.target)), _PASSING_ON):
            continue
        names = [p for p in last if last[p] is node and any(p == g or p.rpartition(".")[0] == g for g in groups)]
        if names and _suffix_works(trace, node):
            cuts[min(names, key=lambda name: name.count("."))] = node
    return cuts


def _blank(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    weight = next(module.parameters())
    return torch.zeros(shape, device=weight.device, dtype=weight.dtype)


def _suffix_works(trace: _Traced, cut: fx.Node) -> bool:
    try:
        _suffix_graph(trace, cut)
    except _NotReproducible:
        return False
    return True


class _NotReproducible(Exception):
    """A value that a suffix needs follows neither from the activation's shape nor from the weights."""


def _prefix_graph(trace: _Traced, cut: fx.Node) -> fx.Graph:
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


def _suffix_graph(trace: _Traced, cut: fx.Node) -> fx.Graph:
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {cut: graph.placeholder("activation")}
    leading = tuple(values[cut][0] for values in trace.values)
    lead: list[fx.Node] = []

    def from_shape(one: Any, two: Any) -> Any:
        """A number that does not change with the batch, or grows with the activation's first axis."""
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
        raise _NotReproducible(f"{one} and {two}")

    def needed(node: fx.Node) -> Any:
        if node not in copies:
            if node in trace.shown:
                raise _NotReproducible(node.name)
            if node in trace.tensors:
                copies[node] = graph.node_copy(node, needed)
            else:
                copies[node] = from_shape(*(values[node] for values in trace.values))
        return copies[node]

    behind = False
    for node in trace.graph.nodes:
        if behind and (node in trace.shown or node.op == "output"):
            arguments = fx.map_arg(node.args, needed), fx.map_arg(node.kwargs, needed)
            if node.op == "output":
                graph.output(arguments[0][0])
            else:
                args, kwargs = cast("tuple[tuple[Any, ...], dict[str, Any]]", arguments)
                copies[node] = graph.create_node(node.op, node.target, args, kwargs, name=node.name)
        behind = behind or node is cut
    return graph


def _scaled(first: int, numerator: int, denominator: int) -> int:
    return first * numerator // denominator


def _boundary(trace: _Traced, module: nn.Module, name: str, cut: fx.Node) -> Boundary:
    nodes = list(trace.graph.nodes)
    before = sum(trace.flops[node] for node in nodes[: nodes.index(cut) + 1])
    shape = trace.values[0][cut]
    elements = shape.numel() // _BATCHES[0]
    suffix = _suffix_graph(trace, cut)
    return Boundary(
        name=name,
        shape=tuple(shape[1:]) if shape[0] == _BATCHES[0] else (shape[0] // _BATCHES[0], *shape[1:]),
        bytes_per_image=2 * elements,
        cost_before=before / max(1, sum(trace.flops.values())),
        parameters_after=_count_parameters(module, suffix),
    )


def _count_parameters(root: nn.Module, graph: fx.Graph) -> int:
    used = {id(p): p.numel() for node in graph.nodes for p in _parameters_of(root, node)}
    return sum(used.values())


def _parameters_of(root: nn.Module, node: fx.Node) -> list[nn.Parameter]:
    if node.op == "call_module":
        return list(root.get_submodule(cast(str, node.target)).parameters())
    if node.op == "get_attr":
        owner, _, attribute = cast(str, node.target).rpartition(".")
        value = getattr(root.get_submodule(owner), attribute)
        return [value] if isinstance(value, nn.Parameter) else []
    return []
