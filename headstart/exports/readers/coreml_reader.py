"""Opens a Core ML package (.mlpackage) with coremltools, on macOS. Runs outside Headstart: imports nothing of it."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable

import numpy
from PIL import Image

sys.path.append(os.path.dirname(os.path.abspath(__file__)))
from pillow_fit import fitted  # beside this file, which is run by its path


def open_file(path: str) -> tuple[str, Callable[[numpy.ndarray], list[numpy.ndarray]]]:
    """See ``onnx_reader.open_file``. Pixels of any size: they are resized before the graph, as the metadata says."""
    metadata = read_metadata(path)
    if platform.system() != "Darwin":
        raise ValueError("Core ML runs on macOS only. Compare this file with its model on a Mac: headstart verify")
    import coremltools

    try:
        model = coremltools.models.MLModel(path, compute_units=coremltools.ComputeUnit.CPU_ONLY)
    except Exception as error:  # the runtime raises errors of many types
        raise ValueError(f"damaged, or not a Core ML package ({str(error).partition(chr(10))[0]})") from error
    document = json.loads(metadata)
    names = ["probabilities"] if document["none_above"] is None else ["probabilities", "outlier"]

    def predict(pixels: numpy.ndarray) -> list[numpy.ndarray]:
        images = [Image.fromarray(fitted(image, document["preprocessing"])) for image in pixels]
        found = [model.predict({"pixels": image}) for image in images]
        shapes = {"probabilities": (1, -1), "outlier": (1,)}
        return [numpy.concatenate([one[name].reshape(shapes[name]) for one in found]) for name in names]

    return metadata, predict


def read_metadata(path: str) -> str:
    """The metadata of a package, which Xcode shows too.

    Raises:
        ValueError: there are none.
    """
    import coremltools

    try:
        spec = coremltools.utils.load_spec(path)
        return str(spec.description.metadata.userDefined["headstart"])
    except Exception as error:  # coremltools raises errors of many types
        raise ValueError(
            "damaged, or not written by Headstart. Expected an .mlpackage folder written by headstart export"
        ) from error
