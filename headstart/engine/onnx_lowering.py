"""A frozen pass as an ONNX graph, written down as the network is called: a tenth of a second, where exporters take 15.

PyTorch takes every layer apart into a few dozen basic operations (ATen). The network is called with a tensor that has
a shape and no numbers. Each operation that depends on it becomes a node, everything else is done and becomes a
constant. So the layers that a network is made of need not be known, only the operations; one that is unknown ends it.

The batch is the one size that is not fixed: the tensor stands for two pictures, and an axis that counts them holds any
number in the graph. What a network does with its batch otherwise shows where its output is compared, which every
engine's is before it is trusted.
"""

# ruff: noqa: ARG001  (all operations are lowered by functions of one signature)

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from headstart.backbone.pixel_net import PixelNet

INPUT, OUTPUT = "pixels", "features"
OPSET, IR_VERSION = 20, 9
"""ONNX Runtime reads these from 1.17 on."""

LARGEST = 1_900_000_000
"""Bytes of weights that one ONNX message holds, with some room for the rest."""

_IMAGES = 2
_TYPES = {torch.float32: TensorProto.FLOAT, torch.uint8: TensorProto.UINT8, torch.int64: TensorProto.INT64}


class NotLowered(Exception):
    """The network does something that is not known here."""


def onnx_bytes(net: PixelNet) -> bytes:
    """The frozen pass for pictures of its size as an ONNX model; the same network gives the same bytes.

    Args:
        net: on the CPU, in float32.

    Returns:
        A serialised ``ModelProto``: "pixels", (N, H, W, 3) uint8 -> "features", (N, ...) float32, what ``net`` gives.

    Raises:
        NotLowered: an operation that is not known, or more weights than fit into one message.
        Exception: what the network's own code raises.
    """
    size = net.backbone.preprocessing
    writer = _Writer(size.height, size.width)
    with torch.inference_mode(False), torch.no_grad():
        return writer.finish(net(writer.pixels))


@dataclass(frozen=True)
class _Value:
    """What a tensor is called in the graph, and which axis of it counts the pictures."""

    name: str
    batch: int


class _Memory:
    """What a tensor and its views share."""

    changes = 0


class _Traced(Tensor):
    """A tensor that depends on the pictures: a shape without numbers; whatever is done with it is written down."""

    shadow: Tensor
    writer: _Writer
    memory: _Memory
    changes: int
    _value: _Value | None

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, shadow: Tensor, value: _Value | None, writer: _Writer, memory: _Memory) -> _Traced:
        """A tensor that says it lies on the CPU; ``shadow`` has the same shape on the device "meta"."""
        made: _Traced = torch.Tensor._make_wrapper_subclass(
            cls,
            shadow.size(),
            strides=shadow.stride(),
            storage_offset=shadow.storage_offset(),
            dtype=shadow.dtype,
            device=torch.device("cpu"),
        )
        made.shadow, made.writer, made.memory = shadow, writer, memory
        made._value, made.changes = value, memory.changes
        return made

    @property
    def value(self) -> _Value:
        """What the graph calls it.

        Raises:
            NotLowered: nothing: it was overwritten through a view of it, or it is a by-product.
        """
        if self.changes != self.memory.changes or self._value is None:
            raise NotLowered("what was overwritten is read, or a by-product")
        return self._value

    @value.setter
    def value(self, value: _Value) -> None:
        self._value, self.changes = value, self.memory.changes

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Has an operation written down; gives what it gives."""
        kwargs = kwargs or {}
        writer = next(tensor.writer for tensor in _tensors((args, kwargs)) if isinstance(tensor, _Traced))
        return writer.write(func, args, kwargs)


class _Writer:
    """The graph as far as it is written."""

    def __init__(self, height: int, width: int) -> None:
        self.model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="headstart")
        self.model.opset_import.add(domain="", version=OPSET)
        self.nodes: list[onnx.NodeProto] = []
        self.made_by: dict[str, onnx.NodeProto] = {}
        self.known: dict[Any, tuple[str, Any]] = {}
        self.bytes = 0
        shadow = torch.empty((_IMAGES, height, width, 3), dtype=torch.uint8, device="meta")
        self.pixels = _Traced(shadow, _Value(INPUT, 0), self, _Memory())

    def write(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Writes an operation down; gives what it gives."""
        name = func._schema.name.removeprefix("aten::")
        in_place = name.endswith("_")
        lower = _OPERATIONS.get(name.rstrip("_") if in_place else name)
        first = args[0]
        if (
            lower is None
            or "out" in kwargs
            or not (isinstance(first, _Traced) or (lower in _OF_SEVERAL and not in_place))
        ):
            raise NotLowered(f"{name} is not known")
        if in_place:
            value = lower(self, first, *args, **kwargs)
            first.memory.changes += 1
            first.value = cast(_Value, value)
            return first
        if lower is _batch_norm:  # PyTorch's own way to the shapes takes a millisecond for each
            out = torch.empty_like(first.shadow), *[first.shadow.new_empty(0)] * 2
        else:
            out = func(*_shadowed(args), **_shadowed(kwargs))
        values = iter([value] if isinstance(value := lower(self, out, *args, **kwargs), _Value) else value)
        views = any(made.alias_info is not None for made in func._schema.returns)
        return _map(out, lambda t: _Traced(t, next(values, None), self, first.memory if views else _Memory()))

    def node(self, kind: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Adds a node; the names of its outputs."""
        number = len(self.nodes)
        names = [f"v{number}" if outputs == 1 else f"v{number}_{i}" for i in range(outputs)]
        made = helper.make_node(kind, inputs, names, **attributes)
        self.nodes.append(made)
        self.made_by.update(dict.fromkeys(names, made))
        return names

    def one(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output; its name."""
        return self.node(kind, inputs, **attributes)[0]

    def array(self, array: npt.NDArray[Any]) -> str:
        """A constant; small ones that are equal are one."""
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 16 else None
        if key in self.known:
            return self.known[key][0]
        self.bytes += array.nbytes
        if self.bytes > LARGEST:
            raise NotLowered("its weights are larger than one ONNX file may be")
        name = f"c{len(self.model.graph.initializer)}"
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        self.model.graph.initializer.add(name=name, data_type=kind, dims=array.shape, raw_data=array.tobytes())
        if key is not None:
            self.known[key] = name, None
        return name

    def ints(self, *numbers: int) -> str:
        """A constant list of whole numbers."""
        return self.array(np.array(numbers, np.int64))

    def name(self, x: Any) -> str:
        """What a tensor or a number is called in the graph."""
        if isinstance(x, _Traced):
            return x.value.name
        if not isinstance(x, Tensor):
            return self.array(np.array(x, np.float32))
        if id(x) not in self.known:
            array = x.detach().numpy()
            self.known[id(x)] = self.array(array.astype(np.float32) if x.dtype == torch.float64 else array), x
        return self.known[id(x)][0]

    def finish(self, out: Any) -> bytes:
        """The whole, where ``out`` is what the network gave."""
        if not isinstance(out, _Traced) or out.value.batch != 0 or out.dtype != torch.float32:
            raise NotLowered("its output is none of pictures side by side")
        graph = self.model.graph
        graph.name = "headstart"
        ends = [(graph.input, INPUT, TensorProto.UINT8, self.pixels), (graph.output, OUTPUT, TensorProto.FLOAT, out)]
        for end, name, kind, tensor in ends:
            end.append(helper.make_tensor_value_info(name, kind, ["images", *tensor.shape[1:]]))
        needed, used = [helper.make_node("Identity", [out.value.name], [OUTPUT])], {out.value.name}
        for node in reversed(self.nodes):
            if not used.isdisjoint(node.output):
                used.update(node.input)
                needed.append(node)
        graph.node.extend(reversed(needed))
        data: bytes = self.model.SerializeToString()
        return data


def _map(tree: Any, change: Callable[[Any], Any]) -> Any:
    """The same lists and dictionaries with other tensors in them."""
    if isinstance(tree, dict):
        return {key: _map(part, change) for key, part in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_map(part, change) for part in tree)
    return change(tree) if isinstance(tree, Tensor) else tree


def _shadowed(tree: Any) -> Any:
    def shadow(x: Tensor) -> Tensor:
        return x.shadow if isinstance(x, _Traced) else x.to("meta")

    return _map(tree, shadow)


def _tensors(tree: Any) -> list[Tensor]:
    """All of them, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    return [t for part in tree for t in _tensors(part)] if isinstance(tree, (list, tuple)) else []


Lowering = Callable[..., "_Value | list[_Value]"]
"""(writer, what came out, the operation's own arguments) -> what its outputs are called."""


def _batch_of(*inputs: Any, rank: int) -> int:
    """The axis that counts pictures in the output of an elementwise operation."""
    axes = {x.value.batch + rank - x.ndim for x in inputs if isinstance(x, _Traced)}
    if len(axes) != 1:
        raise NotLowered("pictures are counted along different axes")
    return axes.pop()


def _elementwise(kind: str, **attributes: Any) -> Lowering:
    def lower(w: _Writer, out: Tensor, x: _Traced, *_: Any, **__: Any) -> _Value:
        return _Value(w.one(kind, w.name(x), **attributes), x.value.batch)

    return lower


def _operand(w: _Writer, x: Any, out: Tensor, batch: int) -> str:
    """An operand of an elementwise operation; a constant that was repeated for each picture is not."""
    if isinstance(x, Tensor) and not isinstance(x, _Traced) and x.ndim == out.ndim and x.shape[batch] > 1:
        first = x.narrow(batch, 0, 1)
        if x.shape[batch] == out.shape[batch]:
            if not torch.equal(x, first.expand_as(x)):
                raise NotLowered("a constant differs from picture to picture")
            return w.array(first.numpy())
    return w.name(x)


def _binary(kind: str, *, turned: bool = False) -> Lowering:
    def lower(w: _Writer, out: Tensor, x: Any, y: Any, alpha: float = 1, **unknown: Any) -> _Value:
        if unknown or out.dtype != torch.float32:
            raise NotLowered(f"{kind} of {out.dtype} {', '.join(unknown)}")
        batch = _batch_of(x, y, rank=out.ndim)
        first, second = (_operand(w, part, out, batch) for part in ((y, x) if turned else (x, y)))
        if alpha != 1:
            second = w.one("Mul", second, w.name(alpha))
        return _Value(w.one(kind, first, second), batch)

    return lower


def _same(w: _Writer, out: Tensor, x: _Traced, *_: Any, **__: Any) -> _Value:
    """The same numbers, in another layout or place."""
    if out.dtype == x.dtype:
        return x.value
    if out.dtype not in _TYPES:
        raise NotLowered(f"numbers of {out.dtype}")
    return _Value(w.one("Cast", w.name(x), to=_TYPES[out.dtype]), x.value.batch)


def _restrided(w: _Writer, out: Tensor, x: _Traced, size: Any, stride: Any, offset: Any = None) -> _Value:
    """What a mean over all places does to say that its output is channels last; no number moves."""
    if x.shape[2:] != (1, 1) or tuple(size) != x.shape or tuple(stride[:2]) != (x.shape[1], 1) or offset:
        raise NotLowered("numbers change places")
    return x.value


def _reshape(w: _Writer, out: Tensor, x: _Traced, *_: Any, **__: Any) -> _Value:
    """The same numbers in the same order."""
    if out.shape == x.shape:
        return x.value
    if x.value.batch != 0 or not out.ndim or out.shape[0] % _IMAGES:
        raise NotLowered("pictures are put together")
    return _Value(w.one("Reshape", w.name(x), w.ints(-1, *out.shape[1:])), 0)


def _permute(w: _Writer, out: Tensor, x: _Traced, *arguments: Any) -> _Value:
    order = list(range(x.ndim))
    if not arguments:
        order.reverse()
    elif isinstance(arguments[0], int):
        a, b = arguments
        order[a], order[b] = order[b], order[a]
    else:
        order = [axis % x.ndim for axis in arguments[0]]
    return _Value(w.one("Transpose", w.name(x), perm=order), order.index(x.value.batch))


def _squeezed(w: _Writer, out: Tensor, x: _Traced, *arguments: Any) -> _Value:
    """With an axis of length one more or less, before which pictures may be counted."""
    if x.value.batch == 0 and out.ndim and out.shape[0] == x.shape[0]:
        return _reshape(w, out, x)
    raise NotLowered("an axis before the pictures")


def _expand(w: _Writer, out: Tensor, x: _Traced, *_: Any, **__: Any) -> _Value:
    batch = x.value.batch + out.ndim - x.ndim
    shape = [1 if axis == batch else size for axis, size in enumerate(out.shape)]
    return _Value(w.one("Expand", w.name(x), w.ints(*shape)), batch)


def _slice(
    w: _Writer, out: Tensor, x: _Traced, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> _Value:
    value = x.value
    dim %= x.ndim
    if out.shape == x.shape:
        return value
    if dim == value.batch:
        raise NotLowered("pictures are told apart")
    first, last = (0 if start is None else start), (x.shape[dim] if end is None else min(end, x.shape[dim]))
    return _Value(w.one("Slice", value.name, w.ints(first), w.ints(last), w.ints(dim), w.ints(step)), value.batch)


def _without(x: _Traced, dim: int) -> int:
    """Where pictures are counted once an axis is gone."""
    batch = x.value.batch
    if dim == batch:
        raise NotLowered("pictures are told apart")
    return batch - (dim < batch)


def _select(w: _Writer, out: Tensor, x: _Traced, dim: int, index: int) -> _Value:
    dim %= x.ndim
    place = w.array(np.array(index % x.shape[dim], np.int64))
    return _Value(w.one("Gather", w.name(x), place, axis=dim), _without(x, dim))


def _unbind(w: _Writer, out: Sequence[Tensor], x: _Traced, dim: int = 0) -> list[_Value]:
    return [_select(w, part, x, dim, i) for i, part in enumerate(out)]


def _split(w: _Writer, out: Sequence[Tensor], x: _Traced, _: Any, dim: int = 0) -> list[_Value]:
    dim %= x.ndim
    _without(x, dim)
    sizes = [part.shape[dim] for part in out]
    names = w.node("Split", [w.name(x), w.ints(*sizes)], len(sizes), axis=dim)
    return [_Value(name, x.value.batch) for name in names]


def _cat(w: _Writer, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> _Value:
    parts = [part for part in parts if part.numel()]
    batch = _batch_of(*parts, rank=out.ndim)
    dim %= out.ndim
    if dim == batch:
        raise NotLowered("pictures are put together")
    names = [_operand(w, part, out, batch) for part in parts]
    if not all(isinstance(part, _Traced) for part in parts):
        images = w.one("Shape", INPUT, start=0, end=1)
        if any(part.shape[batch] != _IMAGES for part in parts):
            raise NotLowered("a constant beside parts of pictures")
        ones = (w.ints(*[1] * batch) if batch else "", w.ints(*[1] * (out.ndim - batch - 1)))
        shape = w.one("Concat", *filter(None, (ones[0], images, ones[1])), axis=0)
        names = [n if isinstance(p, _Traced) else w.one("Expand", n, shape) for n, p in zip(names, parts, strict=True)]
    return _Value(w.one("Concat", *names, axis=dim), batch)


def _convolution(
    w: _Writer,
    out: Tensor,
    x: _Traced,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> _Value:
    if transposed or isinstance(weight, _Traced):
        raise NotLowered("a convolution of another kind")
    source, before, behind = _padding_before(w, x, 0.0)
    pads = [a + b for a, b in zip(padding, before, strict=True)] + [a + b for a, b in zip(padding, behind, strict=True)]
    names = [source, w.name(weight), *([] if bias is None else [w.name(bias)])]
    made = w.one("Conv", *names, strides=stride, pads=pads, dilations=dilation, group=groups)
    return _Value(made, _first(x))


def _first(x: _Traced) -> int:
    if x.value.batch != 0:
        raise NotLowered("pictures are not counted by the first axis")
    return 0


def _padding_before(w: _Writer, x: _Traced, filling: float) -> tuple[str, list[int], list[int]]:
    """(name, (top, left), (bottom, right)): what was padded just before, which the next layer does by itself."""
    name, places = w.name(x), x.ndim - 2
    node = w.made_by.get(name)
    if node is None or node.op_type != "Pad" or node.input[2] != w.name(filling):
        return name, [0] * places, [0] * places
    data = next(t.raw_data for t in w.model.graph.initializer if t.name == node.input[1])
    pads = np.frombuffer(data, np.int64).tolist()
    return node.input[0], pads[2 : x.ndim], pads[x.ndim + 2 :]


def _pad(w: _Writer, out: Tensor, x: _Traced, pad: Sequence[int], value: float = 0) -> _Value:
    before, behind = [0] * x.ndim, [0] * x.ndim
    for i in range(len(pad) // 2):
        before[-1 - i], behind[-1 - i] = pad[2 * i], pad[2 * i + 1]
    batch = x.value.batch
    if before[batch] or behind[batch]:
        raise NotLowered("a padding between pictures")
    return _Value(w.one("Pad", w.name(x), w.ints(*before, *behind), w.name(float(value))), batch)


def _batch_norm(
    w: _Writer, out: Any, x: _Traced, weight: Any, bias: Any, mean: Any, variance: Any, *rest: Any
) -> list[_Value]:
    *training, _, eps = rest
    if any(training) or mean is None:
        raise NotLowered("a BatchNorm that looks at the other pictures")
    scale = torch.ones_like(mean) if weight is None else weight
    shift = torch.zeros_like(mean) if bias is None else bias
    names = [w.name(t) for t in (x, scale, shift, mean, variance)]
    return [_Value(w.one("BatchNormalization", *names, epsilon=eps), _first(x))]


def _layer_norm(
    w: _Writer, out: Any, x: _Traced, shape: Sequence[int], weight: Any, bias: Any, eps: float
) -> list[_Value]:
    scale = torch.ones(*shape) if weight is None else weight
    names = [w.name(t) for t in (x, scale, bias) if t is not None]
    made = w.one("LayerNormalization", *names, axis=-len(shape), epsilon=eps)
    if x.value.batch >= x.ndim - len(shape):
        raise NotLowered("a norm over pictures")
    return [_Value(made, x.value.batch)]


def _group_norm(
    w: _Writer,
    out: Any,
    x: _Traced,
    weight: Any,
    bias: Any,
    images: int,
    channels: int,
    places: int,
    groups: int,
    eps: float,
) -> list[_Value]:
    batch = _first(x)
    flat = w.one("Reshape", w.name(x), w.ints(-1, groups, channels // groups * places))
    ones, zeros = w.name(torch.ones(groups)), w.name(torch.zeros(groups))
    normal = w.one("InstanceNormalization", flat, ones, zeros, epsilon=eps)
    made = w.one("Reshape", normal, w.ints(-1, *x.shape[1:]))
    column = (channels, *[1] * (x.ndim - 2))
    for kind, tensor in (("Mul", weight), ("Add", bias)):
        if tensor is not None:
            made = w.one(kind, made, w.name(tensor.reshape(column)))
    return [_Value(made, batch)]


def _axes(x: Tensor, dims: Any) -> list[int]:
    given = range(x.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return sorted(axis % x.ndim for axis in given)


def _reduce(kind: str, whole: str = "") -> Lowering:
    def lower(w: _Writer, out: Tensor, x: _Traced, dims: Any = None, keepdim: bool = False, **_: Any) -> _Value:
        value, axes = x.value, _axes(x, dims)
        if value.batch in axes or out.dtype != torch.float32:
            raise NotLowered(f"{kind} over pictures")
        if whole and x.ndim == 4 and axes == [2, 3]:
            made = w.one(whole, value.name)
            return _Value(made if keepdim else w.one("Reshape", made, w.ints(-1, x.shape[1])), 0)
        batch = value.batch - (0 if keepdim else sum(axis < value.batch for axis in axes))
        return _Value(w.one(kind, value.name, w.ints(*axes), keepdims=int(keepdim)), batch)

    return lower


def _length(w: _Writer, out: Tensor, x: _Traced, order: float = 2, *arguments: Any, **options: Any) -> _Value:
    if order != 2:
        raise NotLowered(f"a norm of order {order}")
    return cast(_Value, _reduce("ReduceL2")(w, out, x, *arguments, **options))


def _pair(numbers: Any) -> list[int]:
    return [numbers] * 2 if isinstance(numbers, int) else list(numbers) * (2 if len(numbers) == 1 else 1)


def _ends(
    x: Tensor, out: Tensor, kernel: list[int], stride: list[int], pads: list[int], spread: list[int]
) -> list[int]:
    """How far the last window reaches beyond the far edges: 0 where it does not."""
    reach = [
        (n - 1) * s + d * (k - 1) + 1 - size - p
        for n, s, d, k, size, p in zip(out.shape[2:], stride, spread, kernel, x.shape[2:], pads, strict=True)
    ]
    return [max(0, r) for r in reach]


def _max_pool(
    w: _Writer,
    out: Any,
    x: _Traced,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil: bool = False,
) -> list[_Value]:
    batch, kernel = _first(x), _pair(kernel)
    stride, pads, spread = _pair(stride) if stride else kernel, _pair(padding), _pair(dilation)
    ends = _ends(x, out[0] if isinstance(out, tuple) else out, kernel, stride, pads, spread)
    made = w.one("MaxPool", w.name(x), kernel_shape=kernel, strides=stride, pads=pads + ends, dilations=spread)
    return [_Value(made, batch)]


def _average_pool(
    w: _Writer,
    out: Tensor,
    x: _Traced,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil: bool = False,
    count_padding: bool = True,
    divisor: int | None = None,
) -> _Value:
    batch, kernel = _first(x), _pair(kernel)
    stride, pads = _pair(stride) if stride else kernel, _pair(padding)
    ends = _ends(x, out, kernel, stride, pads, [1, 1])
    counted = int(count_padding and any(pads))
    if divisor is not None or (counted and any(end > pad for end, pad in zip(ends, pads, strict=True))):
        raise NotLowered("an average over a window that ends outside")
    if counted:
        ends = pads
    made = w.one(
        "AveragePool", w.name(x), kernel_shape=kernel, strides=stride, pads=pads + ends, count_include_pad=counted
    )
    return _Value(made, batch)


def _adaptive_average(w: _Writer, out: Tensor, x: _Traced, size: Any) -> _Value:
    if any(a % b for a, b in zip(x.shape[2:], out.shape[2:], strict=True)):
        raise NotLowered("an average over windows of several sizes")
    kernel = [a // b for a, b in zip(x.shape[2:], out.shape[2:], strict=True)]
    if kernel == [1, 1]:
        return x.value
    return _Value(w.one("AveragePool", w.name(x), kernel_shape=kernel, strides=kernel), _first(x))


def _addmm(w: _Writer, out: Tensor, bias: Tensor, x: Tensor, y: Tensor, beta: float = 1, alpha: float = 1) -> _Value:
    if not isinstance(x, _Traced) or isinstance(y, _Traced) or isinstance(bias, _Traced):
        raise NotLowered("a product of pictures")
    return _Value(w.one("Gemm", w.name(x), w.name(y), w.name(bias), alpha=float(alpha), beta=float(beta)), _first(x))


def _matmul(w: _Writer, out: Tensor, x: Tensor, y: Tensor) -> _Value:
    """Pictures lie side by side along the first axis of whatever depends on them."""
    if not {t.value.batch for t in (x, y) if isinstance(t, _Traced)} <= {0} or (x.ndim == 2 and isinstance(y, _Traced)):
        raise NotLowered("a product of pictures")
    names = [w.name(x), w.name(y)]
    if x.ndim == 3:
        names = [_operand(w, t, out, 0) for t in (x, y)]
    return _Value(w.one("MatMul", *names), 0)


def _softmax(w: _Writer, out: Tensor, x: _Traced, dim: int, *_: Any, **__: Any) -> _Value:
    if dim % x.ndim == x.value.batch:
        raise NotLowered("a softmax over pictures")
    return _Value(w.one("Softmax", w.name(x), axis=dim), x.value.batch)


def _attention(
    w: _Writer,
    out: Any,
    query: _Traced,
    key: Tensor,
    value: Tensor,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> list[_Value]:
    if dropout or causal or not all(isinstance(t, _Traced) for t in (query, key, value)):
        raise NotLowered("attention of another kind")
    if attn_mask is not None and attn_mask.dtype != torch.float32:
        raise NotLowered("an attention mask that is not added")
    factor = w.name(1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    turned = w.one("Transpose", w.name(key), perm=[0, 1, 3, 2])
    scores = w.one("MatMul", w.one("Mul", w.name(query), factor), turned)
    if attn_mask is not None:
        scores = w.one(
            "Add", scores, _operand(w, attn_mask, torch.empty((*query.shape[:3], key.shape[2]), device="meta"), 0)
        )
    return [_Value(w.one("MatMul", w.one("Softmax", scores, axis=-1), w.name(value)), _first(query))]


def _clip(w: _Writer, out: Tensor, x: _Traced, least: Any = None, most: Any = None) -> _Value:
    if any(isinstance(bound, Tensor) for bound in (least, most)):
        raise NotLowered("bounds that are tensors")
    bounds = ["" if bound is None else w.name(float(bound)) for bound in (least, most)]
    return _Value(w.one("Clip", w.name(x), *bounds), x.value.batch)


def _hardtanh(w: _Writer, out: Tensor, x: _Traced, least: float = -1.0, most: float = 1.0) -> _Value:
    return _clip(w, out, x, least, most)


def _leaky_relu(w: _Writer, out: Tensor, x: _Traced, slope: float = 0.01) -> _Value:
    return _Value(w.one("LeakyRelu", w.name(x), alpha=float(slope)), x.value.batch)


def _silu(w: _Writer, out: Tensor, x: _Traced) -> _Value:
    return _Value(w.one("Mul", w.name(x), w.one("Sigmoid", w.name(x))), x.value.batch)


def _gelu(w: _Writer, out: Tensor, x: _Traced, *, approximate: str = "none") -> _Value:
    return _Value(w.one("Gelu", w.name(x), approximate=approximate), x.value.batch)


def _power(w: _Writer, out: Tensor, x: _Traced, exponent: Any) -> _Value:
    if isinstance(exponent, Tensor):
        raise NotLowered("an exponent that is a tensor")
    return _Value(w.one("Pow", w.name(x), w.name(exponent)), x.value.batch)


def _rsqrt(w: _Writer, out: Tensor, x: _Traced) -> _Value:
    return _Value(w.one("Reciprocal", w.one("Sqrt", w.name(x))), x.value.batch)


def _roll(w: _Writer, out: Tensor, x: _Traced, shifts: Any, dims: Any = ()) -> _Value:
    value = x.value
    name = value.name
    for shift, dim in zip(shifts, dims, strict=True):
        if dim % x.ndim == value.batch:
            raise NotLowered("pictures change places")
        size = x.shape[dim]
        cut = -shift % size
        names = w.node("Split", [name, w.ints(cut, size - cut)], 2, axis=dim) if cut else [name]
        name = w.one("Concat", *names[::-1], axis=dim)
    return _Value(name, value.batch)


_ADD, _DIVIDE, _MULTIPLY, _SUBTRACT = (_binary(kind) for kind in ("Add", "Div", "Mul", "Sub"))

_OF_SEVERAL = (_ADD, _DIVIDE, _MULTIPLY, _SUBTRACT, _addmm, _cat, _matmul)
"""Whose first operand may be a constant."""

_OPERATIONS: dict[str, Lowering] = {
    "_adaptive_avg_pool2d": _adaptive_average,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_reshape_alias": _reshape,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_safe_softmax": _softmax,
    "_softmax": _softmax,
    "_to_copy": _same,
    "_unsafe_view": _reshape,
    "abs": _elementwise("Abs"),
    "add": _ADD,
    "addmm": _addmm,
    "alias": _same,
    "amax": _reduce("ReduceMax", "GlobalMaxPool"),
    "as_strided": _restrided,
    "avg_pool2d": _average_pool,
    "bmm": _matmul,
    "cat": _cat,
    "clamp": _clip,
    "clamp_min": _clip,
    "clone": _same,
    "constant_pad_nd": _pad,
    "convolution": _convolution,
    "detach": _same,
    "div": _DIVIDE,
    "exp": _elementwise("Exp"),
    "expand": _expand,
    "gelu": _gelu,
    "hardsigmoid": _elementwise("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hardswish": _elementwise("HardSwish"),
    "hardtanh": _hardtanh,
    "leaky_relu": _leaky_relu,
    "linalg_vector_norm": _length,
    "max_pool2d_with_indices": _max_pool,
    "mean": _reduce("ReduceMean", "GlobalAveragePool"),
    "mm": _matmul,
    "mul": _MULTIPLY,
    "native_batch_norm": _batch_norm,
    "native_group_norm": _group_norm,
    "native_layer_norm": _layer_norm,
    "neg": _elementwise("Neg"),
    "permute": _permute,
    "pow": _power,
    "relu": _elementwise("Relu"),
    "roll": _roll,
    "rsqrt": _rsqrt,
    "rsub": _binary("Sub", turned=True),
    "select": _select,
    "sigmoid": _elementwise("Sigmoid"),
    "silu": _silu,
    "slice": _slice,
    "split": _split,
    "split_with_sizes": _split,
    "sqrt": _elementwise("Sqrt"),
    "squeeze": _squeezed,
    "sub": _SUBTRACT,
    "sum": _reduce("ReduceSum"),
    "t": _permute,
    "tanh": _elementwise("Tanh"),
    "transpose": _permute,
    "unbind": _unbind,
    "unsqueeze": _squeezed,
    "view": _reshape,
}
