"""Post-training quantization to int8 by NNCF with accuracy control, calibrated on training images.

NNCF runs in a separate process: it changes functions of PyTorch when it is imported, prints, and sends usage data
unless an environment variable says otherwise.

Source: NNCF's ``quantize_with_accuracy_control``, which returns layers to float32 until the answers are good enough.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headstart.errors import ExportError
from headstart.exports.decoded_images import NOTHING_TO_CALIBRATE_ON, decode_or_none
from headstart.exports.formats.interface import QuantizedLayers, WriteRequest
from headstart.exports.formats.openvino_model import save
from headstart.exports.metadata import KEY, ExportMetadata
from headstart.exports.readers.openvino_reader import MODEL_NAME, PRECISION, import_openvino

if TYPE_CHECKING:
    import onnx

JOB_FILE, FAULT_FILE = "job.json", "fault.txt"
"""Files through which the two processes communicate."""

MAX_CHANGED = 0.01
"""Share of the calibration images whose answer may change; NNCF returns layers to float32 until it is met."""

_NO_TELEMETRY = {"CI": "true", "NNCF_CI": "1"}
"""Environment of the process: without it NNCF sends usage data to its maker, and keeps a number of the user."""


def quantize_openvino(request: WriteRequest, proto: onnx.ModelProto, float32: Path, metadata: ExportMetadata) -> None:
    """Quantises the backbone of a model and writes it to ``request.file``; preprocessing and head stay float32.

    Args:
        request: with the calibration images, an empty folder for the result, and one for intermediate files.
        proto: the ONNX graph, in which it is written which nodes belong to the backbone.
        float32: folder of the same graph for OpenVINO.
        metadata: of the result.

    Raises:
        ExportError: no image can be read, NNCF fails, or its result is not quantised.
    """
    from headstart.exports.formats.int8 import in_backbone

    count = len(request.calibration_images)
    request.progress.say(
        f"Quantising with NNCF on {count:,} images that are not used in the comparison: at most "
        f"{100 * MAX_CHANGED:g} % of their answers may change."
    )
    job = {
        "float32": str(float32),
        "out": str(request.file),
        "metadata": metadata.text(),
        "paths": list(request.calibration_images),
        "backbone": [node.name for node in proto.graph.node if in_backbone(node)],
    }
    (request.scratch / JOB_FILE).write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(request.scratch)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env=os.environ | _NO_TELEMETRY,
    )
    fault = request.scratch / FAULT_FILE
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"]
        raise ExportError(fault.read_text() if fault.is_file() else f"the model cannot be quantised: {said[-1]}.")
    quantized_openvino_layers(request.file)


def quantized_openvino_layers(folder: Path) -> QuantizedLayers:
    """Counts the layers of a folder that compute in 8 bits.

    OpenVINO computes a layer in 8 bits if its input comes from a ``FakeQuantize`` and its weights are stored as int8.

    Raises:
        ExportError: the folder cannot be read, or no layer computes in 8 bits.
    """
    openvino = import_openvino()

    try:
        model = openvino.Core().read_model(folder / MODEL_NAME)
    except RuntimeError as error:
        raise ExportError(f"{folder}: damaged, or not an OpenVINO model.") from error
    counts: dict[str, list[bool]] = {"convolutions": [], "products": []}
    for node in model.get_ordered_ops():
        kind = _LAYERS.get(node.get_type_name())
        if kind and (weights := _weights_type(node.input_value(1).get_node())):
            counts[kind].append(weights in ("i8", "u8") and _is_quantized(node.input_value(0).get_node()))
    found = QuantizedLayers(**{kind: (sum(layers), len(layers)) for kind, layers in counts.items()})
    if not (found.convolutions[0] or found.products[0]):
        raise ExportError(
            f"{folder}: the graph is not quantised: {found}. Export without quantize (--quantize), or report this "
            "backbone with the versions of openvino and nncf."
        )
    return found


_LAYERS = {"Convolution": "convolutions", "GroupConvolution": "convolutions", "MatMul": "products"}
"""Operator -> kind of layer."""

_SHAPES_ONLY = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "MaxPool")
"""Operators that leave 8-bit numbers as they are."""


def _weights_type(node: Any) -> str:
    """Element type in which the weights of a layer are stored; "" if its second input is not a constant."""
    while node.get_type_name() in ("Convert", "Multiply", "Subtract", *_SHAPES_ONLY):
        node = node.input_value(0).get_node()
    return str(node.get_element_type().get_type_name()) if node.get_type_name() == "Constant" else ""


def _is_quantized(node: Any) -> bool:
    while node.get_type_name() in _SHAPES_ONLY:
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "FakeQuantize")


def _work(folder: Path) -> None:
    """The new process: does the job of ``quantize_openvino``."""
    openvino = import_openvino()

    job = json.loads((folder / JOB_FILE).read_text())
    model = openvino.Core().read_model(Path(job["float32"]) / MODEL_NAME)
    _reshape_weights(model)
    metadata = ExportMetadata.read(model.get_rt_info(KEY).astype(str), folder)
    paths = [path for path in job["paths"] if _pixels(path, metadata) is not None]
    if not paths:
        (folder / FAULT_FILE).write_text(NOTHING_TO_CALIBRATE_ON)
        sys.exit(1)
    small = _quantized(model, paths, metadata, set(job["backbone"]))
    save(small, ExportMetadata.read(job["metadata"], folder), Path(job["out"]))


def _reshape_weights(model: Any) -> None:
    """Reshapes weights of grouped convolutions in the file: NNCF leaves those that the graph reshapes in float32."""
    from openvino import opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() == "GroupConvolution":
            reshape = node.input_value(1).get_node()
            weights = reshape.input_value(0).get_node() if reshape.get_input_size() else reshape
            if reshape.get_type_name() == "Reshape" and weights.get_type_name() == "Constant":
                whole = opset13.constant(weights.data.reshape(list(reshape.get_output_shape(0))))
                node.input(1).replace_source_output(whole.output(0))


def _quantized(model: Any, paths: Sequence[str], metadata: ExportMetadata, backbone: set[str]) -> Any:
    """The model with a backbone in 8 bits, as far as the answers allow."""
    import nncf

    openvino = import_openvino()

    def answers(compiled: Any, some: Iterable[str]) -> list[npt.NDArray[np.bool_]]:
        return [_answer(compiled(_pixels(path, metadata))[0][0], metadata) for path in some]

    compiled = openvino.Core().compile_model(model, "CPU", PRECISION)
    expected = dict(zip(paths, answers(compiled, paths), strict=True))

    def agreement(compiled: Any, some: Iterable[str]) -> tuple[float, list[float]]:
        some = list(some)
        same = [
            float((found == expected[path]).all()) for path, found in zip(some, answers(compiled, some), strict=True)
        ]
        return sum(same) / len(same), same

    images = nncf.Dataset(paths, lambda path: _pixels(path, metadata))
    kinds = [node.get_type_name() for node in model.get_ordered_ops() if _base_name(node) in backbone]
    is_transformer = kinds.count("MatMul") > sum(kind.endswith("Convolution") for kind in kinds)
    return nncf.quantize_with_accuracy_control(
        model,
        images,
        images,
        agreement,
        max_drop=MAX_CHANGED + 1e-9,  # one image in a hundred is not more
        subset_size=len(paths),
        model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
        ignored_scope=nncf.IgnoredScope(names=_outside(model, backbone), validate=False),
        advanced_quantization_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE  # 7 bits: products of 8 overflow on processors without VNNI
        ),
    )


def _outside(model: Any, backbone: set[str]) -> list[str]:
    """Names of the nodes that are not known to belong to the backbone."""
    return [
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if node.get_type_name() not in ("Constant", "Parameter", "Result") and _base_name(node) not in backbone
    ]


def _base_name(node: Any) -> str:
    """Name of the ONNX node: a part of one has a suffix, such as "node_linear/WithoutBiases"."""
    return str(node.get_friendly_name()).partition("/")[0]


def _answer(probabilities: npt.NDArray[np.float32], metadata: ExportMetadata) -> npt.NDArray[np.bool_]:
    """(classes,) bool: the answer."""
    if metadata.thresholds is None:
        return np.asarray(np.arange(len(probabilities)) == probabilities.argmax())
    return np.asarray(probabilities >= np.asarray(metadata.thresholds))


def _pixels(path: str, metadata: ExportMetadata) -> npt.NDArray[np.uint8] | None:
    """(1, H, W, 3) uint8; None for an unreadable image."""
    found = decode_or_none(path, metadata)
    return None if found is None else np.array(found.image)[None]


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
