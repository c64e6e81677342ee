"""ONNX graph writer: tensor operations are recorded as ONNX nodes while a network's own code runs.

PyTorch decomposes every layer into a few dozen basic operations (ATen). The network is called with a tensor subclass
that has a shape but no data. Each operation that depends on this tensor becomes a node; every other operation is
computed and becomes a constant. So only the operations have to be supported, not the layers.

The batch size is the only variable size: the tensor represents ``BATCH`` images, and an axis that counts images may
have any length in the graph. Every engine's output is compared with plain PyTorch's before the engine is used, which
detects a network that uses its batch in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from headstart.engine.torch_internals import disabled_torch_function, operation_name, returns_view, wrapper_tensor

INPUT, OUTPUT = "pixels", "features"

OPSET, IR_VERSION = 20, 9
"""Supported by ONNX Runtime from version 1.17 on."""

MAX_WEIGHT_BYTES = 1_900_000_000
"""Bytes of weights in one ONNX message, whose limit is 2 GB, with a margin for everything else."""

BATCH = 2
"""Images that the recorded tensor represents."""


class NotLowered(Exception):
    """The network uses an operation, or an argument of one, that is not supported."""


@dataclass(frozen=True)
class GraphValue:
    """A value of the graph: its name, and the axis that counts the images."""

    name: str
    batch: int


class _Memory:
    """State that is shared by a tensor and its views: the number of in-place changes."""

    changes = 0


class RecordedTensor(Tensor):
    """A tensor that depends on the images: it has a shape but no data, and operations on it are recorded."""

    shadow: Tensor
    writer: GraphWriter
    memory: _Memory
    changes: int
    _value: GraphValue | None

    __torch_function__ = disabled_torch_function

    @staticmethod
    def __new__(cls, shadow: Tensor, value: GraphValue | None, writer: GraphWriter, memory: _Memory) -> RecordedTensor:
        """A tensor that reports the CPU as its device; ``shadow`` has the same shape on the device "meta"."""
        recorded = wrapper_tensor(cls, shadow, torch.device("cpu"))
        recorded.shadow, recorded.writer, recorded.memory = shadow, writer, memory
        recorded._value, recorded.changes = value, memory.changes
        return recorded

    @property
    def value(self) -> GraphValue:
        """The tensor's value in the graph.

        Raises:
            NotLowered: there is none: it was overwritten through a view, or is an unsupported secondary output.
        """
        if self.changes != self.memory.changes or self._value is None:
            raise NotLowered("an overwritten value or a secondary output is read")
        return self._value

    @value.setter
    def value(self, value: GraphValue) -> None:
        self._value, self.changes = value, self.memory.changes

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Records an operation and returns its output."""
        kwargs = kwargs or {}
        writer = next(tensor.writer for tensor in _tensors((args, kwargs)) if isinstance(tensor, RecordedTensor))
        return writer.record(func, args, kwargs)


Lowering = Callable[..., "GraphValue | list[GraphValue]"]
"""(writer, PyTorch's output, the operation's arguments) -> the outputs' values in the graph."""


class GraphWriter:
    """An ONNX graph while it is recorded.

    Args:
        height: of the images.
        width: of the images.
        operations: name of an ATen operation -> function that adds its nodes.
        constant_first: names of operations whose first argument may be a constant.
        shape_of: name of an operation -> function (input, output tensors) for operations whose outputs PyTorch's own
            shape inference computes too slowly.
    """

    def __init__(
        self,
        height: int,
        width: int,
        operations: Mapping[str, Lowering],
        constant_first: Collection[str],
        shape_of: Mapping[str, Callable[[Tensor], Any]],
    ) -> None:
        self.operations, self.constant_first, self.shape_of = operations, constant_first, shape_of
        self.model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="headstart")
        self.model.opset_import.add(domain="", version=OPSET)
        self.nodes: list[onnx.NodeProto] = []
        self.producers: dict[str, onnx.NodeProto] = {}
        self.constants: dict[Any, tuple[str, Any]] = {}
        self.weight_bytes = 0
        shadow = torch.empty((BATCH, height, width, 3), dtype=torch.uint8, device="meta")
        self.pixels = RecordedTensor(shadow, GraphValue(INPUT, 0), self, _Memory())

    def record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Adds an operation to the graph and returns its output.

        Raises:
            NotLowered: the operation is not supported.
        """
        name = operation_name(func)
        in_place = name.endswith("_")
        key = name.rstrip("_") if in_place else name
        lower, first = self.operations.get(key), args[0]
        is_supported = isinstance(first, RecordedTensor) or (key in self.constant_first and not in_place)
        if lower is None or "out" in kwargs or not is_supported:
            raise NotLowered(f"the operation {name} is not supported")
        if in_place:
            value = lower(self, first, *args, **kwargs)
            first.memory.changes += 1
            first.value = cast(GraphValue, value)
            return first
        infer = self.shape_of.get(key)
        out = func(*_shadows(args), **_shadows(kwargs)) if infer is None else infer(first.shadow)
        value = lower(self, out, *args, **kwargs)
        values = iter([value] if isinstance(value, GraphValue) else value)
        return self._recorded(out, values, first.memory if returns_view(func) else None)

    def _recorded(self, out: Any, values: Iterator[GraphValue], memory: _Memory | None) -> Any:
        return _map(out, lambda shadow: RecordedTensor(shadow, next(values, None), self, memory or _Memory()))

    def node(self, kind: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Adds a node and returns the names of its outputs."""
        number = len(self.nodes)
        names = [f"v{number}" if outputs == 1 else f"v{number}_{i}" for i in range(outputs)]
        node = helper.make_node(kind, inputs, names, **attributes)
        self.nodes.append(node)
        self.producers.update(dict.fromkeys(names, node))
        return names

    def one(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output and returns its name."""
        return self.node(kind, inputs, **attributes)[0]

    def array(self, array: npt.NDArray[Any]) -> str:
        """Adds a constant and returns its name; equal small constants are stored once."""
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 16 else None
        if key in self.constants:
            return self.constants[key][0]
        self.weight_bytes += array.nbytes
        if self.weight_bytes > MAX_WEIGHT_BYTES:
            raise NotLowered("its weights exceed the size limit of an ONNX file")
        name = f"c{len(self.model.graph.initializer)}"
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        self.model.graph.initializer.add(name=name, data_type=kind, dims=array.shape, raw_data=array.tobytes())
        if key is not None:
            self.constants[key] = name, None
        return name

    def ints(self, *numbers: int) -> str:
        """Adds a constant list of integers and returns its name."""
        return self.array(np.array(numbers, np.int64))

    def name(self, x: Any) -> str:
        """The name of a tensor or number in the graph; adds a constant if needed."""
        if isinstance(x, RecordedTensor):
            return x.value.name
        if not isinstance(x, Tensor):
            return self.array(np.array(x, np.float32))
        if id(x) not in self.constants:
            array = x.detach().numpy()
            self.constants[id(x)] = self.array(array.astype(np.float32) if x.dtype == torch.float64 else array), x
        return self.constants[id(x)][0]

    def finish(self, out: Any) -> bytes:
        """The serialised model with the nodes that the network's output depends on.

        Raises:
            NotLowered: the output does not have one float32 entry per image.
        """
        if not isinstance(out, RecordedTensor) or out.value.batch != 0 or out.dtype != torch.float32:
            raise NotLowered("its output is not a float32 tensor with one entry per image")
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


def _map(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same nested lists and dictionaries with every tensor replaced."""
    if isinstance(tree, dict):
        return {key: _map(part, change) for key, part in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_map(part, change) for part in tree)
    return change(tree) if isinstance(tree, Tensor) else tree


def _shadows(tree: Any) -> Any:
    def shadow(x: Tensor) -> Tensor:
        return x.shadow if isinstance(x, RecordedTensor) else x.to("meta")

    return _map(tree, shadow)


def _tensors(tree: Any) -> list[Tensor]:
    """All tensors of nested lists and dictionaries, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    return [t for part in tree for t in _tensors(part)] if isinstance(tree, (list, tuple)) else []
