"""Step 3 of a run: which engines run the backbone, which rungs are tried, and how long each step takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from headstart.backbone.licenses import license_text
from headstart.backbone.pixel_net import feature_shape
from headstart.backbone.weights import Backbone
from headstart.engine.interface import Pixels
from headstart.engine.measure import ENGINE_SECONDS, measure_engines
from headstart.engine.plan import EnginePlan
from headstart.features.extract import feature_store, pick_sample
from headstart.pipeline.inspect_images import Inspected, pixel_reader
from headstart.pipeline.load import Job, Loaded
from headstart.runs.time_estimate import Step
from headstart.training.finetune import TRAINING_TASK
from headstart.training.ladder import (
    CROSS_VALIDATE_BELOW,
    FOLDS,
    Rung,
    plan_rungs,
    plan_text,
    trained_images,
)
from headstart.trust.ood import MAX_REFERENCES_FINE_TUNED

FEATURES_STEP, PROBE_STEP, LABELS_STEP, LAST_STEP = "features", "probe", "label check", "evaluation and report"
"""Names of the steps of a run in its timetable, in addition to the rungs."""

PROBE_SECONDS, PROBE_SECONDS_PER_NUMBER = 0.5, 3e-7
"""Time to fit the probe with its C chosen: at least, and for each number of the features times classes."""

REPORT_SECONDS, MAP_SECONDS_PER_IMAGE = 5.0, 1.3e-3
"""Time to write a report with heat maps, and a map of the images."""

MAPPED = 1500
"""Images above which the time for the map hardly grows."""

CHECKED = 100_000
"""Number of images above which labels are not checked, because the check fits classifiers on five folds."""


@dataclass(frozen=True)
class Measured:
    """The engines that run the frozen backbone.

    Attributes:
        engines: which of them, and their speeds.
        sample: (n, H, W, 3) uint8, pixels of some training images, on which engines are compared.
    """

    engines: EnginePlan
    sample: Pixels


@dataclass(frozen=True)
class Planned:
    """What a run is going to do.

    Attributes:
        engines: see ``Measured``.
        sample: likewise.
        rungs: of the ladder, shallowest first; none where only a head is fitted.
        cross_validates: whether val is too small to choose and calibrate on, so that cross-validation helps out.
        steps: of the timetable.
        lines: the plan in words.
    """

    engines: EnginePlan
    sample: Pixels
    rungs: tuple[Rung, ...]
    cross_validates: bool
    steps: tuple[Step, ...]
    lines: tuple[str, ...]


def measure(job: Job, loaded: Loaded, inspected: Inspected, previous: EnginePlan | None = None) -> Measured:
    """Chooses the engines on a sample of the training images.

    Args:
        job: see ``Job``.
        loaded: the backbone.
        inspected: the images.
        previous: what was chosen when a resumed run began.
    """
    train = inspected.keys["train"]
    picked = pick_sample(train, inspected.dataset.labels[inspected.positions["train"]])
    sample = pixel_reader(job, loaded, inspected).read([train[place] for place in picked])
    with job.progress.task("Comparing engines", 1, "steps"):
        engines = previous or measure_engines(
            loaded.net, sample, count=len(train), device=job.device, cache=job.cache, progress=job.progress
        )
    return Measured(engines, sample)


def plan(job: Job, loaded: Loaded, inspected: Inspected, measured: Measured, *, checks_labels: bool = True) -> Planned:
    """Chooses the rungs and estimates the time of every step.

    Args:
        job: see ``Job``.
        loaded: the backbone.
        inspected: the images.
        measured: the engines.
        checks_labels: whether labels are checked (unless there are too many images).
    """
    train, splittable, engines = len(inspected.keys["train"]), loaded.splittable, measured.engines
    few = len(inspected.keys.get("val", [])) < CROSS_VALIDATE_BELOW
    folds = FOLDS if few else 0
    rungs: list[Rung] = []
    if splittable is not None and splittable.obstacle:
        job.progress.say(
            f"{loaded.backbone.architecture} has no freeze boundary except before the head ({splittable.obstacle}), "
            "so it is not fine-tuned; a probe is fitted."
        )
    elif splittable is not None:
        rungs = plan_rungs(
            job.recipe,
            splittable,
            train=train,
            rate=engines.rate,
            folds=folds,
            training_rate=engines.training_rate,
            multi_label=inspected.dataset.multi_label,
        )
    rungs = _by_ranks(job, rungs)
    first = _first_steps(job, loaded, inspected, engines, checks_labels=checks_labels)
    last = _last_step(inspected, engines, fine_tunes=bool(rungs))
    middle = [
        Step(rung.name, rung.seconds, TRAINING_TASK, trained_images(rung, train, folds), optional=number > 0)
        for number, rung in enumerate(rungs)
    ]
    begins = sum(step.seconds for step in first)
    lines = plan_text(rungs, images=inspected.num_images, train=train, folds=folds, first=begins, last=last.seconds)
    steps = (*first, *middle, last)
    return Planned(engines, measured.sample, tuple(rungs), few, steps, (_backbone_text(loaded.backbone), *lines))


def _by_ranks(job: Job, rungs: Sequence[Rung]) -> list[Rung]:
    """The rungs with the time that they take by the processes of the run, which start for the first one."""
    return [
        replace(rung, seconds=job.ranks.seconds(rung.seconds, job.device, starts=number == 0))
        for number, rung in enumerate(rungs)
    ]


def _backbone_text(backbone: Backbone) -> str:
    """The backbone for the user: name, source, licence and image size."""
    size = backbone.preprocessing
    return (
        f"Plan: backbone {backbone.architecture} ({backbone.source}), licence {license_text(backbone.license)}, images "
        f"of {size.height} x {size.width} pixels."
    )


def _first_steps(
    job: Job, loaded: Loaded, inspected: Inspected, engines: EnginePlan, *, checks_labels: bool
) -> list[Step]:
    """Features, probe and label check."""
    seconds = 0.0
    held_out = [key for name in inspected.held_out for key in inspected.keys[name]]
    for exact, keys in ((False, inspected.keys["train"]), (True, held_out)):
        store = feature_store(loaded.net, engines.identity(exact=exact, device=job.device), job.cache)
        if missing := len(store.missing(keys)):
            seconds += ENGINE_SECONDS + missing / _rate(engines, exact=exact)
    shape = feature_shape(loaded.net)
    numbers = len(inspected.keys["train"]) * math.prod(shape) * len(inspected.dataset.classes)
    fit = PROBE_SECONDS + numbers * PROBE_SECONDS_PER_NUMBER
    checked = checks_labels and inspected.num_images <= CHECKED
    return [Step(FEATURES_STEP, seconds), Step(PROBE_STEP, fit), Step(LABELS_STEP, fit * checked)]


def _last_step(inspected: Inspected, engines: EnginePlan, *, fine_tunes: bool) -> Step:
    """Evaluation, map and report; a fine-tuned network runs again on held-out images and on references."""
    train, images = len(inspected.keys["train"]), inspected.num_images
    again = images - train + min(MAX_REFERENCES_FINE_TUNED, train) if fine_tunes else 0
    written = REPORT_SECONDS + min(images, MAPPED) * MAP_SECONDS_PER_IMAGE
    return Step(LAST_STEP, again / _rate(engines, exact=True) + ENGINE_SECONDS * bool(again) + written)


def _rate(engines: EnginePlan, *, exact: bool) -> float:
    """Images per second of an engine."""
    return engines.rates.get(engines.exact, engines.rate) if exact else engines.rate
