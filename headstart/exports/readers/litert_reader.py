"""Opens a LiteRT file (.tflite) with the LiteRT runtime. Runs outside Headstart: imports nothing of it."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Callable

import numpy

sys.path.append(os.path.dirname(os.path.abspath(__file__)))
from pillow_fit import fitted  # beside this file, which is run by its path

METADATA_FILE = "headstart.json"
"""Name of the metadata in the archive at the end of the file."""


def open_file(path: str) -> tuple[str, Callable[[numpy.ndarray], list[numpy.ndarray]]]:
    """See ``onnx_reader.open_file``. Pixels of any size: they are resized before the graph, as the metadata says."""
    metadata = read_metadata(path)
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(path, num_threads=1)
        run = interpreter.get_signature_runner()
    except Exception as error:  # the runtime raises errors of many types
        raise ValueError(f"damaged, or not a LiteRT file ({str(error).partition(chr(10))[0]})") from error
    preprocessing = json.loads(metadata)["preprocessing"]
    names = [name for name in ("probabilities", "outlier") if name in run.get_output_details()]

    def predict(pixels: numpy.ndarray) -> list[numpy.ndarray]:
        found = [run(pixels=fitted(image, preprocessing)[None]) for image in pixels]
        return [numpy.concatenate([one[name] for one in found]) for name in names]

    return metadata, predict


def read_metadata(path: str) -> str:
    """The metadata of a file, which are in a ZIP archive at its end.

    Raises:
        ValueError: there are none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(METADATA_FILE).decode()
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            "damaged, or not written by Headstart. Expected a .tflite file written by headstart export"
        ) from error
