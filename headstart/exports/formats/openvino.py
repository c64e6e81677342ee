"""OpenVINO: a folder with the graph (model.xml) and the weights (model.bin). Variant: int8.

The metadata are in the graph's runtime information, which programs in other languages can read too. Whatever needs
PyTorch, OpenVINO or the model is imported when it is used.
"""

from __future__ import annotations

from pathlib import Path

from headstart.exports.formats.interface import ExportFormat, QuantizedLayers, WriteRequest, WrittenFiles
from headstart.exports.formats.onnx import INT8, OPSET, onnx_graph
from headstart.exports.metadata import ExportMetadata
from headstart.exports.readers.openvino_reader import MODEL_NAME
from headstart.exports.snippets import IMAGE, python_snippet
from headstart.extras import version_of

NAME = "openvino"


def _write(request: WriteRequest) -> WrittenFiles:
    import torch

    from headstart.exports.formats.openvino_model import converted, save
    from headstart.exports.graph import export_metadata

    proto = onnx_graph(request.model)
    versions = {"torch": str(torch.__version__), NAME: version_of(NAME), "opset": str(OPSET)}
    metadata = export_metadata(request.model, written_with=versions)
    if not request.variant:
        save(converted(proto), metadata, request.file)
        return WrittenFiles(metadata, {NAME: request.file})
    from headstart.exports.formats.openvino_int8 import quantize_openvino

    float32 = request.scratch / "float32"
    float32.mkdir()
    save(converted(proto), metadata, float32)
    versions |= {"nncf": version_of("nncf")}
    metadata = export_metadata(request.model, written_with=versions, precision=request.variant)
    quantize_openvino(request, proto, float32, metadata)
    return WrittenFiles(metadata, {NAME: float32, f"{NAME} {request.variant}": request.file})


def _count_quantized(folder: Path) -> QuantizedLayers:
    from headstart.exports.formats.openvino_int8 import quantized_openvino_layers

    return quantized_openvino_layers(folder)


def _python_snippet(folder: Path, metadata: ExportMetadata, image: str = IMAGE) -> str:
    return python_snippet(folder / MODEL_NAME, metadata, image)


FORMAT = ExportFormat(
    NAME,
    "_openvino",
    _write,
    "openvino_reader.py",
    variants=(INT8,),
    snippets={"python": _python_snippet},
    count_quantized=_count_quantized,
    marker=MODEL_NAME,
    extra=NAME,
)
