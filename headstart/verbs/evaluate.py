"""Evaluation of a saved model, on the val and test images of its run or on other data."""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from headstart.data.checks import reading_findings
from headstart.data.dataset import Dataset
from headstart.data.label_cells import SEPARATOR
from headstart.data.scan import scan
from headstart.errors import DataError, RunError
from headstart.evaluation.predictions import Evaluated, evaluate_predictions
from headstart.files import user_path
from headstart.model import Model, load
from headstart.progress import Progress, SilentProgress, with_example
from headstart.runs.folder import open_like, split_rows
from headstart.runs.test_set_audit import audit_text, read_audit, record_test_score


class HasClasses(Protocol):
    """Anything with classes and thresholds: a model, or the metadata of an exported file."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the probabilities."""

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """Multi-label models: probability from which each label is assigned; otherwise None."""


@dataclass(frozen=True)
class LabelledImages:
    """N labelled images to evaluate.

    Attributes:
        paths: N paths.
        labels: (N,) int64, or for multi-label models (N, classes) int64 of 0 and 1.
        sets: N names of sets, such as "val".
        groups: see ``Evaluated.groups``.
        is_test: whether each image is a test image of the run.
    """

    paths: list[str]
    labels: npt.NDArray[np.int64]
    sets: list[str]
    groups: list[str] | None
    is_test: list[bool]

    def some(self, positions: Sequence[int]) -> LabelledImages:
        """The images at the given positions."""
        columns: tuple[list[Any], ...] = (self.paths, self.sets, self.is_test)
        paths, sets, is_test = ([column[i] for i in positions] for column in columns)
        groups = None if self.groups is None else [self.groups[i] for i in positions]
        return LabelledImages(paths, self.labels[list(positions)], sets, groups, is_test)

    def rows_by_set(self, *, without: Container[int]) -> dict[str, list[int]]:
        """Set -> positions of its images, without some."""
        rows: dict[str, list[int]] = {}
        for i, name in enumerate(self.sets):
            if i not in without:
                rows.setdefault(name, []).append(i)
        return rows


def evaluate(
    run_or_model: str | os.PathLike[str],
    source: str | os.PathLike[str] | Dataset | None = None,
    *,
    ignore_unknown: bool = False,
    by: str = "evaluate",
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> list[Evaluated]:
    """Evaluates a saved model on the val and test images of its run, or on other data.

    Each evaluation on the test images is recorded in the run folder.

    Args:
        run_or_model: a run folder or a model file.
        source: other labelled images: a folder, a table, or an open data set. Each of its splits is evaluated
            separately, and a message reports images that the model was trained on. None for the images of the run.
        ignore_unknown: exclude images of classes that the model does not have (for multi-label models: ignore such
            labels) instead of raising an error.
        by: the purpose to record if test images are evaluated.
        device: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder; the default one if None.
        progress: receives messages and the progress of each task.

    Returns:
        Predictions and scores of each set, in the order of the data.

    Raises:
        DataError: the data has a class that the model does not have, or no class that it has; has single labels for a
            multi-label model, or the reverse; or images of the run cannot be read.
        RunError: a model file without ``source``, or a folder that is not a finished run.
        ModelFileError: the model cannot be read.

    Examples:
        >>> val, test = hs.evaluate("runs/flowers")
        >>> test.scores.sentence
        'test accuracy 88.9 % (8/9), 95 % CI 56.5-98.0'
        >>> test.probabilities.shape
        (9, 2)
    """
    progress = progress or SilentProgress()
    model = load(run_or_model)
    folder = user_path(run_or_model)
    run = folder if folder.is_dir() else None
    if source is None:
        images = own_images(folder, model)
    else:
        rows, dataset = split_rows(run) if run else [], open_like(run, source)
        images = other_images(dataset, model, rows, ignore_unknown, cache=cache, progress=progress)
    if run and any(images.is_test) and (words := audit_text(read_audit(run))):
        progress.say(
            f"{words} before. If you choose a model by this score, it becomes too optimistic; use new test images then."
        )
    probabilities, outliers, faults = model.predict_with_outliers(images.paths, device=device, progress=progress)
    if source is None and faults:
        first = min(faults)
        raise DataError(
            f"{len(faults)} of the run's images cannot be read. The first: {images.paths[first]}: {faults[first]}. Put "
            "them back where they were, or give the images to score (headstart evaluate RUN DATA)."
        )
    rows_of = images.rows_by_set(without=faults)
    chosen_on = "val" if source is None else ""
    parts = {name: images.some(rows) for name, rows in rows_of.items()}
    evaluated = [
        _score_set(name, part, probabilities[rows_of[name]], outliers[rows_of[name]], model, chose=name == chosen_on)
        for name, part in parts.items()
    ]
    if run:
        _record(run, by, list(parts.values()), evaluated, progress)
    return evaluated


def _score_set(
    name: str,
    images: LabelledImages,
    probabilities: npt.NDArray[np.float64],
    outliers: npt.NDArray[np.float64],
    model: Model,
    *,
    chose: bool,
) -> Evaluated:
    scored = evaluate_predictions(
        name,
        images.paths,
        images.labels,
        probabilities,
        model.classes,
        thresholds=model.thresholds,
        chose=chose,
    )
    groups = None if images.groups is None else tuple(images.groups)
    return replace(scored, outliers=None if model.ood_detector is None else outliers, groups=groups)


def _record(
    run: Path, by: str, parts: Sequence[LabelledImages], evaluated: Sequence[Evaluated], progress: Progress
) -> None:
    """Notes in a run's folder that its test images were scored, if they were."""
    correct = [scored.right[np.array(part.is_test)] for part, scored in zip(parts, evaluated, strict=True)]
    if count := sum(map(len, correct)):
        record_test_score(run, by, images=count, correct=sum(int(part.sum()) for part in correct), progress=progress)


def _numbers(names: list[list[str]], model: HasClasses) -> npt.NDArray[np.int64]:
    """Label names as indices, or for multi-label models as rows of 0 and 1, which omit unknown labels."""
    number = {name: i for i, name in enumerate(model.classes)}
    if model.thresholds is None:
        return np.array([number[image_names[0]] for image_names in names], dtype=np.int64)
    labels = np.zeros((len(names), len(number)), dtype=np.int64)
    for row, image_names in zip(labels, names, strict=True):
        row[[number[name] for name in image_names if name in number]] = 1
    return labels


def own_images(folder: Path, model: HasClasses, sets: Sequence[str] = ("val", "test")) -> LabelledImages:
    """The images of a run, by default those of val and test.

    Args:
        folder: the run folder.
        model: the model to evaluate.
        sets: sets of the run, in the order of the result.

    Raises:
        RunError: a model file without its run, or a run folder without its table of images.
    """
    if not folder.is_dir():
        raise RunError(f"{folder}: a model file without its run; give the data to score it on.")
    rows = [row for row in split_rows(folder) if row["split"] in sets]
    rows.sort(key=lambda row: sets.index(row["split"]))
    if model.thresholds is None:
        names = [[row["label"]] for row in rows]
    else:
        names = [row["labels"].split(SEPARATOR) for row in rows]
    sets = [r["split"] for r in rows]
    groups = [r["group"] for r in rows] if rows and "group" in rows[0] else None
    return LabelledImages(
        [r["path"] for r in rows], _numbers(names, model), sets, groups, [name == "test" for name in sets]
    )


def other_images(
    dataset: Dataset,
    model: HasClasses,
    rows: Sequence[dict[str, str]],
    ignore_unknown: bool,
    *,
    cache: Path | None,
    progress: Progress,
) -> LabelledImages:
    """The readable images of a data set that belong to a class of the model.

    Args:
        dataset: labelled images.
        model: the model to evaluate.
        rows: table of images of the run that the model comes from; empty without a run.
        ignore_unknown: see ``evaluate``.
        cache: see ``evaluate``.
        progress: receives messages about excluded images.

    Raises:
        DataError: see ``evaluate``.
    """
    _check_kind(dataset, model)
    scanned = scan(dataset.files(), cache=cache, progress=progress)
    names = [[dataset.classes[i] for i in indices] for indices in dataset.label_indices()]
    unknown = [name for name in dataset.classes if name not in model.classes]
    if unknown:
        _handle_unknown(dataset, unknown, names, model, ignore_unknown, progress)
    for finding in reading_findings(dataset, scanned):
        progress.say(finding.line)
    model_classes = set(model.classes)
    is_scored = [model.thresholds is not None or image_names[0] in model_classes for image_names in names]
    keep = [i for i in range(len(names)) if is_scored[i] and i not in scanned.faults]
    if not keep or not model_classes & set(dataset.classes):
        raise DataError(
            f"{dataset.root}: no readable image of a class of the model. Its classes are "
            f"{', '.join(model.classes[:10])}; found {', '.join(dataset.classes[:10])}."
        )
    split_of = {row["content"]: row["split"] for row in rows}
    run_splits = [split_of.get(scanned.keys[i].hex()) for i in keep]
    trained_on = [dataset.paths[i] for i, name in zip(keep, run_splits, strict=True) if name == "train"]
    if trained_on:
        text = f"Serious: the model was trained on {len(trained_on):,} of the {len(keep):,} images"
        progress.say(with_example(f"{text}: the score is too high", trained_on))
    files, splits, groups = dataset.files(), dataset.splits, dataset.groups
    return LabelledImages(
        [files[i] for i in keep],
        _numbers([names[i] for i in keep], model),
        [splits[i] if splits else "all" for i in keep],
        None if groups is None else [groups[i] for i in keep],
        [name == "test" for name in run_splits],
    )


def _check_kind(dataset: Dataset, model: HasClasses) -> None:
    """Raises an error if the data is multi-label and the model is not, or the reverse."""
    is_multi_label = model.thresholds is not None
    if dataset.multi_label != is_multi_label:
        kinds = "one class per image", "several labels per image (a column labels)"
        raise DataError(
            f"{dataset.root}: the data has {kinds[dataset.multi_label]}, but the model predicts "
            f"{kinds[is_multi_label]}. Score it on data of the same kind."
        )


def _handle_unknown(
    dataset: Dataset,
    unknown: Sequence[str],
    names: Sequence[Sequence[str]],
    model: HasClasses,
    ignore_unknown: bool,
    progress: Progress,
) -> None:
    """Raises an error for classes that the model does not have, or reports them as ignored."""
    if not ignore_unknown:
        counts = [f"{name} ({sum(name in image_names for image_names in names):,} images)" for name in unknown]
        raise DataError(
            f"{dataset.root}: the model has no class {', '.join(counts[:5])}{', ...' if len(counts) > 5 else ''}. It "
            f"has {', '.join(model.classes[:10])}{', ...' if len(model.classes) > 10 else ''}. Rename them to the "
            "model's classes, or exclude their images with ignore_unknown (--ignore-unknown)."
        )
    if model.thresholds is not None:
        text = f"Warning: {len(unknown):,} label(s) that the model does not have are ignored"
    else:
        count = sum(image_names[0] in unknown for image_names in names)
        text = f"Warning: {count:,} images of classes that the model does not have are not scored"
    progress.say(with_example(text, unknown))
