"""The images that an export is compared on and calibrated with, and the predictions of the model for them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard, final

import numpy as np

from headstart.data.dataset import Dataset
from headstart.data.sources.read import is_gone
from headstart.errors import DataError, RunError
from headstart.exports.formats.interface import NUM_CALIBRATION_IMAGES
from headstart.exports.parity import FormatResult, ReferencePredictions, model_format
from headstart.files import user_path
from headstart.hub import read_address
from headstart.model import Model, load
from headstart.model_file import MODEL_FILE
from headstart.progress import Progress
from headstart.runs.folder import open_like, split_rows
from headstart.verbs.evaluate import HasClasses, LabelledImages, other_images, own_images

SAMPLE = 500
"""Maximum number of images to compare on."""

COMPARED_SETS = {"val": "val", "test": "test", "train": "training images"}
"""Sets to compare on, in order of preference -> name in messages."""

Source = str | os.PathLike[str]


@dataclass(frozen=True)
class ExportImages:
    """Images for an export.

    Attributes:
        compared: the images of one set, to compare on.
        calibration: paths of other images, which calibrate the ranges of activations for int8.
        words: description of ``compared`` for messages.
    """

    compared: LabelledImages
    calibration: list[str]
    words: str

    def with_calibration(self) -> ExportImages:
        """Uses half of the images for calibration if there are no others; those are not compared on."""
        if self.calibration and "train" not in self.compared.sets:
            return self
        count = len(self.compared.paths)
        calibration = self.compared.some(range(1, count, 2)).paths
        return ExportImages(self.compared.some(range(0, count, 2)), calibration, self.words)

    def sample(self) -> ExportImages:
        """At most ``SAMPLE`` images to compare on and ``NUM_CALIBRATION_IMAGES`` for calibration, evenly spaced."""
        compared = self.compared.some(_spread(len(self.compared.paths), SAMPLE))
        spread = _spread(len(self.calibration), NUM_CALIBRATION_IMAGES)
        return ExportImages(compared, [self.calibration[i] for i in spread], self.words)


@dataclass(frozen=True)
class ExportReference:
    """What exported files are compared with.

    Attributes:
        model: the model.
        source: the model as given.
        images: to compare on, and to calibrate with.
        expected: predictions of the model.
        row: of the model in the comparison.
    """

    model: Model
    source: Source | Model
    images: ExportImages
    expected: ReferencePredictions
    row: FormatResult


def reference_for(
    model: Source | Model,
    data: Source | Dataset | None,
    *,
    calibrate: bool,
    device: str,
    cache: Path | None,
    progress: Progress,
) -> ExportReference:
    """Loads a model and computes its predictions; arguments and errors as for ``export``.

    Args:
        model: see ``export``.
        data: see ``export``.
        calibrate: whether images to calibrate with are needed.
        device: see ``export``.
        cache: see ``export``.
        progress: receives messages.
    """
    loaded = model if isinstance(model, Model) else load(model)
    source = model if data is None else data
    images = images_for(loaded, source, model, calibrate=calibrate, cache=cache, progress=progress)
    expected = expected_of(loaded, images.compared, device=device, progress=progress)
    row = model_format(expected, loaded.thresholds, size=model_size(model))
    return ExportReference(loaded, model, images, expected, row)


def images_for(
    model: HasClasses,
    source: Source | Model | Dataset,
    origin: Source | Model | None,
    *,
    calibrate: bool,
    cache: Path | None,
    progress: Progress,
) -> ExportImages:
    """The images of a run or of other data, and those to calibrate with.

    Args:
        model: has the classes.
        source: a run, or labelled images.
        origin: the model as given; that of a run has seen the images of the run.
        calibrate: whether images to calibrate with are needed.
        cache: the cache folder; the default one if None.
        progress: receives messages.

    Raises:
        DataError: there are no readable images to compare on.
        RunError: the run folder has no table of images, or there is no run.
    """
    if isinstance(source, Model) or (not isinstance(source, Dataset) and user_path(source).suffix == ".safetensors"):
        raise RunError(f"{_name(source)}: a model file without its run. Give the images to compare on (option data).")
    if is_run(source):
        images = _run_images(user_path(source), model)
    else:
        run = user_path(origin) if origin is not None and is_run(origin) else None
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


def _run_images(folder: Path, model: HasClasses) -> ExportImages:
    """The first of ``COMPARED_SETS`` that a run has, and its training images."""
    rows = split_rows(folder)
    name = next((name for name in COMPARED_SETS if any(row["split"] == name for row in rows)), "val")
    words = f"val of {folder}" if name == "val" else f"{COMPARED_SETS[name]} of {folder}, which has no val"
    train = [row["path"] for row in rows if row["split"] == "train"]
    return ExportImages(own_images(folder, model, (name,)), train, words)


def _data_images(root: str, images: LabelledImages) -> ExportImages:
    """The first of ``COMPARED_SETS`` that a data set has, else its first set, and its training images."""
    name = next(name for name in (*COMPARED_SETS, *images.sets) if name in images.sets)
    words = f"{'' if name == 'all' else f'{COMPARED_SETS.get(name, name)} of '}{root}"
    train = [path for path, image_set in zip(images.paths, images.sets, strict=True) if image_set == "train"]
    return ExportImages(images.some([i for i, image_set in enumerate(images.sets) if image_set == name]), train, words)


def is_run(source: Source | Model | Dataset | None) -> TypeGuard[Source]:
    """Whether something is the path of a run folder."""
    return isinstance(source, (str, os.PathLike)) and (user_path(source) / MODEL_FILE).is_file()


def _name(source: Source | Model | Dataset) -> str:
    return repr(source) if isinstance(source, (Model, Dataset)) else os.fspath(source)


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` positions, evenly spaced."""
    return sorted({int(place) for place in np.linspace(0, count - 1, min(count, most))}) if count else []


def expected_of(model: Model, images: LabelledImages, *, device: str, progress: Progress) -> ReferencePredictions:
    """The predictions of a model, and how long they take.

    Raises:
        DataError: an image cannot be read.
    """
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


def model_size(model: Source | Model) -> int:
    """Size of the model file in bytes; 0 without one."""
    if isinstance(model, Model) or read_address(model):
        return 0
    path = user_path(model)
    return (path / MODEL_FILE if path.is_dir() else path).stat().st_size
