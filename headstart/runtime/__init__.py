"""Runtime: predictions of an exported ONNX file with NumPy, Pillow and ONNX Runtime alone.

The distribution ``headstart-runtime`` consists of this package and of the modules that it imports. Those modules use
relative imports, so that the same files work in both distributions.
"""

from __future__ import annotations

from .onnx_model import OnnxModel, load

__all__ = ["OnnxModel", "load"]
