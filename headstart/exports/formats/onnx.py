"""ONNX: writing a model as an ONNX file. Variant: int8.

Whatever needs PyTorch or the model is imported when a file is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headstart.errors import ExportError, first_line
from headstart.exports.formats.interface import ExportFormat, QuantizedLayers, WriteRequest, WrittenFiles
from headstart.exports.metadata import INPUT, KEY, LOGGERS, OUTPUTS, ExportMetadata, sealed, to_be_sealed
from headstart.exports.snippets import cpp_snippet, javascript_snippet, python_snippet
from headstart.extras import require_extra
from headstart.files import write_atomically

if TYPE_CHECKING:
    import onnx

    from headstart.model import Model

NAME, INT8 = "onnx", "int8"

OPSET = 20
"""Version of the operator set; ONNX Runtime reads it from version 1.17 on."""


def onnx_graph(model: Model) -> onnx.ModelProto:
    """A model as an ONNX graph from raw pixels to probabilities.

    Raises:
        MissingExtra: onnxscript is not installed.
        ExportError: the exporter cannot express the model, or it exceeds the 2 GB that the format can hold.
    """
    require_extra("export", "exporting to ONNX")
    import torch

    from headstart.exports.graph import capture
    from headstart.quiet import quiet

    captured = capture(model)
    try:
        with quiet(*LOGGERS), torch.no_grad():
            program = torch.onnx.export(
                captured,
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(OUTPUTS[: 1 if model.ood_detector is None else 2]),
                verbose=False,
            )
        assert program is not None
        proto: onnx.ModelProto = program.model_proto
    except Exception as error:  # the exporter raises errors of many types, also those of the network's code
        raise ExportError(
            f"{model.net.backbone.architecture} cannot be exported to ONNX: {first_line(error)}."
        ) from error
    _name_dimensions(proto)
    return proto


def _name_dimensions(proto: onnx.ModelProto) -> None:
    names = ("images", "height", "width")
    for place, name in enumerate(names):
        proto.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
    for output in proto.graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = names[0]


def write_onnx(proto: onnx.ModelProto, metadata: ExportMetadata, file: Path) -> None:
    """Writes a graph with its metadata, which are at the very end of the file.

    A reader without access to ONNX's metadata, such as ONNX Runtime for JavaScript, finds them there too.

    Raises:
        ExportError: the graph exceeds what the format can hold.
        OSError: the file cannot be written.
    """
    import onnx

    graph = proto.graph
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for part in (proto, graph, *graph.node, *values):
        del part.metadata_props[:]  # with the exporter's stack traces, which name folders of this machine
        part.ClearField("doc_string")
    text = to_be_sealed(metadata).text()
    onnx.helper.set_model_props(proto, {KEY: text})
    try:
        data = proto.SerializeToString()
    except ValueError as error:
        raise ExportError(
            f"{file}: the model exceeds 2 GB, the limit of an ONNX file. Export to torch (--to torch)."
        ) from error
    assert data.endswith(text.encode())
    write_atomically(file, sealed(data))


def _write(request: WriteRequest) -> WrittenFiles:
    import torch

    from headstart.engine.onnx_runtime import onnxruntime
    from headstart.exports.graph import export_metadata

    proto = onnx_graph(request.model)
    versions = {"torch": str(torch.__version__), "onnxruntime": onnxruntime.__version__, "opset": str(OPSET)}
    metadata = export_metadata(request.model, written_with=versions)
    if not request.variant:
        write_onnx(proto, metadata, request.file)
        return WrittenFiles(metadata, {NAME: request.file})
    from headstart.exports.formats.int8 import quantize_int8

    count = len(request.calibration_images)
    request.progress.say(f"Measuring ranges of activations on {count:,} images that are not used in the comparison.")
    small = quantize_int8(proto, request.calibration_images, metadata)
    float32 = request.scratch / "float32.onnx"
    write_onnx(proto, metadata, float32)
    metadata = export_metadata(request.model, written_with=versions, precision=request.variant)
    write_onnx(small, metadata, request.file)
    return WrittenFiles(metadata, {NAME: float32, f"{NAME} {request.variant}": request.file})


def _count_quantized(file: Path) -> QuantizedLayers:
    import onnx

    from headstart.exports.formats.int8 import quantized_layers

    try:
        return quantized_layers(onnx.load(file))
    except ExportError as error:
        raise ExportError(f"{file}: {error}") from error


FORMAT = ExportFormat(
    NAME,
    ".onnx",
    _write,
    "onnx_reader.py",
    variants=(INT8,),
    snippets={"python": python_snippet, "javascript": javascript_snippet, "c++": cpp_snippet},
    count_quantized=_count_quantized,
    extra="export",
)
