"""Weights and activations of 8 bits, calibrated on the user's own pictures, for ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx

from headstart.backbone.weights import quiet
from headstart.data.bit_depth import ValueRange
from headstart.data.decode import decode, map_images
from headstart.engine.onnx_runtime import onnxruntime  # noqa: F401  # before onnxruntime.quantization: switches telemetry off
from headstart.errors import ExportError, UnreadableImage, first_line
from headstart.exports.metadata import INPUT

# isort: split
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

PICTURES = 100
"""That ranges of activations are taken from."""

FIRST = 5
"""Convolutions that stay float32: they see the picture's own range, and hold next to none of the weights."""

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Under which the exporter tells of each node which module it comes from."""

_BACKBONE = "'net'"


@dataclass(frozen=True)
class QuantizedLayers:
    """How much of a graph computes in 8 bits, counted in the graph itself.

    Attributes:
        convolutions: (in 8 bits, all) convolutions.
        products: (in 8 bits, all) matrix products with weights.
    """

    convolutions: tuple[int, int]
    products: tuple[int, int]

    def __str__(self) -> str:
        parts = [
            f"{done:,} of {count:,} {what}"
            for what, (done, count) in (("convolutions", self.convolutions), ("matrix products", self.products))
            if count
        ]
        return f"{' and '.join(parts)} in 8 bits"


def quantized_layers(proto: onnx.ModelProto) -> QuantizedLayers:
    """Counts the layers that compute in 8 bits.

    These are ``QLinearConv``, ``ConvInteger`` and their like, and float layers whose input and weights both come from a
    ``DequantizeLinear``, which ONNX Runtime fuses with them.

    Raises:
        ExportError: nothing computes in 8 bits, or no convolution where there are more than stay float32 by design.
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
    found = QuantizedLayers(**{kind: (sum(own), len(own)) for kind, own in counts.items()})
    lost = found.convolutions[1] > FIRST and not found.convolutions[0]
    if lost or not (found.convolutions[0] or found.products[0]):
        raise ExportError(
            f"its graph is not quantised: {found}. Export it without --quantize, or report this backbone with the "
            "versions of torch and onnxruntime."
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
"""Operator -> (what it is, whether it computes in 8 bits whatever its inputs are)."""


def quantize_int8(
    proto: onnx.ModelProto, pictures: Sequence[str], *, decode_at_least: int, value_range: ValueRange | None = None
) -> onnx.ModelProto:
    """The same graph with a backbone of 8 bits; what comes before and behind it stays float32 and costs little.

    Args:
        proto: as ``onnx_graph`` gives it; left as it is.
        pictures: paths of images that were learnt from, on which ranges are measured.
        decode_at_least: see ``ExportMetadata``.
        value_range: see ``Preprocessing``.

    Raises:
        ExportError: no picture can be read, the quantiser fails, or what it gives is not quantised.
    """
    convolutions = [node.name for node in proto.graph.node if node.op_type == "Conv"]
    apart = [node.name for node in proto.graph.node if not _in_backbone(node)] + convolutions[:FIRST]
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    reader = _Pictures(pictures, decode_at_least, value_range)
    try:
        with tempfile.TemporaryDirectory(prefix="headstart-") as folder, quiet("root"):
            file = Path(folder) / "int8.onnx"
            quantize_static(
                own,
                file,
                reader,
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,  # of 7 bits: products of 8 overflow where the processor lacks VNNI
                nodes_to_exclude=apart,
            )
            small = onnx.load(file)
    except ExportError:
        raise
    except Exception as error:  # the quantiser raises its own and the runtime's
        raise ExportError(f"it cannot be quantised: {first_line(error)}.") from error
    quantized_layers(small)
    return small


def _in_backbone(node: onnx.NodeProto) -> bool:
    return any(entry.key == _SCOPES and _BACKBONE in entry.value for entry in node.metadata_props)


@final
class _Pictures(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
    """Pictures, one by one, as they come from their files."""

    def __init__(self, paths: Sequence[str], decode_at_least: int, value_range: ValueRange | None) -> None:
        self.paths, self.decode_at_least, self.value_range = paths, decode_at_least, value_range
        self.images = self._decoded()
        self.read = 0

    def get_next(self) -> dict[str, Any] | None:
        """The next picture; None behind the last."""
        image = next(self.images, None)
        return None if image is None else {INPUT: image[None]}

    def _decoded(self) -> Iterator[Any]:
        def one(path: str) -> Any:
            try:
                return np.array(decode(path, min_side=self.decode_at_least, value_range=self.value_range).image)
            except UnreadableImage:
                return None

        return (image for image in map_images(one, self.paths, ahead=8) if image is not None)
