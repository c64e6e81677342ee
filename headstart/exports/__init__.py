"""Export: a model as one file for other programs (ONNX, PyTorch); raw pixels in, probabilities out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.lazy import lazy_names

if TYPE_CHECKING:
    from headstart.exports.formats.interface import QuantizedLayers as QuantizedLayers
    from headstart.exports.metadata import ExportMetadata as ExportMetadata
    from headstart.exports.parity import FormatResult as FormatResult
    from headstart.exports.parity import FullSizeDecoding as FullSizeDecoding

_MODULES = {
    "ExportMetadata": "headstart.exports.metadata",
    "FormatResult": "headstart.exports.parity",
    "FullSizeDecoding": "headstart.exports.parity",
    "QuantizedLayers": "headstart.exports.formats.interface",
}

__getattr__, __dir__, __all__ = lazy_names(__name__, _MODULES)
