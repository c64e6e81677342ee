"""Post-training static quantization to int8 for ONNX Runtime, calibrated on training images."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx

from headstart.engine.onnx_runtime import onnxruntime  # noqa: F401  # before onnxruntime.quantization: switches telemetry off
from headstart.errors import ExportError, first_line
from headstart.exports.decoded_images import calibration_images
from headstart.exports.formats.interface import QuantizedLayers
from headstart.exports.metadata import INPUT, ExportMetadata
from headstart.quiet import quiet

# isort: split
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

FLOAT_CONVOLUTIONS = 5
"""First convolutions, which stay float32: their input has the range of the image, and they hold few of the weights."""

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata key under which PyTorch's exporter records the module that a node comes from."""

_BACKBONE = "'net'"


def quantized_layers(proto: onnx.ModelProto) -> QuantizedLayers:
    """Counts the layers that compute in 8 bits.

    These are quantised operators such as ``QLinearConv``, and float operators whose input and weights both come from a
    ``DequantizeLinear``, which ONNX Runtime fuses with them.

    Raises:
        ExportError: no layer computes in 8 bits, or no convolution although there are more than ``FLOAT_CONVOLUTIONS``.
    """
    made_by = {name: node for node in proto.graph.node for name in node.output}
    weights = {tensor.name for tensor in proto.graph.initializer}

    def is_pair(name: str) -> bool:
        return name in made_by and made_by[name].op_type == "DequantizeLinear"

    def is_weight(name: str) -> bool:
        return name in weights or (is_pair(name) and made_by[name].input[0] in weights)

    counts: dict[str, list[bool]] = {"convolutions": [], "products": []}
    for node in proto.graph.node:
        kind, whole = _LAYERS.get(node.op_type, ("", False))
        if kind and (whole or any(map(is_weight, node.input[:2]))):
            counts[kind].append(whole or all(map(is_pair, node.input[:2])))
    found = QuantizedLayers(**{kind: (sum(layers), len(layers)) for kind, layers in counts.items()})
    lost = found.convolutions[1] > FLOAT_CONVOLUTIONS and not found.convolutions[0]
    if lost or not (found.convolutions[0] or found.products[0]):
        raise ExportError(
            f"the graph is not quantised: {found}. Export without quantize (--quantize), or report this backbone "
            "with the versions of torch and onnxruntime."
        )
    return found


_LAYERS = {
    "Conv": ("convolutions", False),
    "QLinearConv": ("convolutions", True),
    "ConvInteger": ("convolutions", True),
    "MatMul": ("products", False),
    "Gemm": ("products", False),
    "QLinearMatMul": ("products", True),
    "MatMulInteger": ("products", True),
    "QGemm": ("products", True),
}
"""Operator -> (kind of layer, whether it is a quantised operator)."""


def quantize_int8(proto: onnx.ModelProto, paths: Sequence[str], metadata: ExportMetadata) -> onnx.ModelProto:
    """Quantises the backbone of a graph; preprocessing and head stay float32 and cost little.

    Args:
        proto: from ``onnx_graph``; not modified.
        paths: training images on which ranges of activations are measured.
        metadata: of the float32 file, which say how images are decoded.

    Raises:
        ExportError: no image can be read, the quantiser fails, or its result is not quantised.
    """
    convolutions = [node.name for node in proto.graph.node if node.op_type == "Conv"]
    excluded = [node.name for node in proto.graph.node if not in_backbone(node)] + convolutions[:FLOAT_CONVOLUTIONS]
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    reader = _CalibrationImages(paths, metadata)
    try:
        with tempfile.TemporaryDirectory(prefix="headstart-") as folder, quiet("root"):
            file = Path(folder) / "int8.onnx"
            quantize_static(
                copy,
                file,
                reader,
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,  # 7 bits: products of 8 overflow on processors without VNNI
                nodes_to_exclude=excluded,
            )
            small = onnx.load(file)
    except ExportError:
        raise
    except Exception as error:  # the quantiser raises errors of many types, also those of the runtime
        raise ExportError(f"the model cannot be quantised: {first_line(error)}.") from error
    quantized_layers(small)
    return small


def in_backbone(node: onnx.NodeProto) -> bool:
    """Whether a node of ``onnx_graph`` comes from the backbone."""
    return any(entry.key == _SCOPES and _BACKBONE in entry.value for entry in node.metadata_props)


@final
class _CalibrationImages(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
    """Decoded images, one at a time."""

    def __init__(self, paths: Sequence[str], metadata: ExportMetadata) -> None:
        self.images = calibration_images(lambda found: np.array(found.image), paths, metadata)

    def get_next(self) -> dict[str, Any] | None:
        """The next image; None at the end."""
        image = next(self.images, None)
        return None if image is None else {INPUT: image[None]}
