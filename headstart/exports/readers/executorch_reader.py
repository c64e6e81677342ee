"""Opens an ExecuTorch program (.pte) with its runtime. Runs outside Headstart: imports nothing of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

import numpy

sys.path.append(os.path.dirname(os.path.abspath(__file__)))
from litert_reader import read_metadata as read_archive  # beside this file, which is run by its path
from pillow_fit import fitted


def open_file(path: str) -> tuple[str, Callable[[numpy.ndarray], list[numpy.ndarray]]]:
    """See ``onnx_reader.open_file``. Pixels of any size: they are resized before the graph, as the metadata says."""
    try:
        metadata = read_archive(path)
    except ValueError as error:
        raise ValueError(str(error).replace(".tflite", ".pte")) from error
    import torch
    from executorch.runtime import Runtime

    try:
        program = Runtime.get().load_program(path)
        method = program.load_method("forward")
    except Exception as error:  # the runtime raises errors of many types
        raise ValueError(f"damaged, or not an ExecuTorch file ({str(error).partition(chr(10))[0]})") from error
    preprocessing = json.loads(metadata)["preprocessing"]

    def predict(pixels: numpy.ndarray) -> list[numpy.ndarray]:
        found = []
        for image in pixels:
            outputs = method.execute([torch.from_numpy(fitted(image, preprocessing)[None].copy())])
            found.append([out.numpy().copy() for out in outputs])
        return [numpy.concatenate(each) for each in zip(*found, strict=True)]

    return metadata, predict
