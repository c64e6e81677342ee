"""Opens a folder with an OpenVINO model, with OpenVINO alone. Runs outside Headstart: imports nothing of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy

MODEL_NAME = "model.xml"
"""The graph; the weights are beside it, in model.bin."""

KEY = "headstart"
"""Key of the metadata among the graph's runtime information."""

PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}
"""Without it OpenVINO computes in bfloat16 on processors that can: probabilities then differ by up to a few percent."""


def open_file(path: str) -> tuple[str, Callable[[numpy.ndarray], list[numpy.ndarray]]]:
    """See ``onnx_reader.open_file``; the path is the folder's."""
    try:
        openvino = import_openvino()
    except ImportError as error:
        raise ValueError('needs OpenVINO, which is not installed. Run: pip install "headstart[openvino]"') from error
    core = openvino.Core()
    try:
        model = core.read_model(os.path.join(path, MODEL_NAME))
        compiled = core.compile_model(model, "CPU", PRECISION)
    except Exception as error:  # the library raises RuntimeError, and others while it converts arguments
        raise ValueError(f"damaged, or not an OpenVINO model ({_reason(error)})") from error
    if not model.has_rt_info(KEY):
        raise ValueError("not written by Headstart. Expected a folder written by headstart export")
    metadata = model.get_rt_info(KEY).astype(str)
    return metadata, lambda pixels: [numpy.array(out) for out in compiled(pixels).values()]


def import_openvino() -> Any:
    """OpenVINO without usage data: it reports each import to its maker, unless the import is in a CI job."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        import openvino
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before
    return openvino


def _reason(error: Exception) -> str:
    """The last line; those before name places in the source of OpenVINO."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
