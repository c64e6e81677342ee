"""ONNX: writing the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch

from headstart.backbone.weights import quiet
from headstart.errors import ExportError, first_line
from headstart.exports.graph import ExportGraph
from headstart.exports.metadata import INPUT, KEY, LOGGERS, OUTPUTS, ExportMetadata
from headstart.extras import require_extra
from headstart.files import write_atomically
from headstart.model import Model

OPSET = 20
"""Of the operators; ONNX Runtime reads it from 1.17 on."""

EXAMPLE = (2, 48, 80, 3)
"""Shape of the picture that the graph is captured with; no part of it is kept."""


def dynamic_shape(kind: Any = torch.export.Dim.DYNAMIC) -> dict[str, dict[int, Any]]:
    """Any number of pictures of any size."""
    return {INPUT: {0: kind, 1: kind, 2: kind}}


def onnx_graph(model: Model) -> onnx.ModelProto:
    """A model as an ONNX graph, raw pixels in, probabilities out.

    Raises:
        MissingExtra: onnxscript is not installed.
        ExportError: the exporter cannot express it, or it is larger than the format holds (2 GB).
    """
    require_extra("export", "exporting to ONNX")
    graph = ExportGraph(model)
    try:
        with quiet(*LOGGERS), torch.no_grad():
            program = torch.onnx.export(
                graph,
                (torch.zeros(EXAMPLE, dtype=torch.uint8),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(OUTPUTS[: 1 if graph.unlike is None else 2]),
                dynamic_shapes=dynamic_shape(),
                verbose=False,
            )
        assert program is not None
        proto: onnx.ModelProto = program.model_proto
    except Exception as error:  # the exporter raises its own, and what the network's code raises when it is captured
        raise ExportError(
            f"{model.net.backbone.architecture} cannot be exported to ONNX: {first_line(error)}."
        ) from error
    names = ("images", "height", "width")
    for place, name in enumerate(names):
        proto.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
    for output in proto.graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = names[0]
    return proto


def write_onnx(proto: onnx.ModelProto, metadata: ExportMetadata, file: Path) -> None:
    """Writes a graph with what it says of itself, which stands at the very end of the file.

    There a reader that has no access to ONNX's metadata (ONNX Runtime's for JavaScript) finds it as well.

    Raises:
        ExportError: it is larger than the format holds.
        OSError: it cannot be written.
    """
    graph = proto.graph
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for part in (proto, graph, *graph.node, *values):
        del part.metadata_props[:]  # among them the exporter's traces, which name folders of this machine
        part.ClearField("doc_string")
    onnx.helper.set_model_props(proto, {KEY: metadata.text()})
    try:
        data = proto.SerializeToString()
    except ValueError as error:
        raise ExportError(f"{file}: one ONNX file holds 2 GB at the most. Export it with --to torch.") from error
    assert data.endswith(metadata.text().encode())
    write_atomically(file, data)
