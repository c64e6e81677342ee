"""Scoring a saved model: on its run's own images, or on others."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np

from headstart.data.checks import inspect
from headstart.data.dataset import Dataset
from headstart.errors import DataError, RunError
from headstart.evaluation.predictions import Evaluated, evaluate_predictions
from headstart.model import Model, load
from headstart.progress import Progress, SilentProgress


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
        source: other data, each of its splits scored apart; the run's own where it is not given.
        device: see ``train``.
        cache: the cache folder; the default one where it is not given.
        progress: told of each step.

    Raises:
        DataError: data without an image of a class that the model knows, or a run whose images are gone.
        RunError: a model file without data, or a folder that is no finished run.
        ModelFileError: the model cannot be read.
    """
    progress = progress or SilentProgress()
    model = load(run_or_model)
    if source is None:
        paths, labels, sets = _own_images(Path(run_or_model), model)
    else:
        paths, labels, sets = _other_images(source, model, cache=cache, progress=progress)
    probabilities, faults = model.predict_proba(paths, device=device, progress=progress)
    if source is None and faults:
        first = min(faults)
        raise DataError(
            f"{len(faults)} of the run's images cannot be read; the first, {paths[first]}: {faults[first]}."
        )
    evaluated = []
    for name in dict.fromkeys(sets):
        places = [i for i, own in enumerate(sets) if own == name and i not in faults]
        if places:
            numbers = np.array([labels[i] for i in places], dtype=np.int64)
            part = [paths[i] for i in places]
            evaluated.append(evaluate_predictions(name, part, numbers, probabilities[places], model.classes))
    return evaluated


def _own_images(folder: Path, model: Model) -> tuple[list[str], list[int], list[str]]:
    if not folder.is_dir():
        raise RunError(f"{folder}: a model file alone; name the data to score it on.")
    with open(folder / "split.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] in ("val", "test")]
    rows.sort(key=lambda row: ("val", "test").index(row["split"]))
    number = {name: i for i, name in enumerate(model.classes)}
    return [r["path"] for r in rows], [number[r["label"]] for r in rows], [r["split"] for r in rows]


def _other_images(
    source: str | os.PathLike[str] | Dataset, model: Model, *, cache: Path | None, progress: Progress
) -> tuple[list[str], list[int], list[str]]:
    look = inspect(source if isinstance(source, Dataset) else Path(source), cache=cache, progress=progress)
    number = {name: i for i, name in enumerate(model.classes)}
    names = look.dataset.label_names()
    strange = sorted(set(names) - set(number))
    if strange:
        progress.say(
            f"Warning: {sum(name in strange for name in names):,} images of classes that the model does not know are "
            f"not scored: {', '.join(strange[:5])}{', ...' if len(strange) > 5 else ''}."
        )
    for finding in look.findings:
        if finding.kind == "unreadable":
            progress.say(f"Serious: {finding.message} ({finding.items[0]}{', ...' if len(finding.items) > 1 else ''}).")
    keep = [i for i, name in enumerate(names) if name in number and i not in look.scanned.faults]
    if not keep:
        raise DataError(
            f"{look.dataset.root}: no image of a class that the model knows. It knows {', '.join(model.classes[:10])}; "
            f"found {', '.join(look.dataset.classes[:10])}."
        )
    files, splits = look.dataset.files(), look.dataset.splits
    return (
        [files[i] for i in keep],
        [number[names[i]] for i in keep],
        [splits[i] if splits else "all" for i in keep],
    )
