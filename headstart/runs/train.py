"""From labelled images to a classifier: every step of a run, in order."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.backbone.engine import (
    SAMPLE,
    EnginePlan,
    choose_engine,
    keep_freed_memory,
    measure_engines,
    read_plan,
    run_stream,
    write_plan,
)
from headstart.backbone.forward import FeatureNet, split_backbone
from headstart.backbone.layers import Layout
from headstart.backbone.weights import DEFAULT_BACKBONE, Backbone, fingerprint, load_backbone, random_backbone
from headstart.data.augment import Augmentation
from headstart.data.checks import Inspection, inspect
from headstart.data.dataset import Dataset, open_data
from headstart.data.scan import pixel_store
from headstart.data.splits import SplitShares
from headstart.errors import DataError, HeadstartError, OptionError, RunError
from headstart.evaluation.metrics import Scores
from headstart.evaluation.predictions import Evaluated, evaluate_predictions
from headstart.features.activations import Activations, Pictures, Views
from headstart.features.extract import compute_features
from headstart.model import Model, data_fingerprint
from headstart.progress import Progress, SilentProgress, with_example
from headstart.runs.climb import CHECKPOINTS, Climb, Climbed, Labelled, tap_at
from headstart.runs.folder import Run, Start, new_run_folder, read_start, write_run, write_start
from headstart.runs.log import LOG_FILE, Listener, RunLog
from headstart.runs.stages import Stages
from headstart.store import RowStore
from headstart.training.checkpoint import load_checkpoint
from headstart.training.classifiers import check_classes, fit_classifier
from headstart.training.finetune import Samples
from headstart.training.heads import LINEAR
from headstart.training.ladder import RungResult, plan_rungs, plan_text
from headstart.training.recipe import Recipe

ENGINES = "engines.safetensors"
"""What was measured of the engines, in the run's folder of checkpoints."""


def train(
    source: str | os.PathLike[str] | Dataset,
    *,
    out: str | os.PathLike[str] | None = None,
    recipe: Recipe | None = None,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
    listener: Listener | None = None,
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
        listener: told of each event, see ``runs.log.Event``; what it raises ends the run.
        **choices: fields of ``Recipe``, in place of ``recipe``: ``train(data, seed=1)``.

    Raises:
        DataError: the data cannot be used; says what was found.
        WeightsError: the backbone's weights cannot be had.
        OptionError: a choice has a value that it cannot take.
        RunError: the run folder is taken, or cannot be written.
    """
    progress = progress or SilentProgress()
    recipe = _recipe(recipe, choices)
    SplitShares(recipe.val, recipe.test)
    dataset = open_data(source)
    folder = new_run_folder(out, dataset.root)
    start = Start(str(dataset.root.resolve()), device)
    try:
        write_start(folder, recipe, start)
        return carry_out(dataset, folder, recipe, start, cache=cache, progress=progress, listener=listener)
    except (HeadstartError, KeyboardInterrupt) as stop:
        if not (folder / LOG_FILE).exists():  # nothing was learnt yet: leave nothing behind
            shutil.rmtree(folder, ignore_errors=True)
        elif isinstance(stop, KeyboardInterrupt):
            progress.say(f"To go on with this run: headstart train --resume {folder}")
        raise


def resume(
    folder: str | os.PathLike[str],
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    listener: Listener | None = None,
) -> Run:
    """Goes on with a run that was stopped, and ends as if it never had been; on a CPU bit for bit.

    Args:
        folder: of the run.
        cache: the cache folder of the run.
        progress: told of each step.
        listener: told of each event from here on.

    Raises:
        RunError: no unfinished run there, or its images have changed.
    """
    path = Path(folder).expanduser()
    recipe, start = read_start(path)
    progress = progress or SilentProgress()
    return carry_out(open_data(start.data), path, recipe, start, cache=cache, progress=progress, listener=listener)


def carry_out(
    dataset: Dataset,
    folder: Path,
    recipe: Recipe,
    start: Start,
    *,
    look: Inspection | None = None,
    insist: bool = False,
    cache: Path | None,
    progress: Progress,
    listener: Listener | None = None,
) -> Run:
    """Every step of a run whose folder is there.

    Args:
        dataset: the images.
        folder: of the run.
        recipe: every choice.
        start: what the run began with.
        look: what was found in the data, by this seed and these shares; looked at here where it is not given.
        insist: keep the last rung, whatever the one below gave.
        cache: the cache folder; the default one where it is not given.
        progress: told of each step.
        listener: told of each event.
    """
    clock = _Clock()
    keep_freed_memory()
    name, image_size = recipe.backbone or DEFAULT_BACKBONE, recipe.image_size or None
    if recipe.scratch:
        backbone = random_backbone(name, image_size=image_size, seed=recipe.seed)
    else:
        backbone = load_backbone(name, weights=recipe.weights or None, image_size=image_size)
    net = FeatureNet(backbone, pool=recipe.pooling, cut=recipe.cut)
    clock.lap("load the backbone")

    look = look or inspect(
        dataset,
        seed=recipe.seed,
        shares=SplitShares(recipe.val, recipe.test),
        preprocessing=backbone.preprocessing,
        cache=cache,
        progress=progress,
    )
    _require_learnable(look)
    check_classes(recipe, len(look.dataset.classes))
    used = {name: look.split.positions(name) for name in look.split.names}
    keys = {name: [look.scanned.keys[i] for i in positions] for name, positions in used.items()}
    _same_images(folder, recipe, start, look, used)
    log = RunLog(folder, size=_log_size(folder), listener=listener)
    log.event("images", run=str(folder), counts=look.counts(), findings=len(look.findings))
    _say_findings(look, progress)
    clock.lap("read the images")

    rungs, frozen = [], None
    train_count, val_count = len(keys["train"]), sum(len(own) for name, own in keys.items() if name != "train")
    engines = _engines(net, folder, keys["train"], train_count, start, cache, progress)
    log.event("engine", exact=engines.reason(exact=True), fast=engines.reason(exact=False))
    if recipe.effort != "probe":
        frozen = split_backbone(backbone, recipe.pooling, recipe.cut)
        rate = engines.rates.get(engines.fast, 20.0)
        if frozen.obstacle:
            progress.say(
                f"{backbone.architecture} can be cut at the head alone ({frozen.obstacle}): a probe is all there is."
            )
        else:
            rungs = plan_rungs(recipe, frozen, train=train_count, rate=rate)
        for line in plan_text(rungs, train=train_count, val=val_count, rate=rate):
            progress.say(line)
            log.event("plan", text=line)
    others = [key for name, own in keys.items() if name != "train" for key in own]

    def features_of(wanted: list[bytes], *, exact: bool) -> RowStore:
        tap = None
        if frozen is not None and rungs and (engines.exact if exact else engines.fast) != "onnxruntime":
            precision = engines.precision(exact)
            tap = tap_at(rungs[-1].boundary, frozen, backbone, precision=precision, cache=cache)
        return compute_features(
            net, wanted, engines=engines, exact=exact, tap=tap, device=start.device, cache=cache, progress=progress
        )

    learnt, reported = features_of(keys["train"], exact=False), features_of(others, exact=True)
    clock.lap("run the backbone")

    labels = look.dataset.labels
    features = learnt.read(keys["train"])
    classes = len(look.dataset.classes)
    files = look.dataset.files()

    def labelled(name: str, features: npt.NDArray[np.float32]) -> Labelled:
        pictures = Pictures([files[i] for i in used[name]], keys[name])
        return Labelled(pictures, labels[used[name]], features)

    own = labelled("train", features)
    val = labelled("val", reported.read(keys["val"])) if keys.get("val") else None
    fitted = fit_classifier(
        recipe,
        own.features,
        own.labels,
        classes=classes,
        layout=Layout.of(backbone.module),
        dtype=engines.in_torch().training_dtype,
        shown=_shown(recipe, net, own, engines, start.device, cache, progress),
        val=None if val is None else (val.features, val.labels),
        progress=progress,
    )
    stages = Stages(net)
    stages.tell(fitted.name, (), fitted.head, log, progress)
    for entry in fitted.history:
        log.epoch(fitted.name, entry, 0 if val is None else len(val.labels))
    progress.say(f"Fitted the {fitted.name} on {train_count:,} images: {fitted.reason}.")
    clock.lap("fit the head")
    climbed = None
    results: tuple[RungResult, ...] = ()
    if frozen is not None:
        climb = Climb(
            backbone,
            frozen,
            rungs,
            own,
            val,
            fitted,
            recipe,
            engines=engines,
            folder=folder,
            stages=stages,
            insist=insist,
            log=log,
            cache=cache,
            progress=progress,
        )
        climbed = climb.run(clock.laps["fit the head"])
        results = climbed.results
        clock.lap("fine-tune")

    best_net = net if climbed is None else FeatureNet(climbed.backbone, pool=recipe.pooling, cut=recipe.cut)
    head = fitted.head if climbed is None else climbed.head
    model = Model(best_net, head, look.dataset.classes, recipe=recipe, data=_data_document(look), scores={})
    evaluated = []
    for name in look.split.names:
        if name != "train":
            if best_net.backbone is backbone:
                seen = reported.read(keys[name])
            else:
                seen = _features_once(best_net, keys[name], engines, start.device, cache, progress)
            evaluated.append(_evaluate(model, seen, look, used[name], name))
    model.scores = {e.scores.name: _short_scores(e.scores) for e in evaluated}
    clock.lap("evaluate")
    run = Run(
        folder,
        recipe,
        {e.scores.name: e.scores for e in evaluated},
        results,
        climbed.best if climbed else fitted.name,
        look.findings,
        clock.laps,
    )
    proof = _proof(backbone, climbed, engines)
    log.event("finished", run=str(folder), scores=model.scores, best=run.best, seconds=clock.laps, **proof)
    log.close()
    write_run(run, model, fitted, look, evaluated, proof=proof)
    (folder / CHECKPOINTS / "current.safetensors").unlink(missing_ok=True)
    return run


def _same_images(folder: Path, recipe: Recipe, start: Start, look: Inspection, used: dict[str, list[int]]) -> None:
    """Writes the fingerprint of the images down, or compares it with the one that the run began with."""
    names = look.dataset.label_names()
    labelled = [(look.scanned.keys[i], f"{names[i]} {part}") for part, own in used.items() for i in own]
    images = data_fingerprint([key for key, _ in labelled], [label for _, label in labelled])
    if start.images and start.images != images:
        raise RunError(
            f"{folder}: the images in {start.data} are not those that this run began with. Put them back, or start "
            "a new run: what was computed of the others is kept."
        )
    if not start.images:
        write_start(folder, recipe, replace(start, images=images))


def _log_size(folder: Path) -> int:
    """Bytes of the log that stand: up to the last checkpoint."""
    sizes = [
        found[0]["log"]
        for file in (folder / CHECKPOINTS).glob("*.safetensors")
        if file.name != ENGINES and (found := load_checkpoint(file)) is not None
    ]
    return max(sizes, default=0)


def _engines(
    net: FeatureNet,
    folder: Path,
    keys: list[bytes],
    train_count: int,
    start: Start,
    cache: Path | None,
    progress: Progress,
) -> EnginePlan:
    """Measured once for a backbone and a machine; a run keeps to what it began with."""
    file = folder / CHECKPOINTS / ENGINES
    kept = read_plan(file)
    if kept is not None:
        return kept
    sample = pixel_store(net.backbone.preprocessing, cache).read(keys[:SAMPLE])
    plan = measure_engines(net, sample, count=train_count, device=start.device, cache=cache, progress=progress)
    write_plan(file, plan)
    return plan


def _shown(
    recipe: Recipe,
    net: FeatureNet,
    own: Labelled,
    engines: EnginePlan,
    device: str,
    cache: Path | None,
    progress: Progress,
) -> Samples | None:
    """Features of augmented views, for a head that is trained by steps and is asked to see some."""
    if recipe.head == LINEAR or not recipe.views:
        return None
    pixels = pixel_store(net.backbone.preprocessing, cache).read(list(own.pictures.keys[:SAMPLE]))
    engine = choose_engine(
        net, count=10**6, sample=pixels, plan=engines.in_torch(), exact=False, device=device, cache=cache
    )
    views = Views(recipe.views, recipe.seed, Augmentation(flip=recipe.flip))
    shape = own.features.shape[1:]
    made = Activations(net, own.pictures, shape=shape, engine=engine, views=views, cache=cache)
    made.prepare(progress)
    return Samples(made, own.labels, own.pictures.keys, recipe.views)


def _features_once(
    net: FeatureNet, keys: list[bytes], engines: EnginePlan, device: str, cache: Path | None, progress: Progress
) -> npt.NDArray[np.float32]:
    """Of weights that no other run has: computed from the pixels by the path that predictions take, and not kept."""
    pixels = pixel_store(net.backbone.preprocessing, cache)
    plan = replace(engines, exact="folded" if "folded" in engines.rates else "torch")
    engine = choose_engine(
        net,
        count=len(keys),
        sample=pixels.read(keys[:SAMPLE]),
        plan=plan,
        device=device,
        cache=cache,
        progress=progress,
    )
    batches = [keys[place : place + engine.batch_size] for place in range(0, len(keys), engine.batch_size)]
    return np.concatenate(list(run_stream(engine, map(pixels.read, batches))))


def _proof(backbone: Backbone, climbed: Climbed | None, engines: EnginePlan) -> dict[str, Any]:
    """Fingerprints of what was frozen, before and after; and what ran it."""
    now = fingerprint(backbone.module.state_dict())
    frozen = {"before": backbone.fingerprint, "after": now} if climbed is None else climbed.frozen
    trained = climbed.trained if climbed else 0
    return {
        "frozen_before": frozen["before"],
        "frozen_after": frozen["after"],
        "trained_weights": trained,
        "engine_exact": engines.reason(exact=True),
        "engine_fast": engines.reason(exact=False),
    }


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
