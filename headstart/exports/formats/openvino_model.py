"""OpenVINO models: conversion of an ONNX graph by OpenVINO's reader of ONNX, and writing with the metadata."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import ExportError, first_line
from headstart.exports.metadata import KEY, ExportMetadata
from headstart.exports.readers.openvino_reader import MODEL_NAME, import_openvino

if TYPE_CHECKING:
    import onnx


def converted(proto: onnx.ModelProto) -> Any:
    """An ONNX graph as an ``openvino.Model``.

    Raises:
        ExportError: OpenVINO cannot express the graph.
    """
    openvino = import_openvino()
    try:
        return openvino.Core().read_model(proto.SerializeToString())
    except Exception as error:  # RuntimeError with places in OpenVINO's source; ValueError above 2 GB
        raise ExportError(f"the model cannot be converted to OpenVINO: {first_line(error)}.") from error


def save(model: Any, metadata: ExportMetadata, folder: Path) -> None:
    """Writes a model as model.xml, with the metadata in it, and model.bin.

    Args:
        model: an ``openvino.Model``.
        metadata: of the export.
        folder: an existing folder.

    Raises:
        OSError: the files cannot be written.
    """
    model.set_rt_info(metadata.text(), KEY)
    try:
        import_openvino().save_model(model, folder / MODEL_NAME, compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(first_line(error)) from error
