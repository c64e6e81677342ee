"""Training: a run from labelled images to a finished model, step by step."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from headstart.data.dataset import Dataset, open_data
from headstart.data.inspection import Inspection
from headstart.data.splits import SplitShares, check_shares
from headstart.distributed.rank_group import RankSettings
from headstart.errors import HeadstartError, OptionError, WriteError
from headstart.evaluation.reliability import usual_kept
from headstart.pipeline.base_classifier import BaseClassifier, find_rehearsal_images, rehearsal_csv
from headstart.pipeline.choose_layers import choose_and_fit
from headstart.pipeline.choose_recipe import (
    CANDIDATES,
    MAX_COST,
    OF_THE_USER,
    candidates_for,
    check_max_cost,
    choose_recipe,
    minutes_for,
    read_plan_file,
    require_use,
    require_weights,
)
from headstart.pipeline.evaluate import EvaluatedModel, TrainedClassifier, evaluate, mistakes_on_val
from headstart.pipeline.extend import evaluate_extended, fit_new_classes, inspect_new_images
from headstart.pipeline.featurise import featurise
from headstart.pipeline.fine_tune import climb_ladder
from headstart.pipeline.fit import Prepared, check_labels
from headstart.pipeline.inspect_images import inspect_images, report_images, with_value_range
from headstart.pipeline.ladder_state import FineTuned, begin_ladder
from headstart.pipeline.load import Job
from headstart.pipeline.plan import LABELS_STEP, LAST_STEP, PROBE_STEP
from headstart.pipeline.plan import plan as make_plan
from headstart.pipeline.prove_frozen import frozen_digests, prove_frozen
from headstart.pipeline.run_setup import (
    RunSetup,
    StepClock,
    emit_findings,
    measure_once,
    open_log,
    run_events,
    set_up,
    start_timetable,
)
from headstart.pipeline.train_rung import emit_epoch
from headstart.pipeline.trained_layers import TrainedLayers
from headstart.pipeline.write import RunDocuments, finish, map_images, write_files
from headstart.progress import Progress, SilentProgress
from headstart.runs.events import Listener, MistakesFound, RunFinished
from headstart.runs.folder import PLAN_FILE, Run, choose_run_folder, make_run_folder, write_start
from headstart.runs.log import read_log
from headstart.runs.status import remove_status, run_lock
from headstart.training.heads import logits_on
from headstart.training.recipe import Recipe
from headstart.training.recipe_options import RecipeOptions


def train(
    source: str | os.PathLike[str] | Dataset,
    *,
    out: str | os.PathLike[str] | None = None,
    recipe: Recipe | None = None,
    minutes: float | None = None,
    candidates: str | Sequence[str] = CANDIDATES,
    max_cost: float = MAX_COST,
    plan: str | os.PathLike[str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    ray: str | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    listener: Listener | None = None,
    **options: Unpack[RecipeOptions],
) -> Run:
    """Trains a classifier on labelled images.

    Args:
        source: a folder, a table, or an open data set.
        out: the run folder, new or empty; "runs/NAME" by default.
        recipe: every option at once.
        minutes: time for the whole run: backbone, image size and effort are chosen within it. By default five where
            the options leave these open; effort="probe" and other options that decide one of them turn that off.
        candidates: backbones to choose from within ``minutes``, see ``selection.candidates.find_candidates``.
        max_cost: what larger images or backbones side by side may cost for one image within ``minutes``, in multiples
            of the cost of one backbone alone.
        plan: plan.json of an earlier run, or its folder: what it chose is done again, without a clock.
        device: "auto", "cpu", "cuda" or "mps".
        workers: number of processes that fine-tune together. They share out each batch, so their number changes what
            is learnt by rounding only.
        ray: address of a Ray cluster where they run, "auto", or "local" to start one here; then by default one for
            each GPU or CPU.
        cache: the cache folder; the default one by default.
        progress: receives messages and the progress of each task.
        listener: receives each event, see ``runs.events.Event``; an exception that it raises ends the run.
        **options: fields of ``Recipe``, instead of ``recipe``: ``train(data, seed=1)``.

    Raises:
        DataError: the data cannot be used; the message says what was found.
        WeightsError: the weights of the backbone cannot be loaded.
        LicenseError: the licence of the weights is restricted, and was not accepted.
        OptionError: an option is invalid.
        RunError: the run folder is not empty, or cannot be written.
        WorkerError: a worker was lost while it fine-tuned; the run can be resumed.

    Examples:
        >>> run = hs.train("flowers/", effort="probe")
        >>> run.scores.sentence
        'cross-validation accuracy 93.8 % (30/32), 95 % CI 79.9-98.3'
    """
    progress = progress or SilentProgress()
    recipe, minutes, fingerprint = _recipe_of(recipe, options, minutes, plan)
    check_max_cost(max_cost)
    require_use(recipe, minutes, candidates, max_cost, plan)
    dataset = _opened(source, recipe, progress)
    folder = choose_run_folder(out, dataset.root)
    events = run_events(folder, progress, listener)
    job = Job(dataset, recipe, device, cache, events, RankSettings(workers, ray))
    found = () if minutes is None else candidates_for(recipe, candidates, events)
    setup = None if found else set_up(job, folder, events)
    try:
        make_run_folder(folder)
        if minutes is not None:
            ends = time.monotonic() + 60 * minutes
            events.use_estimate(lambda: max(0.0, ends - time.monotonic()))
            job = replace(job, recipe=choose_recipe(job, found, minutes, folder, max_cost=max_cost))
        setup = setup or set_up(job, folder, events)
        require_weights(setup.loaded.backbone, fingerprint)
        write_start(folder, job.recipe, setup.start)
        return carry_out(setup)
    except BaseException as stop:
        _clean_up(folder, stop, progress)
        raise


def _opened(source: str | os.PathLike[str] | Dataset, recipe: Recipe, progress: Progress) -> Dataset:
    """The data set, with which the recipe's shares agree; says why the effort is quick if an option implies it."""
    if recipe.implied_by:
        progress.say(f"Effort: quick, because {recipe.implied_by} was given; choose another one with effort.")
    dataset = open_data(source, min_classes=recipe.min_classes)
    check_shares(dataset, SplitShares(recipe.val, recipe.test))
    return dataset


def _recipe_of(
    recipe: Recipe | None,
    options: Mapping[str, Any],
    minutes: float | None,
    plan: str | os.PathLike[str] | None,
) -> tuple[Recipe, float | None, str]:
    """The recipe and the time in which it is to be chosen; or that of a plan, with the fingerprint of its weights.

    Raises:
        OptionError: options contradict each other; or something is given beside a plan, which has every option.
        RunError: the plan cannot be read.
    """
    if plan is None:
        found = Recipe.of(recipe, options)
        return found, minutes_for(found, minutes), ""
    own = {name: options[name] for name in OF_THE_USER if name in options}
    given = [name for name in options if name not in own]
    given += [*(["recipe"] if recipe is not None else []), *(["minutes"] if minutes is not None else [])]
    if given:
        raise OptionError(
            f"plan: has every option of the run that wrote it, except {' and '.join(OF_THE_USER)}; leave {given[0]} "
            "out."
        )
    found, fingerprint = read_plan_file(plan)
    return replace(found, **own), None, fingerprint


def carry_out(
    setup: RunSetup, *, inspection: Inspection | None = None, keeps_last: bool = False, is_brief: bool = False
) -> Run:
    """Every step of a run whose folder exists.

    Args:
        setup: see ``set_up``.
        inspection: an earlier one of the same images with the same seed and shares.
        keeps_last: keep the last rung, even if an earlier one is better.
        is_brief: a report without map and Grad-CAM, for a run that is one of many.
    """
    with run_lock(setup.folder):
        if setup.base is None:
            run = train_model(setup, inspection, keeps_last=keeps_last, is_brief=is_brief)
        else:
            run = extend_model(setup, setup.base, inspection, is_brief=is_brief)
    remove_status(setup.folder)
    return run


def train_model(
    setup: RunSetup, inspection: Inspection | None = None, *, keeps_last: bool = False, is_brief: bool = False
) -> Run:
    """The steps of a run that trains a new classifier; arguments as ``carry_out``."""
    job, events, clock = setup.job, setup.events, StepClock()
    clock.seconds["load the backbone"] = setup.loaded.seconds
    before = frozen_digests(job, setup.loaded)

    loaded = with_value_range(job, setup.loaded)
    inspected = inspect_images(job, loaded, inspection)
    open_log(setup, inspected)
    report_images(job, inspected)
    clock.lap("read the images")

    measured = measure_once(setup, loaded, inspected)
    planned = make_plan(job, loaded, inspected, measured)
    timetable = start_timetable(setup, planned)
    featurised = featurise(job, loaded, inspected, planned)
    clock.lap("run the backbone")

    timetable.begin(PROBE_STEP)
    prepared = choose_and_fit(job, loaded, inspected, planned, featurised)
    loaded, featurised, fitted = prepared.loaded, prepared.featurised, prepared.fitted
    _report_head(setup, prepared)
    clock.lap("fit the head")

    timetable.begin(LABELS_STEP)
    inspected = check_labels(job, loaded, inspected, featurised, fitted)
    emit_findings(setup, inspected)
    clock.lap("check the labels")

    trained, tuned = TrainedClassifier(loaded.backbone, fitted.head), None
    if loaded.splittable is not None:
        ladder = begin_ladder(prepared, loaded.splittable, setup.folder, events, timetable, keeps_last=keeps_last)
        tuned = climb_ladder(ladder, clock.seconds["fit the head"])
        trained = tuned.classifier
        prepared = prepared if tuned.is_probe else prepared.for_rungs
        clock.lap("fine-tune")

    timetable.begin(LAST_STEP)
    finished = evaluate(prepared, trained)
    _report_trust(setup, finished)
    clock.lap("evaluate")

    proof = prove_frozen(before, frozen_digests(job, loaded), planned.engines, tuned)
    image_map = None if is_brief else map_images(job, loaded, inspected, featurised)
    documents = RunDocuments(fitted, inspected, image_map, "", proof, is_brief, job.cache)
    return _write(setup, finished, documents, clock, tuned)


def extend_model(
    setup: RunSetup, base: BaseClassifier, inspection: Inspection | None = None, *, is_brief: bool = False
) -> Run:
    """The steps of a run that adds classes to a classifier; arguments as ``carry_out``."""
    job, loaded, clock = setup.job, setup.loaded, StepClock()
    clock.seconds["load the backbone"] = loaded.seconds
    before = frozen_digests(job, loaded, base)

    inspected = inspect_new_images(job, loaded, base, inspection)
    rehearsal = find_rehearsal_images(job, base)
    inspected = inspected.with_files(rehearsal.files)
    open_log(setup, inspected)
    report_images(job, inspected, num_old_classes=len(base.classes))
    clock.lap("read the images")

    measured = measure_once(setup, loaded, inspected)
    planned = make_plan(job, loaded, inspected, measured, checks_labels=False)
    timetable = start_timetable(setup, planned)
    featurised = featurise(job, loaded, inspected, planned)
    clock.lap("run the backbone")

    timetable.begin(PROBE_STEP)
    fitted = fit_new_classes(job, loaded, inspected, planned, featurised, base, rehearsal)
    prepared = Prepared(job, loaded, inspected, planned, featurised, fitted)
    _report_head(setup, prepared)
    clock.lap("fit the head")

    timetable.begin(LAST_STEP)
    finished = evaluate_extended(prepared, base, rehearsal)
    _report_trust(setup, finished)
    clock.lap("evaluate")

    after = frozen_digests(job, loaded, base, finished.model.head)
    proof = prove_frozen(before, after, planned.engines)
    image_map = None if is_brief else map_images(job, loaded, inspected, featurised)
    table = rehearsal_csv(base, rehearsal)
    documents = RunDocuments(fitted, inspected, image_map, table, proof, is_brief, job.cache)
    return _write(setup, finished, documents, clock)


def _report_head(setup: RunSetup, prepared: Prepared) -> None:
    """Emits what the head on frozen features is, its epochs and its mistakes."""
    fitted, featurised, events = prepared.fitted, prepared.featurised, setup.events
    val = featurised.val
    TrainedLayers(prepared.loaded.net).report(fitted.name, {}, fitted.head, events, head_frozen=fitted.frozen)
    for entry in fitted.history:
        emit_epoch(events, fitted.name, entry, 0 if val is None else len(val.labels))
    events.say(f"Fitted the {fitted.name} on {len(featurised.train.labels):,} images: {fitted.reason}.")
    if val is not None:
        logits = logits_on(fitted.head, val.features)
        events.emit(MistakesFound(fitted.name, mistakes_on_val(prepared, logits)))


def _report_trust(setup: RunSetup, finished: EvaluatedModel) -> None:
    """Says how the model is calibrated, and whether "none of these" keeps what it promises."""
    setup.events.say(finished.model.calibration_text)
    usual = usual_kept(finished.model.calibration, list(finished.evaluated))
    for text in [kept.warning for kept in usual if kept.warning] or [f"{kept.sentence}." for kept in usual[-1:]]:
        setup.events.say(text)


def _write(
    setup: RunSetup,
    finished: EvaluatedModel,
    documents: RunDocuments,
    clock: StepClock,
    tuned: FineTuned | None = None,
) -> Run:
    """Writes the run folder; "finished" is the last event."""
    results = {part.scores.name: part.scores for part in finished.evaluated}
    best = tuned.best if tuned else documents.fitted.name
    rungs, findings = (tuned.results if tuned else ()), documents.inspected.inspection.findings
    run = Run(setup.folder, setup.job.recipe, results, rungs, best, findings, dict(clock.seconds))
    with setup.events.task("Writing results and report", 1, "steps"):
        document = write_files(run, finished, documents)
    clock.lap("write the report")
    seconds = dict(clock.seconds)
    finish(run, document | {"seconds": seconds})
    setup.events.emit(RunFinished(str(setup.folder), best, finished.model.scores, seconds, documents.proof))
    return replace(run, seconds=seconds)


def _clean_up(folder: Path, stop: BaseException, progress: Progress) -> None:
    """Removes the folder of a new run that ended before anything was learnt, so that it is free for the next one.

    After Ctrl-C, a run whose backbone was chosen is kept, because the choice took most of the time so far.

    Args:
        folder: of the run.
        stop: what ended it.
        progress: says after Ctrl-C whether the run can be resumed.
    """
    entries = read_log(folder)
    if isinstance(stop, WriteError):
        is_kept = (folder / "start.json").exists()
    elif isinstance(stop, (HeadstartError, KeyboardInterrupt)):
        is_chosen = (folder / PLAN_FILE).exists() and (folder / "start.json").exists()
        is_kept = any(entry["event"] == "stage" for entry in entries)
        is_kept = is_kept or (is_chosen and isinstance(stop, KeyboardInterrupt))
    else:  # a listener's own error
        is_kept = bool(entries)
    if not is_kept:
        shutil.rmtree(folder, ignore_errors=True)
    if isinstance(stop, KeyboardInterrupt):
        say_stopped(folder, progress)


def say_stopped(folder: Path, progress: Progress) -> None:
    """After Ctrl-C: how to resume the run, or that nothing is left of it."""
    if (folder / "start.json").exists():
        progress.say(f"To resume this run: headstart train --resume {folder}")
    else:
        progress.say(f"Training had not begun, so {folder} was removed. Images that were already read are cached.")
