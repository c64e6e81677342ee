"""Opens an ONNX file with ONNX Runtime alone. Runs outside Headstart: imports nothing of it."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # see engine/onnx_runtime.py


def open_file(path: str) -> tuple[str, Callable[[numpy.ndarray], list[numpy.ndarray]]]:
    """The metadata of a file, and its function from pixels to outputs.

    Args:
        path: of the file.

    Returns:
        JSON text; and (N, H, W, 3) uint8 -> (N, classes) float32 probabilities, and (N,) float32 outlier scores if the
        file has them.

    Raises:
        ValueError: what is wrong with the file, in words.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises a dozen types
        reason = str(error).partition("\n")[0].rpartition(" : ")[2].rstrip(".")  # without the runtime's codes
        raise ValueError(f"damaged, or not an ONNX file ({reason})") from error
    properties = session.get_modelmeta().custom_metadata_map
    if "headstart" not in properties:
        raise ValueError("not written by Headstart. Expected a file written by headstart export")
    return properties["headstart"], lambda pixels: session.run(None, {"pixels": pixels})
