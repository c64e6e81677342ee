"""Weights and activations of 8 bits, calibrated on the user's own pictures, for ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from headstart.backbone.weights import quiet
from headstart.data.bit_depth import ValueRange
from headstart.data.images import decode, map_images
from headstart.errors import ExportError, UnreadableImage, first_line
from headstart.exports.about import INPUT

PICTURES = 100
"""That ranges of activations are taken from."""

FIRST = 5
"""Convolutions that stay float32: they see the picture's own range, and hold next to none of the weights."""

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Under which the exporter tells of each node which module it comes from."""

_BACKBONE = "'net'"


def quantized(
    proto: onnx.ModelProto, pictures: Sequence[str], *, decode_at_least: int, value_range: ValueRange | None = None
) -> onnx.ModelProto:
    """The same graph with a backbone of 8 bits; what comes before and behind it stays float32 and costs little.

    Args:
        proto: as ``onnx_graph`` gives it; left as it is.
        pictures: paths of images that were learnt from, on which ranges are measured.
        decode_at_least: see ``About``.
        value_range: see ``Preprocessing``.

    Raises:
        ExportError: no picture can be read, or the quantiser fails.
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
            return onnx.load(file)
    except ExportError:
        raise
    except Exception as error:  # the quantiser raises its own and the runtime's
        raise ExportError(f"it cannot be quantised: {first_line(error)}.") from error


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
                return np.array(decode(path, at_least=self.decode_at_least, value_range=self.value_range).image)
            except UnreadableImage:
                return None

        return (image for image in map_images(one, self.paths, ahead=8) if image is not None)
