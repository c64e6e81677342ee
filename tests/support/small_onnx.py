"""A small ONNX file as ``headstart export`` writes it, without PyTorch: it classifies by the mean colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headstart.exports.formats.onnx import write_onnx
from headstart.exports.metadata import EXPORT_VERSION, ExportMetadata

CLASSES = ("red", "green", "blue")


def mean_colour(*, outlier: bool = False, scale: float = 30.0) -> onnx.ModelProto:
    """A "classifier": the softmax of an image's mean colour, a class for each channel.

    Args:
        outlier: whether it has a second output, the largest probability.
        scale: by which the mean colour is divided.
    """
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["colour"], keepdims=0),
        helper.make_node("Div", ["colour", "scale"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    weights = [numpy_helper.from_array(np.array([1, 2]), "axes"), numpy_helper.from_array(np.float32(scale), "scale")]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["images", 3])]
    if outlier:
        nodes.append(helper.make_node("ReduceMax", ["probabilities", "one"], ["outlier"], keepdims=0))
        weights.append(numpy_helper.from_array(np.array([1]), "one"))
        outputs.append(helper.make_tensor_value_info("outlier", TensorProto.FLOAT, ["images"]))
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["images", "height", "width", 3])
    graph = helper.make_graph(nodes, "small", [pixels], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def small_metadata(**changes: Any) -> ExportMetadata:
    """Metadata that fit ``mean_colour``."""
    values: dict[str, Any] = {
        "headstart_export": EXPORT_VERSION,
        "classes": CLASSES,
        "thresholds": None,
        "unsure_below": 0.5,
        "none_above": None,
        "unsure": "unsure: ask a person",
        "none": "none of these",
        "decode_at_least": 64,
        "preprocessing": {"height": 64, "width": 64},
        "temperature": 1.0,
        "precision": "float32",
        "model": "a" * 64,
        "backbone": "mean_colour",
        "headstart": "0.1.0",
        "written_with": {},
        "is_calibrated": True,
        "calibration": "Calibrated on 100 validation images.",
    }
    return ExportMetadata(**values | changes)


def small_onnx(file: Path, *, scale: float = 30.0, **changes: Any) -> Path:
    """Writes ``mean_colour`` with metadata; ``changes`` of the metadata."""
    metadata = small_metadata(**changes)
    write_onnx(mean_colour(outlier=metadata.none_above is not None, scale=scale), metadata, file)
    return file
