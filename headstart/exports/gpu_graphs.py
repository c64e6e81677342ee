"""An ONNX file as two graphs for a GPU: the resize, which computes in float64, and the network without float64.

WebGPU has no float64, nor have the builds of ONNX Runtime Web with WebGPU. The weights of the network stay in the file:
the second graph refers to their bytes in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx

EXTERNAL_BYTES: Final = 1024
"""Size from which a weight is referred to instead of copied."""

LAYERS: Final = ("Conv", "Gemm", "MatMul")
"""Operators that have weights."""


def split_for_gpu(file: Path) -> tuple[bytes, bytes] | None:
    """The two graphs: from pixels to the tensors between them, and from those to the outputs.

    Args:
        file: an exported ONNX file with all weights in it.

    Returns:
        Two ONNX models, or None if the network computes in float64 too, or uses the pixels.
    """
    data = file.read_bytes()
    whole = onnx.load_from_string(data)
    types = _types(onnx.shape_inference.infer_shapes(whole).graph)
    first = _resize_nodes(whole.graph, types)
    made = {name for place in first for name in whole.graph.node[place].output}
    rest = [node for place, node in enumerate(whole.graph.node) if place not in first]
    between = sorted({name for node in rest for name in node.input if name in made})
    inputs = {value.name for value in whole.graph.input}
    if not between or not any(node.op_type in LAYERS for node in rest) or any(inputs & {*node.input} for node in rest):
        return None
    values = [onnx.helper.make_tensor_value_info(name, types[name], None) for name in between]
    resize = _model(whole, [whole.graph.node[place] for place in sorted(first)], list(whole.graph.input), values)
    network = _model(whole, rest, values, list(whole.graph.output))
    _refer_to_weights(network, data, file.name)
    return resize.SerializeToString(), network.SerializeToString()


def _types(graph: onnx.GraphProto) -> dict[str, int]:
    """Tensor -> type of its elements."""
    found = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input, *graph.output]}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _resize_nodes(graph: onnx.GraphProto, types: dict[str, int]) -> set[int]:
    """Positions of the nodes before the first layer with weights, and of all that float64 depends on."""
    maker = {name: place for place, node in enumerate(graph.node) for name in node.output}
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
    layers = [node for node in graph.node if node.op_type in LAYERS and any(name in weights for name in node.input)]
    double = onnx.TensorProto.DOUBLE
    waiting = [
        place
        for place, node in enumerate(graph.node)
        if any(types.get(name) == double for name in [*node.input, *node.output])
    ]
    waiting += [maker[name] for layer in layers[:1] for name in layer.input if name in maker]
    found: set[int] = set()
    while waiting:
        place = waiting.pop()
        if place not in found:
            found.add(place)
            waiting += [maker[name] for name in graph.node[place].input if name in maker]
    return found


def _model(
    whole: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in whole.graph.initializer if tensor.name in used]
    graph = onnx.helper.make_graph(nodes, "part", inputs, outputs, weights)
    return onnx.helper.make_model(graph, opset_imports=whole.opset_import, ir_version=whole.ir_version)


def _refer_to_weights(part: onnx.ModelProto, data: bytes, location: str) -> None:
    """Replaces weights by references to their bytes in the file; they are in the same order there."""
    position = 0
    for tensor in part.graph.initializer:
        if len(raw := tensor.raw_data) < EXTERNAL_BYTES:
            continue
        position = data.index(raw, position)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", position), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(value))
        position += len(raw)
