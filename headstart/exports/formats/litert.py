"""LiteRT, formerly TensorFlow Lite (.tflite). Variants: float16 and int8.

Converter and runtime are in an isolated environment, see ``isolated_environment``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Final

from headstart.errors import ExportError
from headstart.exports.formats.fitted import (
    CONVERTERS,
    append_metadata,
    before_graph,
    environment,
    write_calibration,
    write_fitted_program,
)
from headstart.exports.formats.interface import ExportFormat, QuantizedLayers, WriteRequest, WrittenFiles
from headstart.exports.phone_snippets import kotlin_snippet, litert_snippet
from headstart.progress import SilentProgress

NAME: Final = "litert"
ENVIRONMENT: Final = environment(NAME, "export to LiteRT", download=270, size=810)
CONVERTER: Final = CONVERTERS / "litert_converter.py"


def _write(request: WriteRequest) -> WrittenFiles:
    from headstart.exports.graph import export_metadata

    model, preprocessing = request.model, request.model.preprocessing
    words = before_graph(preprocessing, f"pixels, uint8 [1, {preprocessing.height}, {preprocessing.width}, 3], 0-255")
    metadata = export_metadata(
        model,
        written_with=ENVIRONMENT.versions("litert-torch", "ai-edge-litert"),
        precision=request.variant or "float32",
        before_graph=words,
    )
    ENVIRONMENT.ensure(request.progress)
    program, float32 = request.scratch / "program.pt2", request.scratch / "float32.tflite"
    write_fitted_program(model, program)
    with request.progress.task("Converting", 1):
        ENVIRONMENT.run(CONVERTER, ["convert", program, float32], request.progress)
    if not request.variant:
        request.file.write_bytes(float32.read_bytes())
        append_metadata(request.file, metadata)
        return WrittenFiles(metadata, {NAME: request.file})
    calibration = request.scratch / "calibration.npy"
    if request.variant == "int8":
        count = len(request.calibration_images)
        request.progress.say(
            f"Measuring ranges of activations on {count:,} images that are not used in the comparison."
        )
        write_calibration(request.calibration_images, preprocessing, metadata, calibration)
    small = request.scratch / "small.tflite"
    with request.progress.task("Quantizing", 1):
        ENVIRONMENT.run(CONVERTER, ["quantize", float32, request.variant, calibration, small], request.progress)
    request.file.write_bytes(small.read_bytes())
    append_metadata(float32, export_metadata(model, written_with=metadata.written_with, before_graph=words))
    append_metadata(request.file, metadata)
    if request.variant == "int8":
        count_quantized(request.file)
    return WrittenFiles(metadata, {NAME: float32, f"{NAME} {request.variant}": request.file})


def count_quantized(file: Path) -> QuantizedLayers:
    """Counts the layers of a file that compute in 8 bits.

    Raises:
        ExportError: none does.
    """
    with tempfile.TemporaryDirectory(prefix="headstart-") as folder:
        counts = Path(folder) / "counts.json"
        ENVIRONMENT.run(CONVERTER, ["count", file, counts], SilentProgress())
        found = {kind: tuple(both) for kind, both in json.loads(counts.read_text()).items()}
    layers = QuantizedLayers(**found)
    if not layers.convolutions[0] and not layers.products[0]:
        raise ExportError(f"{file}: the graph is not quantised: {layers}. Export without quantize (--quantize).")
    return layers


FORMAT = ExportFormat(
    NAME,
    ".tflite",
    _write,
    "litert_reader.py",
    variants=("float16", "int8"),
    snippets={"python": litert_snippet, "kotlin": kotlin_snippet},
    count_quantized=count_quantized,
    environment=ENVIRONMENT,
)
