"""Export of a model to a file for other programs, and comparison of such a file with the model."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard, final

import numpy as np

from headstart.data.dataset import Dataset
from headstart.data.sources.read import is_gone
from headstart.errors import DataError, ExportError, OptionError, RunError
from headstart.exports.destination import check_destination, size_of, whole_or_nothing
from headstart.exports.formats.interface import NUM_CALIBRATION_IMAGES, QuantizedLayers, WriteRequest
from headstart.exports.formats.registry import FORMATS, format_of, open_export
from headstart.exports.metadata import ExportMetadata
from headstart.exports.parity import FormatResult, ReferencePredictions, file_format, model_format, parity_failures
from headstart.exports.subprocess_runner import run_in_subprocess
from headstart.extras import require_extra
from headstart.files import user_path
from headstart.hub import read_address
from headstart.model import Model, load
from headstart.model_file import MODEL_FILE
from headstart.progress import Progress, SilentProgress
from headstart.runs.folder import open_like, split_rows
from headstart.runs.test_set_audit import record_test_score
from headstart.verbs.evaluate import HasClasses, LabelledImages, other_images, own_images

SAMPLE = 500
"""Maximum number of images to compare on."""

COMPARED_SETS = {"val": "val", "test": "test", "train": "training images"}
"""Sets to compare on, in order of preference -> name in messages."""

Source = str | os.PathLike[str]


@dataclass(frozen=True)
class Exported:
    """An exported file and its comparison with the model; result of ``export`` and ``verify``.

    Attributes:
        file: the exported file.
        metadata: classes, preprocessing and provenance, as stored in the file.
        formats: results of the model, if it is available, then of the files made from it; ``file`` is last.
        images: the images compared on, in words.
        faults: messages about differences beyond the tolerance; empty if there are none.
        quantised: number of quantised layers of an int8 file; None for a float32 file.
    """

    file: Path
    metadata: ExportMetadata
    formats: tuple[FormatResult, ...]
    images: str
    faults: tuple[str, ...] = ()
    quantised: QuantizedLayers | None = None

    @property
    def snippets(self) -> dict[str, str]:
        """Language -> about ten lines of code that use the file."""
        return {language: write(self.file, self.metadata) for language, write in format_of(self.file).snippets.items()}

    def as_json(self) -> dict[str, Any]:
        """The comparison as a JSON document."""
        return {
            "file": str(self.file),
            "model": self.metadata.model,
            "precision": self.metadata.precision,
            "written_with": self.metadata.written_with,
            "images": self.images,
            "formats": [one.as_json() for one in self.formats],
            "faults": list(self.faults),
            "quantised": None if self.quantised is None else asdict(self.quantised),
            "snippets": self.snippets,
        }


@dataclass(frozen=True)
class _Images:
    """Images for an export.

    Attributes:
        compared: the images of one set, to compare on.
        calibration: paths of other images, which calibrate the ranges of activations for int8.
        words: description of ``compared`` for messages.
    """

    compared: LabelledImages
    calibration: list[str]
    words: str

    def with_calibration(self) -> _Images:
        """Uses half of the images for calibration if there are no others; those are not compared on."""
        if self.calibration and "train" not in self.compared.sets:
            return self
        count = len(self.compared.paths)
        calibration = self.compared.some(range(1, count, 2)).paths
        return _Images(self.compared.some(range(0, count, 2)), calibration, self.words)

    def sample(self) -> _Images:
        """At most ``SAMPLE`` images to compare on and ``NUM_CALIBRATION_IMAGES`` for calibration, evenly spaced."""
        compared = self.compared.some(_spread(len(self.compared.paths), SAMPLE))
        spread = _spread(len(self.calibration), NUM_CALIBRATION_IMAGES)
        return _Images(compared, [self.calibration[i] for i in spread], self.words)


def export(
    model: Source | Model,
    to: str = "onnx",
    *,
    out: Source | None = None,
    data: Source | Dataset | None = None,
    quantize: str = "",
    allow_loss: bool = False,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Exports a model to a file or folder that runs without Headstart: raw pixels in, probabilities out.

    The file is opened in a separate process and compared with the model on up to ``SAMPLE`` images. It is deleted if
    the difference exceeds the tolerance (see ``exports.parity``).

    Args:
        model: a run folder, a model file, ``hf://OWNER/NAME``, or a loaded model.
        to: "onnx", or "torch" for an ExportedProgram (.pt2).
        out: the file to write; next to the model file, with the suffix of the format, if None.
        data: labelled images to compare on: a folder, a table, or an open data set. Its val split is used; else test,
            else train. None for the images of the run.
        quantize: "int8" for 8-bit weights and activations (ONNX only); "" for float32.
        allow_loss: accept an int8 file regardless of its loss of accuracy.
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
    loaded = model if isinstance(model, Model) else load(model)
    source = model if data is None else data
    images = _images_for(loaded, source, model, calibrate=bool(quantize), cache=cache, progress=progress)
    with whole_or_nothing(file, FORMATS[to]) as partial, tempfile.TemporaryDirectory(prefix="headstart-") as scratch:
        progress.say(f"Writing {loaded.net.backbone.architecture} as {to}.")
        written = FORMATS[to].write(
            WriteRequest(loaded, partial, quantize, images.calibration, Path(scratch), progress)
        )
        count = f"{len(images.compared.paths):,} images ({images.words})"
        progress.say(f"Comparing with the model on {count}, in a separate process.")
        expected = _expected(loaded, images.compared, device=device, progress=progress)
        formats = [model_format(expected, loaded.thresholds, size=_size_of(model))]
        for name, path in written.files.items():
            answers = run_in_subprocess(path, expected.paths, full_size=path == partial)
            formats.append(file_format(name, expected, answers, size=size_of(path)))
        if faults := parity_failures(
            formats[-1], formats[0], precision=written.metadata.precision, allow_loss=allow_loss
        ):
            raise ExportError(f"{file}: not written: {'; '.join(faults)}.")
    _note_test(model, images.compared, formats[-1], "export", progress)
    quantised = _quantised(file, written.metadata)
    return Exported(file, written.metadata, tuple(formats), images.words, quantised=quantised)


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
    metadata = open_export(path).metadata
    if model is None and _is_run(data):
        model = user_path(data)
    loaded = None if model is None else _origin(model, path, metadata)
    images = _images_for(metadata, data, model, calibrate=False, cache=cache, progress=progress)
    progress.say(f"Running {path.name} on {len(images.compared.paths):,} images, in a separate process.")
    answers = run_in_subprocess(path, images.compared.paths, full_size=True)
    expected, formats = ReferencePredictions(tuple(images.compared.paths), images.compared.labels), []
    if loaded is not None:
        expected = _expected(loaded, images.compared, device=device, progress=progress)
        assert model is not None
        formats.append(model_format(expected, loaded.thresholds, size=_size_of(model)))
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
    return None if count is None or metadata.precision == "float32" else count(file)


def _output(model: Source | Model, to: str, quantize: str, out: Source | None) -> Path:
    if to not in FORMATS:
        raise OptionError(f"to {to!r}: expected one of {', '.join(FORMATS)}.")
    variants = {variant for one in FORMATS.values() for variant in one.variants}
    if quantize and quantize not in variants:
        raise OptionError(f"quantize {quantize!r}: expected {' or '.join(sorted(variants))}.")
    if quantize and quantize not in FORMATS[to].variants:
        able = [name for name, one in FORMATS.items() if quantize in one.variants]
        raise OptionError(f"quantize {quantize}: not available for format {to}, only for {', '.join(able)}.")
    if FORMATS[to].extra:
        require_extra(FORMATS[to].extra, f"export to {to}")
    ending = FORMATS[to].suffix
    if out is None:
        if isinstance(model, Model) or read_address(model):
            raise OptionError(
                f"the model is not in a run folder. Give the file to write (option out), for example NAME{ending}."
            )
        path = user_path(model)
        path = path / MODEL_FILE if path.is_dir() else path
        out = path.with_name(f"{path.stem}{f'-{quantize}' if quantize else ''}{ending}")
    return check_destination(out, FORMATS[to])


def _images_for(
    model: HasClasses,
    source: Source | Model | Dataset,
    origin: Source | Model | None,
    *,
    calibrate: bool,
    cache: Path | None,
    progress: Progress,
) -> _Images:
    if isinstance(source, Model) or (not isinstance(source, Dataset) and user_path(source).suffix == ".safetensors"):
        raise RunError(f"{_name(source)}: a model file without its run. Give the images to compare on (option data).")
    if _is_run(source):
        images = _run_images(user_path(source), model)
    else:
        run = user_path(origin) if origin is not None and _is_run(origin) else None
        dataset = open_like(run, source, min_classes=1)
        all_images = other_images(dataset, model, split_rows(run) if run else [], False, cache=cache, progress=progress)
        images = _data_images(dataset.root, all_images)
    if calibrate:
        images = images.with_calibration()
    if not images.compared.paths:
        raise DataError(f"{_name(source)}: no images to compare on. Give others (option data).")
    if calibrate and not images.calibration:
        raise DataError(f"{_name(source)}: no images left to calibrate int8 on. Give more (option data).")
    missing = [path for path in images.compared.paths if is_gone(path)]
    if missing:
        raise DataError(
            f"{missing[0]}: no longer exists; {len(missing):,} images are missing ({images.words}). Give other images "
            "(option data)."
        )
    return images.sample()


def _run_images(folder: Path, model: HasClasses) -> _Images:
    """The first of ``COMPARED_SETS`` that a run has, and its training images."""
    rows = split_rows(folder)
    name = next((name for name in COMPARED_SETS if any(row["split"] == name for row in rows)), "val")
    words = f"val of {folder}" if name == "val" else f"{COMPARED_SETS[name]} of {folder}, which has no val"
    train = [row["path"] for row in rows if row["split"] == "train"]
    return _Images(own_images(folder, model, (name,)), train, words)


def _data_images(root: str, images: LabelledImages) -> _Images:
    """The first of ``COMPARED_SETS`` that a data set has, else its first set, and its training images."""
    name = next(name for name in (*COMPARED_SETS, *images.sets) if name in images.sets)
    words = f"{'' if name == 'all' else f'{COMPARED_SETS.get(name, name)} of '}{root}"
    train = [path for path, image_set in zip(images.paths, images.sets, strict=True) if image_set == "train"]
    return _Images(images.some([i for i, image_set in enumerate(images.sets) if image_set == name]), train, words)


def _is_run(source: Source | Model | Dataset | None) -> TypeGuard[Source]:
    return isinstance(source, (str, os.PathLike)) and (user_path(source) / MODEL_FILE).is_file()


def _name(source: Source | Model | Dataset) -> str:
    return repr(source) if isinstance(source, (Model, Dataset)) else os.fspath(source)


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` positions, evenly spaced."""
    return sorted({int(place) for place in np.linspace(0, count - 1, min(count, most))}) if count else []


def _expected(model: Model, images: LabelledImages, *, device: str, progress: Progress) -> ReferencePredictions:
    clock = _Clock(progress)
    probabilities, outliers, faults = model.predict_with_outliers(images.paths, device=device, progress=clock)
    if faults:
        first = min(faults)
        raise DataError(f"{images.paths[first]}: {faults[first]}. {len(faults):,} of the images cannot be read.")
    return ReferencePredictions(tuple(images.paths), images.labels, probabilities, outliers, clock.seconds)


@final
class _Clock:
    """A progress that measures the duration of a task without its first batch, in which an engine is chosen.

    Attributes:
        seconds: duration of all batches, extrapolated from those after the first.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds = 0.0

    def say(self, text: str) -> None:
        """Forwards a message."""
        self.progress.say(text)

    @contextmanager
    def task(self, name: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """Forwards a task and records when each batch ends."""
        begun, seen = time.perf_counter(), list[tuple[int, float]]()

        def note(count: int) -> None:
            seen.append((count, time.perf_counter()))
            advance(count)

        with self.progress.task(name, total, unit) as advance:
            yield note
        if seen:
            start, done = (seen[0][1], total - seen[0][0]) if len(seen) > 1 else (begun, total)
            self.seconds += (seen[-1][1] - start) * total / done


def _size_of(model: Source | Model) -> int:
    """Size of the model file in bytes; 0 without one."""
    if isinstance(model, Model) or read_address(model):
        return 0
    path = user_path(model)
    return (path / MODEL_FILE if path.is_dir() else path).stat().st_size


def _note_test(
    model: Source | Model | None, images: LabelledImages, one: FormatResult, by: str, progress: Progress
) -> None:
    if any(images.is_test) and model is not None and _is_run(model):
        record_test_score(user_path(model), by, images=sum(images.is_test), correct=one.correct, progress=progress)
