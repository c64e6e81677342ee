"""From labelled images to a classifier: every step of a run, in order."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from headstart.data.dataset import Dataset, open_data
from headstart.data.inspection import Inspection
from headstart.data.splits import SplitShares, check_shares
from headstart.engine.plan import EnginePlan, read_plan, write_plan
from headstart.errors import HeadstartError, OptionError, RunError, WriteError
from headstart.evaluation.reliability import usual_kept
from headstart.files import user_path, writing_run
from headstart.model import Model, data_fingerprint
from headstart.pipeline.climb import CHECKPOINTS, Climb, Climbed
from headstart.pipeline.prepare import FEATURES_STEP, LABELS_STEP, LAST_STEP, PROBE_STEP, Preparation
from headstart.pipeline.trained_layers import Stages
from headstart.progress import Progress, SilentProgress
from headstart.runs.environment import conditions_of, require_same
from headstart.runs.folder import (
    Run,
    Start,
    choose_run_folder,
    make_run_folder,
    read_start,
    seal,
    write_results,
    write_start,
)
from headstart.runs.log import Listener, RunLog, read_log
from headstart.runs.status import Noted, forget_now, under_way
from headstart.runs.test_audit import USES_FILE, note_use
from headstart.training.checkpoint import load_checkpoint
from headstart.training.frozen_proof import Digests, combined, require_unchanged
from headstart.training.heads import logits_on
from headstart.training.ladder import RungResult
from headstart.training.recipe import Recipe
from headstart.training.recipe_options import RecipeOptions
from headstart.verbs.report import write_card, write_report

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
    **options: Unpack[RecipeOptions],
) -> Run:
    """Turns labelled images into a classifier.

    Args:
        source: a folder, a table, or a data set that is open already.
        out: the run folder, new or empty; "runs/NAME" where it is not given.
        recipe: every option at once.
        device: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder; the default one where it is not given.
        progress: told of each step.
        listener: told of each event, see ``runs.log.Event``; what it raises ends the run.
        **options: fields of ``Recipe``, instead of ``recipe``: ``train(data, seed=1)``.

    Raises:
        DataError: the data cannot be used; says what was found.
        WeightsError: the backbone's weights cannot be had.
        OptionError: an option has a value that it cannot take.
        RunError: the run folder is taken, or cannot be written.
    """
    progress = progress or SilentProgress()
    recipe = Recipe.of(recipe, options)
    shares = SplitShares(recipe.val, recipe.test)
    if recipe.implied_by:
        progress.say(f"Effort: quick, because {recipe.implied_by} was given; name another with effort.")
    dataset = open_data(source, min_classes=recipe.min_classes)
    check_shares(dataset, shares)
    folder = choose_run_folder(out, dataset.root)
    prepared = Preparation(dataset, recipe, device=device, cache=cache, progress=Noted(folder, progress))
    columns = dataset.columns.as_options()
    start = Start(str(dataset.root.resolve()), device, conditions=conditions_of(prepared), columns=columns)
    try:
        make_run_folder(folder)
        write_start(folder, recipe, start)
        return carry_out(prepared, folder, start, listener=listener)
    except BaseException as stop:
        _clean_up(folder, stop, progress)
        raise


def _clean_up(folder: Path, stop: BaseException, progress: Progress) -> None:
    """Removes the folder of a new run that ended before anything was learnt, so that it is free for the next one.

    Args:
        folder: of the run.
        stop: what ended it.
        progress: told after Ctrl-C whether the run can be resumed.
    """
    entries = read_log(folder)
    if isinstance(stop, WriteError):
        kept = (folder / "start.json").exists()
    elif isinstance(stop, (HeadstartError, KeyboardInterrupt)):
        kept = any(entry["event"] == "stage" for entry in entries)
    else:  # a listener's own error
        kept = bool(entries)
    if not kept:
        shutil.rmtree(folder, ignore_errors=True)
    if isinstance(stop, KeyboardInterrupt):
        _say_stopped(folder, progress)


def _say_stopped(folder: Path, progress: Progress) -> None:
    if (folder / "start.json").exists():
        progress.say(f"To go on with this run: headstart train --resume {folder}")
    else:
        progress.say(f"Nothing was learnt yet, and {folder} was removed. Images that were read are cached.")


def resume(
    folder: str | os.PathLike[str],
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    listener: Listener | None = None,
    **choices: Any,
) -> Run:
    """Goes on with a run that was stopped, and ends as if it never had been; on a CPU bit for bit.

    Args:
        folder: of the run.
        cache: the cache folder of the run.
        progress: told of each step.
        listener: told of each event from here on.
        **choices: none; a run is resumed with the choices that it began with.

    Raises:
        OptionError: a choice is given.
        RunError: no unfinished run there; or its images, weights, library versions, processor or device have changed.
    """
    if choices:
        raise OptionError(f"{next(iter(choices))}: a run is resumed with the choices that it began with; leave it out.")
    path = user_path(folder)
    recipe, start = read_start(path)
    progress = progress or SilentProgress()
    dataset = open_data(start.data, min_classes=recipe.min_classes, **start.columns)
    prepared = Preparation(dataset, recipe, device=start.device, cache=cache, progress=Noted(path, progress))
    require_same(path, start.conditions, conditions_of(prepared))
    try:
        return carry_out(prepared, path, start, listener=listener)
    except KeyboardInterrupt:
        _say_stopped(path, progress)
        raise


def carry_out(
    prepared: Preparation,
    folder: Path,
    start: Start,
    *,
    look: Inspection | None = None,
    insist: bool = False,
    brief: bool = False,
    listener: Listener | None = None,
) -> Run:
    """Every step of a run whose folder exists.

    Args:
        prepared: the data, the recipe and the backbone.
        folder: of the run.
        start: what the run began with.
        look: what was found in the data, by this seed and these shares; looked at here where it is not given.
        insist: keep the last rung, whatever the one below gave.
        brief: a report without map and Grad-CAM, of a run that is one of many.
        listener: told of each event.
    """
    with under_way(folder):
        run = _carry_out(prepared, folder, start, look=look, insist=insist, brief=brief, listener=listener)
    forget_now(folder)
    return run


def _carry_out(
    prepared: Preparation,
    folder: Path,
    start: Start,
    *,
    look: Inspection | None,
    insist: bool,
    brief: bool,
    listener: Listener | None,
) -> Run:
    clock = _Clock()
    recipe, progress = prepared.recipe, prepared.progress
    frozen = prepared.frozen_digests()
    clock.laps["load the backbone"] = prepared.seconds

    look = prepared.read_images(look)
    backbone, used, keys = prepared.backbone, prepared.used, prepared.keys
    _same_images(folder, recipe, start, look, used)
    log = RunLog(folder, size=_log_size(folder), listener=listener)
    log.event("images", run=str(folder), counts=look.counts(), findings=len(look.findings))
    log.event("findings", found=[finding.brief(look.dataset.base) for finding in look.findings])
    prepared.say_findings()
    clock.lap("read the images")

    kept = folder / CHECKPOINTS / ENGINES
    engines = prepared.measure(read_plan(kept))
    with writing_run(folder, kept):
        write_plan(kept, engines)
    log.event("engine", exact=engines.reason(exact=True), fast=engines.reason(exact=False))
    for line in prepared.plan():
        progress.say(line)
        log.event("plan", text=line)
    progress = prepared.timetable
    progress.begin(FEATURES_STEP)
    prepared.run_backbone()
    clock.lap("run the backbone")

    progress.begin(PROBE_STEP)
    fitted = prepared.fit()
    stages = Stages(prepared.net)
    stages.tell(fitted.name, (), fitted.head, log, progress, head_frozen=fitted.frozen)
    for entry in fitted.history:
        log.epoch(fitted.name, entry, 0 if prepared.val is None else len(prepared.val.labels))
    progress.say(f"Fitted the {fitted.name} on {len(keys['train']):,} images: {fitted.reason}.")
    clock.lap("fit the head")
    if prepared.val is not None:
        log.event("mistakes", stage=fitted.name, **prepared.mistakes(logits_on(fitted.head, prepared.val.features)))
    progress.begin(LABELS_STEP)
    look = prepared.check_labels()
    log.event("findings", found=[finding.brief(look.dataset.base) for finding in look.findings])
    clock.lap("check the labels")
    climbed = None
    results: tuple[RungResult, ...] = ()
    if prepared.frozen is not None:
        climb = Climb(prepared, folder=folder, stages=stages, insist=insist, log=log)
        climbed = climb.run(clock.laps["fit the head"])
        results = climbed.results
        clock.lap("fine-tune")

    progress.begin(LAST_STEP)
    if climbed is None:
        model, evaluated = prepared.finish(backbone, fitted.head)
    else:
        model, evaluated = prepared.finish(climbed.backbone, climbed.head, climbed.outside)
    progress.say(model.calibration_text)
    usual = usual_kept(model.calibration, evaluated)
    for text in [own.warning for own in usual if own.warning] or [f"{own.sentence}." for own in usual[-1:]]:
        progress.say(text)
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
    proof = _proof(prepared, frozen, model, climbed, engines)
    remembered = prepared.known.remembered_csv() if prepared.known else ""
    image_map = None if brief else prepared.map_images()
    with progress.task("Writing results and report", 1, "steps"):
        document = write_results(
            run, model, fitted, look, evaluated, image_map=image_map, remembered=remembered, proof=proof
        )
        with writing_run(folder):
            (folder / USES_FILE).unlink(missing_ok=True)  # a run that is gone on with looks at them once, too
        for part in evaluated:
            if part.scores.name == "test":
                note_use(folder, "train", images=part.scores.count, correct=part.scores.correct)
        split = prepared.frozen and prepared.frozen.of(model.net.backbone.module)
        write_report(folder, document, model, run.report_path, split=split, brief=brief)
        write_card(folder, document, model)
    clock.lap("write the report")
    seal(folder, document)
    log.finish(run=str(folder), scores=model.scores, best=run.best, seconds=clock.laps, **proof)
    with contextlib.suppress(OSError):
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


def _proof(
    prepared: Preparation, before: Digests, model: Model, climbed: Climbed | None, engines: EnginePlan
) -> dict[str, Any]:
    """What was frozen, before and after training; and the engines that ran it.

    Args:
        prepared: its backbone ran the frozen pass.
        before: of that backbone's tensors, and of the classes that stay where a model is extended, when the run began.
        model: the outcome.
        climbed: the outcome of fine-tuning.
        engines: that were chosen.

    Raises:
        TrainingError: a frozen tensor changed.
    """
    after = prepared.frozen_digests(model.head)
    require_unchanged(before, after, where="the frozen pass")
    if climbed is not None and climbed.trained:
        before, after = climbed.pretrained, climbed.frozen
    return {
        "frozen_before": combined(before),
        "frozen_after": combined(after),
        "trained_weights": climbed.trained if climbed else 0,
        "engine_exact": engines.reason(exact=True),
        "engine_fast": engines.reason(exact=False),
    }


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name], self._last = round(now - self._last, 2), now
