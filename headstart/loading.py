"""Loading: the public ``load``, which opens exported files without PyTorch and everything else as a ``Model``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from headstart.data.image_inputs import read_sources
from headstart.data.sources.read import num_reading_threads, read_image
from headstart.deferred_compiler import compiler_deferred
from headstart.files import user_path
from headstart.import_effects import collection_paused, restored_after_import
from headstart.runtime.onnx_model import OnnxModel, is_onnx

if TYPE_CHECKING:
    from headstart.model import Model


def load(run_or_model: str | os.PathLike[str]) -> Model | OnnxModel:
    """Loads a model from a run folder, a model file or the Hugging Face hub; or an exported ONNX file, to predict.

    Args:
        run_or_model: a run folder, a model file, ``hf://OWNER/NAME``, optionally with ``@REVISION``, or an ONNX file
            written by ``export``.

    Returns:
        A ``Model``; for an ONNX file a ``headstart.runtime.OnnxModel``, whose predictions are those of the model, and
        which needs no PyTorch.

    Raises:
        HubError: the model cannot be downloaded.
        ModelFileError: no such file, damaged, not a Headstart model, or of a newer format.
        ExportError: likewise for an ONNX file.

    Examples:
        >>> hs.load("runs/flowers").classes
        ('roses', 'tulips')
    """
    if is_onnx(run_or_model):
        return load_onnx(run_or_model)
    with restored_after_import(), collection_paused(), compiler_deferred():
        from headstart.model import load as load_model
    return load_model(run_or_model)


def load_onnx(file: str | os.PathLike[str]) -> OnnxModel:
    """Opens an ONNX file as a model that takes images in all forms that ``Model.predict`` takes.

    Raises:
        ExportError: the file is missing, damaged or changed, or Headstart did not write it.
    """
    return OnnxModel(
        user_path(file), read_images=read_sources, read_content=read_image, num_reading_threads=num_reading_threads
    )
