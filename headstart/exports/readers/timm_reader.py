"""Opens a folder of a timm network with timm alone. Runs outside Headstart: imports nothing of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

METADATA_FILE = "headstart_timm.json"
"""Name of the metadata in the folder."""


class ColumnsFirst(Image.Image):
    """An image that is resized in two passes, columns before rows, with every version of Pillow.

    Pillow 13 resizes the rows of a tall image first, which changes pixels by one or two grey levels.
    """

    def resize(self, size: Any, resample: Any = None, box: Any = None, reducing_gap: Any = None) -> Image.Image:
        """As ``PIL.Image.Image.resize``."""
        if box is not None:
            return super().resize(size, resample, box, reducing_gap)
        return super().resize((size[0], self.height), resample).resize(size, resample)


def open_file(path: str) -> tuple[str, Callable[[numpy.ndarray], list[numpy.ndarray]]]:
    """See ``onnx_reader.open_file``; pixels go through timm's transform, classes are matched by their names."""
    import timm
    import torch

    try:
        metadata = (Path(path) / METADATA_FILE).read_text(encoding="utf-8")
        classes = json.loads(metadata)["classes"]
        model: Any = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
        labels = model.pretrained_cfg["label_names"]
        order = [labels.index(name) for name in classes]
        data: Any = timm.data
        transform = data.create_transform(**data.resolve_model_data_config(model))
    except Exception as error:  # timm, torch and safetensors raise errors of many types
        raise ValueError(f"damaged, or not a folder of a timm network ({_first_line(error)})") from error

    def run(pixels: numpy.ndarray) -> list[numpy.ndarray]:
        images = [Image.fromarray(image) for image in pixels]
        for image in images:
            image.__class__ = ColumnsFirst
        with torch.inference_mode():
            scores = model(torch.stack([transform(image) for image in images])).softmax(1)
        return [scores[:, order].numpy()]

    return metadata, run


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
