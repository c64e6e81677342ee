"""Export: a model as one file for other programs (ONNX, PyTorch); raw pixels in, probabilities out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.lazy import lazy_names

if TYPE_CHECKING:
    from headstart.exports.int8 import Quantised as Quantised
    from headstart.exports.metadata import About as About
    from headstart.exports.parity import Format as Format
    from headstart.exports.parity import Whole as Whole

_MODULES = {
    "About": "headstart.exports.metadata",
    "Format": "headstart.exports.parity",
    "Quantised": "headstart.exports.int8",
    "Whole": "headstart.exports.parity",
}

__getattr__, __dir__, __all__ = lazy_names(__name__, _MODULES)
