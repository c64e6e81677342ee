"""From labelled images to a classifier: every step of a run, in order."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.backbone.forward import FeatureNet
from headstart.backbone.weights import DEFAULT_BACKBONE, load_backbone
from headstart.data.checks import Inspection, inspect
from headstart.data.dataset import Dataset, open_data
from headstart.data.splits import SplitShares
from headstart.errors import DataError, OptionError
from headstart.evaluation.metrics import Scores
from headstart.evaluation.predictions import Evaluated, evaluate_predictions
from headstart.features.extract import compute_features
from headstart.model import Model, data_fingerprint
from headstart.progress import Progress, SilentProgress, with_example
from headstart.runs.folder import Run, new_run_folder, write_run
from headstart.training.probe import fit_probe
from headstart.training.recipe import Recipe


def train(
    source: str | os.PathLike[str] | Dataset,
    *,
    out: str | os.PathLike[str] | None = None,
    recipe: Recipe | None = None,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
    **choices: Any,
) -> Run:
    """Turns labelled images into a classifier.

    Args:
        source: a folder, a table, or a data set that is open already.
        out: the run folder, new or empty; "runs/NAME" where it is not given.
        recipe: every choice at once.
        device: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder; the default one where it is not given.
        progress: told of each step.
        **choices: fields of ``Recipe``, in place of ``recipe``: ``train(data, seed=1)``.

    Raises:
        DataError: the data cannot be used; says what was found.
        WeightsError: the backbone's weights cannot be had.
        OptionError: a choice has a value that it cannot take.
        RunError: the run folder is taken, or cannot be written.
    """
    progress = progress or SilentProgress()
    recipe = _recipe(recipe, choices)
    shares = SplitShares(recipe.val, recipe.test)
    dataset = open_data(source)
    folder = new_run_folder(out, dataset.root)
    try:
        return _train(dataset, folder, recipe, shares, device=device, cache=cache, progress=progress)
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()  # nothing was written yet: leave no empty folder behind
        raise


def _train(
    dataset: Dataset,
    folder: Path,
    recipe: Recipe,
    shares: SplitShares,
    *,
    device: str,
    cache: Path | None,
    progress: Progress,
) -> Run:
    clock = _Clock()
    backbone = load_backbone(
        recipe.backbone or DEFAULT_BACKBONE,
        weights=recipe.weights or None,
        image_size=recipe.image_size or None,
    )
    net = FeatureNet(backbone, pool=recipe.pool, layer=recipe.layer or None)
    clock.lap("load the backbone")

    look = inspect(
        dataset,
        seed=recipe.seed,
        shares=shares,
        preprocessing=backbone.preprocessing,
        cache=cache,
        progress=progress,
    )
    _require_learnable(look)
    _say_findings(look, progress)
    clock.lap("read the images")

    used = {name: look.split.positions(name) for name in look.split.names}
    keys = {name: [look.scanned.keys[i] for i in positions] for name, positions in used.items()}
    store = compute_features(
        net, [k for part in keys.values() for k in part], device=device, cache=cache, progress=progress
    )
    clock.lap("run the backbone")

    labels = look.dataset.labels
    probe = fit_probe(
        store.read(keys["train"]),
        labels[used["train"]],
        classes=len(look.dataset.classes),
        balance=recipe.balance,
        seed=recipe.seed,
        progress=progress,
    )
    progress.say(f"Fitted the probe on {len(used['train']):,} images: {probe.reason}.")
    clock.lap("fit the probe")

    model = Model(
        net,
        probe.weight,
        probe.bias,
        look.dataset.classes,
        recipe=recipe,
        data=_data_document(look),
        scores={},
    )
    evaluated = [
        _evaluate(model, store.read(keys[name]), look, used[name], name) for name in look.split.names if name != "train"
    ]
    model.scores = {e.scores.name: _short_scores(e.scores) for e in evaluated}
    clock.lap("evaluate")
    run = Run(folder, recipe, {e.scores.name: e.scores for e in evaluated}, look.findings, clock.laps)
    write_run(run, model, probe, look, evaluated)
    return run


def _recipe(recipe: Recipe | None, choices: dict[str, Any]) -> Recipe:
    if recipe is not None and choices:
        raise OptionError(f"give a recipe or single choices ({', '.join(choices)}), not both.")
    try:
        return recipe or Recipe(**choices)
    except TypeError as error:
        known = ", ".join(Recipe.__dataclass_fields__)
        raise OptionError(f"{str(error).split(') ')[-1]}. A recipe has: {known}.") from error


def _require_learnable(look: Inspection) -> None:
    counts = look.counts()
    learnable = [label for label, count in counts.get("train", {}).items() if count]
    if len(learnable) < 2:
        raise DataError(
            f"{look.dataset.root}: training images of {len(learnable)} class(es) only; a classifier needs two. "
            "Add images, or choose smaller shares for val and test."
        )
    if not any(sum(counts.get(name, {}).values()) for name in ("val", "test")):
        raise DataError(
            f"{look.dataset.root}: no image is left to score the classifier on ({len(look.dataset)} in all). "
            "Add images, or choose a larger share for val."
        )


def _say_findings(look: Inspection, progress: Progress) -> None:
    parts = [f"{name} {sum(classes.values()):,}" for name, classes in look.counts().items()]
    how = "as given" if look.split.given else "drawn"
    progress.say(f"{look.dataset.root}: {len(look.dataset.classes)} classes, {', '.join(parts)} images (split {how}).")
    for finding in look.findings:
        if finding.severity != "note":
            progress.say(with_example(f"{finding.severity.capitalize()}: {finding.message}", finding.items))


def _evaluate(
    model: Model, features: npt.NDArray[np.float32], look: Inspection, positions: list[int], name: str
) -> Evaluated:
    files = look.dataset.files()
    return evaluate_predictions(
        name,
        [files[i] for i in positions],
        look.dataset.labels[positions],
        model.probabilities(features),
        model.classes,
    )


def _data_document(look: Inspection) -> dict[str, Any]:
    train = look.split.positions("train")
    names = look.dataset.label_names()
    return {
        "name": look.dataset.root.name,
        "counts": look.counts(),
        "train_sha256": data_fingerprint([look.scanned.keys[i] for i in train], [names[i] for i in train]),
    }


def _short_scores(scores: Scores) -> dict[str, Any]:
    return {k: v for k, v in scores.as_json().items() if k not in ("classes", "confusion")}


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name], self._last = round(now - self._last, 2), now
