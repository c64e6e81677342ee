"""Export of a model to a file for other programs, and comparison of such a file with the model."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from headstart.data.dataset import Dataset
from headstart.errors import ExportError, OptionError
from headstart.exports.destination import check_destination, size_of, whole_or_nothing
from headstart.exports.formats.interface import QuantizedLayers, WriteRequest
from headstart.exports.formats.registry import FORMATS, format_of, open_export
from headstart.exports.metadata import ExportMetadata
from headstart.exports.parity import FormatResult, ReferencePredictions, file_format, model_format, parity_failures
from headstart.exports.subprocess_runner import run_in_subprocess
from headstart.files import user_path
from headstart.hub import read_address
from headstart.model import Model, load
from headstart.model_file import MODEL_FILE
from headstart.progress import Progress, SilentProgress
from headstart.runs.test_set_audit import record_test_score
from headstart.verbs.evaluate import LabelledImages
from headstart.verbs.export_images import (
    ExportReference,
    Source,
    expected_of,
    images_for,
    is_run,
    model_size,
    reference_for,
)


@dataclass(frozen=True)
class Exported:
    """An exported file and its comparison with the model; result of ``export`` and ``verify``.

    Attributes:
        file: the exported file.
        metadata: classes, preprocessing and provenance, as stored in the file.
        formats: results of the model, if it is available, then of the files made from it; ``file`` is last.
        images: the images compared on, in words.
        faults: messages about differences beyond the tolerance; empty if there are none.
        quantised: number of quantised layers of an int8 file; None for other files.
        unverified: why the file was not compared with the model, so that ``formats`` has the model only; "" if it was.
    """

    file: Path
    metadata: ExportMetadata
    formats: tuple[FormatResult, ...]
    images: str
    faults: tuple[str, ...] = ()
    quantised: QuantizedLayers | None = None
    unverified: str = ""

    @property
    def snippets(self) -> dict[str, str]:
        """Language -> about ten lines of code that use the file."""
        return {language: write(self.file, self.metadata) for language, write in format_of(self.file).snippets.items()}

    @property
    def not_checked(self) -> str:
        """A sentence about what the comparison does not cover; "" if it covers everything."""
        return format_of(self.file).not_checked

    def as_json(self) -> dict[str, Any]:
        """The comparison as a JSON document."""
        return {
            "file": str(self.file),
            "model": self.metadata.model,
            "unverified": self.unverified,
            "precision": self.metadata.precision,
            "written_with": self.metadata.written_with,
            "images": self.images,
            "formats": [one.as_json() for one in self.formats],
            "faults": list(self.faults),
            "quantised": None if self.quantised is None else asdict(self.quantised),
            "not_checked": self.not_checked,
            "snippets": self.snippets,
        }


def export(
    model: Source | Model,
    to: str = "onnx",
    *,
    out: Source | None = None,
    data: Source | Dataset | None = None,
    quantize: str = "",
    allow_loss: bool = False,
    ort_files: Source | None = None,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Exports a model to a file or folder that runs without Headstart: raw pixels in, probabilities out.

    The file is opened in a separate process and compared with the model on up to 500 images. It is deleted if
    the difference exceeds the tolerance (see ``exports.parity``).

    Args:
        model: a run folder, a model file, ``hf://OWNER/NAME``, or a loaded model.
        to: "onnx"; "openvino" for a folder; "torch" for an ExportedProgram (.pt2); "timm" for a folder that timm and
            transformers load; "web" for a page that runs in the browser; "litert" (.tflite), "executorch" (.pte), or
            "coreml" (.mlpackage, which only macOS can compare with the model).
        out: the file to write; next to the model file, with the suffix of the format, if None.
        data: labelled images to compare on: a folder, a table, or an open data set. Its val split is used; else test,
            else train. None for the images of the run.
        quantize: "int8" for 8-bit weights and activations (ONNX, web, OpenVINO, LiteRT), "float16" for 16-bit weights
            (LiteRT); "" for float32.
        allow_loss: accept an int8 or float16 file regardless of its loss of accuracy.
        ort_files: for web: folder or archive (.tgz) of the npm package onnxruntime-web; None to look for it in
            node_modules and the cache, and otherwise to download it with npm.
        device: device of the model: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder; the default one if None.
        progress: receives messages and the progress of each task.

    Raises:
        OptionError: unknown format, or ``out`` is needed.
        OutputError: the file cannot be written.
        ExportError: the format cannot represent the model, or the file differs from the model.
        DataError: there are no readable images to compare on.
        RunError: the model has no run folder and ``data`` is None.

    Examples:
        >>> exported = hs.export("runs/flowers", "onnx", out="flowers.onnx")
        >>> exported.file.name, exported.faults
        ('flowers.onnx', ())
    """
    progress = progress or SilentProgress()
    file = _output(model, to, quantize, out)
    runtime_files = _runtime_files(to, ort_files)
    reference = reference_for(model, data, calibrate=bool(quantize), device=device, cache=cache, progress=progress)
    return write_compared(
        reference, to, quantize, file, allow_loss=allow_loss, progress=progress, runtime_files=runtime_files
    )


def write_compared(
    reference: ExportReference,
    to: str,
    variant: str,
    file: Path,
    *,
    allow_loss: bool,
    progress: Progress,
    runtime_files: Path | None = None,
    may_download: bool = True,
) -> Exported:
    """Writes a model in a format and compares the file with the model.

    Args:
        reference: the model and its predictions.
        to: name of the format.
        variant: "" for float32, or one of the format's variants.
        file: the file or folder to write.
        allow_loss: see ``export``.
        progress: receives messages.
        runtime_files: see ``WriteRequest``.
        may_download: see ``WriteRequest``.

    Raises:
        ExportError: the format cannot represent the model, or the file differs from the model; nothing is written.
        OutputError: the file cannot be written.
    """
    model, images, expected, form = reference.model, reference.images, reference.expected, FORMATS[to]
    with (
        whole_or_nothing(file, is_folder=bool(form.marker)) as partial,
        tempfile.TemporaryDirectory(prefix="headstart-") as scratch,
    ):
        progress.say(f"Writing {model.net.backbone.architecture} as {to}.")
        request = WriteRequest(model, partial, variant, images.calibration, Path(scratch), progress)
        written = form.write(replace(request, runtime_files=runtime_files, may_download=may_download))
        unverified = written.metadata.unverified
        if not unverified:
            count = f"{len(images.compared.paths):,} images ({images.words})"
            progress.say(f"Comparing with the model on {count}, in a separate process.")
        if not form.has_outlier_scores:
            expected = expected.without_outliers()
        formats = [reference.row]
        for name, path in {} if unverified else written.files.items():
            answers = run_in_subprocess(path, expected.paths, full_size=path == partial)
            formats.append(file_format(name, expected, answers, size=size_of(path)))
            precision = written.metadata.precision if path == partial else "float32"
            if faults := parity_failures(formats[-1], formats[0], precision=precision, allow_loss=allow_loss):
                raise ExportError(f"{file}: not written: {'; '.join(faults)}.")
    if not unverified:
        _note_test(reference.source, images.compared, formats[-1], "export", progress)
    quantised = _quantised(file, written.metadata)
    return Exported(file, written.metadata, tuple(formats), images.words, quantised=quantised, unverified=unverified)


def verify(
    file: Source,
    data: Source | Dataset,
    *,
    model: Source | Model | None = None,
    allow_loss: bool = False,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Compares an exported file with its model again, or evaluates it on the labels alone.

    Args:
        file: a file written by ``export``.
        data: labelled images as for ``export``, or a run folder: its val images and its model.
        model: a run folder, a model file, ``hf://OWNER/NAME``, or a loaded model; None to compare with the labels only.
        allow_loss: see ``export``.
        device: device of the model: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder; the default one if None.
        progress: receives messages and the progress of each task.

    Returns:
        The comparison; ``faults`` lists differences beyond the tolerance.

    Raises:
        ExportError: the file cannot be used, or was exported from another model.
        DataError: there are no readable images to compare on.
        RunError: the run folder has no table of images.

    Examples:
        >>> exported = hs.export("runs/flowers", "onnx", out="flowers.onnx")
        >>> hs.verify(exported.file, "runs/flowers").faults
        ()
    """
    progress = progress or SilentProgress()
    path = user_path(file)
    with open_export(path, progress) as opened:
        metadata = opened.metadata
    if model is None and is_run(data):
        model = user_path(data)
    loaded = None if model is None else _origin(model, path, metadata)
    images = images_for(metadata, data, model, calibrate=False, cache=cache, progress=progress)
    progress.say(f"Running {path.name} on {len(images.compared.paths):,} images, in a separate process.")
    answers = run_in_subprocess(path, images.compared.paths, full_size=True)
    expected, formats = ReferencePredictions(tuple(images.compared.paths), images.compared.labels), []
    if loaded is not None:
        expected = expected_of(loaded, images.compared, device=device, progress=progress)
        if not format_of(path).has_outlier_scores:
            expected = expected.without_outliers()
        assert model is not None
        formats.append(model_format(expected, loaded.thresholds, size=model_size(model)))
    name = format_of(path).name
    if metadata.precision in FORMATS[name].variants:
        name += f" {metadata.precision}"
    compared = file_format(name, expected, answers, size=size_of(path))
    _note_test(model, images.compared, compared, "verify", progress)
    faults = [
        fault
        for reference in formats
        for fault in parity_failures(compared, reference, precision=metadata.precision, allow_loss=allow_loss)
    ]
    quantised = _quantised(path, metadata)
    return Exported(path, metadata, (*formats, compared), images.words, tuple(faults), quantised)


def _origin(model: Source | Model, file: Path, metadata: ExportMetadata) -> Model:
    """The model that a file was exported from.

    Raises:
        ExportError: the file was exported from another model.
    """
    loaded = model if isinstance(model, Model) else load(model)
    if loaded.version != metadata.model:
        raise ExportError(
            f"{file}: was exported from another model ({metadata.model[:12]}; this one is {loaded.version[:12]}). "
            "Compare with that model, or export this one."
        )
    return loaded


def _quantised(file: Path, metadata: ExportMetadata) -> QuantizedLayers | None:
    count = format_of(file).count_quantized
    return None if count is None or metadata.precision != "int8" else count(file)


def _output(model: Source | Model, to: str, quantize: str, out: Source | None) -> Path:
    if not isinstance(to, str) or to not in FORMATS:
        raise OptionError(f"to {to!r}: expected one of {', '.join(FORMATS)}.")
    variants = {variant for one in FORMATS.values() for variant in one.variants}
    if quantize and (not isinstance(quantize, str) or quantize not in variants):
        raise OptionError(f"quantize {quantize!r}: expected {' or '.join(sorted(variants))}.")
    if quantize and quantize not in FORMATS[to].variants:
        able = [name for name, one in FORMATS.items() if quantize in one.variants]
        raise OptionError(f"quantize {quantize}: not available for format {to}, only for {', '.join(able)}.")
    FORMATS[to].require()
    ending = FORMATS[to].suffix
    if out is None:
        if isinstance(model, Model) or read_address(model):
            raise OptionError(
                f"the model is not in a run folder. Give the file to write (option out), for example NAME{ending}."
            )
        path = user_path(model)
        path = path / MODEL_FILE if path.is_dir() else path
        out = path.with_name(FORMATS[to].file_name(path.stem, quantize))
    return check_destination(out, FORMATS[to])


def _runtime_files(to: str, ort_files: Source | None) -> Path | None:
    if ort_files is None:
        return None
    if to != "web":
        raise OptionError(f"ort_files: only for format web, not for {to}.")
    return user_path(ort_files)


def _note_test(
    model: Source | Model | None, images: LabelledImages, one: FormatResult, by: str, progress: Progress
) -> None:
    if any(images.is_test) and model is not None and is_run(model):
        record_test_score(user_path(model), by, images=sum(images.is_test), correct=one.correct, progress=progress)
