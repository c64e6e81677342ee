"""Predictions of image classifiers that Headstart exported to ONNX, with NumPy, Pillow and ONNX Runtime alone.

    from headstart_runtime import load

    model = load("flowers.onnx")
    model.predict("rose.jpg").answer

The modules here are those of the package ``headstart``, which trains and exports such models.
"""

from .errors import DataError, ExportError, HeadstartError, OptionError, OutputError, ServerError, UnreadableImage
from .prediction import NONE_OF_THESE, UNSURE, Prediction
from .runtime import OnnxModel, load

__all__ = [
    "NONE_OF_THESE",
    "UNSURE",
    "DataError",
    "ExportError",
    "HeadstartError",
    "OnnxModel",
    "OptionError",
    "OutputError",
    "Prediction",
    "ServerError",
    "UnreadableImage",
    "load",
]
