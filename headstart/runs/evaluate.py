"""Scoring a saved model: on its run's own images, or on others."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headstart.data.checks import unreadable
from headstart.data.dataset import Dataset, open_data
from headstart.data.scan import scan
from headstart.data.table import SEPARATOR
from headstart.errors import DataError, RunError
from headstart.evaluation.predictions import Evaluated, evaluate_predictions
from headstart.model import Model, load
from headstart.progress import Progress, SilentProgress, with_example
from headstart.runs.known import split_rows


def evaluate(
    run_or_model: str | os.PathLike[str],
    source: str | os.PathLike[str] | Dataset | None = None,
    *,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> list[Evaluated]:
    """Scores a saved model: on its run's own val and test images, or on other data.

    Args:
        run_or_model: a run folder or a model file.
        source: other data, each of its splits scored apart; the run's own where it is not given. Images that the
            run was trained on are counted, and said.
        device: see ``train``.
        cache: the cache folder; the default one where it is not given.
        progress: told of each step.

    Raises:
        DataError: data without an image of a class that the model knows, or with one class to an image where the model
            gives any number of labels, or the other way round; or a run whose images are gone.
        RunError: a model file without data, or a folder that is no finished run.
        ModelFileError: the model cannot be read.
    """
    progress = progress or SilentProgress()
    model = load(run_or_model)
    folder = Path(run_or_model).expanduser()
    if source is None:
        paths, labels, sets = _own_images(folder, model)
    else:
        taught = {row["content"] for row in split_rows(folder) if row["split"] == "train"} if folder.is_dir() else set()
        paths, labels, sets = _other_images(open_data(source), model, taught, cache=cache, progress=progress)
    probabilities, outliers, faults = model.examine(paths, device=device, progress=progress)
    if source is None and faults:
        first = min(faults)
        raise DataError(
            f"{len(faults)} of the run's images cannot be read; the first, {paths[first]}: {faults[first]}."
        )
    evaluated = []
    for name in dict.fromkeys(sets):
        places = [i for i, own in enumerate(sets) if own == name and i not in faults]
        if places:
            part, own, chances = [paths[i] for i in places], labels[places], probabilities[places]
            chose = source is None and name == "val"
            found = evaluate_predictions(
                name, part, own, chances, model.classes, thresholds=model.thresholds, chose=chose
            )
            evaluated.append(found if model.familiar is None else replace(found, outliers=outliers[places]))
    return evaluated


def _numbers(names: list[list[str]], model: Model) -> npt.NDArray[np.int64]:
    """Labels of images by their names, as ``training.targets`` has them; unknown ones of several are left aside."""
    number = {name: i for i, name in enumerate(model.classes)}
    if model.thresholds is None:
        return np.array([number[own[0]] for own in names], dtype=np.int64)
    labels = np.zeros((len(names), len(number)), dtype=np.int64)
    for row, own in zip(labels, names, strict=True):
        row[[number[name] for name in own if name in number]] = 1
    return labels


def _own_images(folder: Path, model: Model) -> tuple[list[str], npt.NDArray[np.int64], list[str]]:
    if not folder.is_dir():
        raise RunError(f"{folder}: a model file alone; name the data to score it on.")
    rows = [row for row in split_rows(folder) if row["split"] in ("val", "test")]
    rows.sort(key=lambda row: ("val", "test").index(row["split"]))
    if model.thresholds is None:
        names = [[row["label"]] for row in rows]
    else:
        names = [row["labels"].split(SEPARATOR) for row in rows]
    return [r["path"] for r in rows], _numbers(names, model), [r["split"] for r in rows]


def _other_images(
    dataset: Dataset, model: Model, trained_on: set[str], *, cache: Path | None, progress: Progress
) -> tuple[list[str], npt.NDArray[np.int64], list[str]]:
    several = model.thresholds is not None
    if dataset.multi_label != several:
        kinds = "one class to an image", "any number of labels to an image (a column labels)"
        raise DataError(
            f"{dataset.root}: the data have {kinds[dataset.multi_label]}, and the model gives {kinds[several]}. Score "
            "it on data of its own kind."
        )
    scanned = scan(dataset.files(), cache=cache, progress=progress)
    names = [[dataset.classes[i] for i in own] for own in dataset.numbers()]
    strange = [name for name in dataset.classes if name not in model.classes]
    if strange and several:
        progress.say(
            with_example(f"Warning: {len(strange):,} label(s) that the model does not know count not", strange)
        )
    elif strange:
        count = sum(own[0] in strange for own in names)
        text = f"Warning: {count:,} images of classes that the model does not know are not scored"
        progress.say(with_example(text, strange))
    for finding in unreadable(dataset, scanned):
        progress.say(with_example(f"Serious: {finding.message}", finding.items))
    known = set(model.classes)
    keep = [i for i, own in enumerate(names) if (several or own[0] in known) and i not in scanned.faults]
    if not keep or not known & set(dataset.classes):
        raise DataError(
            f"{dataset.root}: no readable image of a class that the model knows. It knows "
            f"{', '.join(model.classes[:10])}; found {', '.join(dataset.classes[:10])}."
        )
    taught = [dataset.paths[i] for i in keep if scanned.keys[i].hex() in trained_on]
    if taught:
        text = f"Serious: the model was trained on {len(taught):,} of these {len(keep):,} images: the score is too high"
        progress.say(with_example(text, taught))
    files, splits = dataset.files(), dataset.splits
    return (
        [files[i] for i in keep],
        _numbers([names[i] for i in keep], model),
        [splits[i] if splits else "all" for i in keep],
    )
