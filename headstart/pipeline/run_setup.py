"""What every run begins with: its folder, its event stream, and the engines and images that it is bound to."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from headstart.data.fingerprint import data_fingerprint
from headstart.data.sources.addresses import resolved
from headstart.engine.plan import read_plan, write_plan
from headstart.errors import RunError
from headstart.files import writing_run
from headstart.pipeline.base_classifier import BaseClassifier, load_base
from headstart.pipeline.extend import load_network
from headstart.pipeline.inspect_images import Inspected
from headstart.pipeline.ladder_state import CHECKPOINTS
from headstart.pipeline.load import Job, Loaded, load
from headstart.pipeline.plan import FEATURES_STEP, Measured, Planned, measure
from headstart.progress import Progress
from headstart.runs.environment import conditions_of
from headstart.runs.events import (
    EnginesChosen,
    EventStream,
    FindingsUpdated,
    ImagesRead,
    Listener,
    PlanLine,
    ProgressConsumer,
    throttled,
)
from headstart.runs.folder import RunStart, write_start
from headstart.runs.log import RunLog
from headstart.runs.status import LiveStatus
from headstart.runs.tensorboard import TensorBoardWriter
from headstart.runs.time_estimate import Timetable
from headstart.training.checkpoint import load_checkpoint

ENGINES_FILE = "engines.safetensors"
"""The engines that a run chose, among its checkpoints."""


@dataclass(frozen=True)
class RunSetup:
    """A run whose options were checked and whose network is loaded.

    Attributes:
        job: what is to be done; its progress is ``events``.
        loaded: the network.
        base: the classifier that is extended; None where a new one is trained.
        folder: of the run.
        start: what the run began with.
        events: of the run.
    """

    job: Job
    loaded: Loaded
    base: BaseClassifier | None
    folder: Path
    start: RunStart
    events: EventStream


def set_up(job: Job, folder: Path, events: EventStream, start: RunStart | None = None) -> RunSetup:
    """Loads the network of a run and checks its options; writes nothing.

    Args:
        job: what is to be done.
        folder: of the run; it may not exist yet.
        events: of the run.
        start: what a resumed run began with.

    Raises:
        OptionError, WeightsError, LicenseError, ModelFileError: see ``load`` and ``load_base``.
    """
    base = load_base(job.recipe, job.progress) if job.recipe.extend else None
    loaded = load(job) if base is None else load_network(job, base)
    if start is None:
        conditions = conditions_of(job.recipe, loaded.backbone, job.device)
        columns = job.dataset.columns.as_options()
        start = RunStart(resolved(job.dataset.root), job.device, conditions=conditions, columns=columns)
    return RunSetup(job, loaded, base, folder, start, events)


def run_events(folder: Path, progress: Progress, listener: Listener | None) -> EventStream:
    """The event stream of a run: live status, progress and a listener. Its log is added once the images are known.

    Args:
        folder: of the run.
        progress: shows messages and tasks.
        listener: receives every event.
    """
    consumers: list[Callable[..., None]] = [LiveStatus(folder), ProgressConsumer(progress)]
    return EventStream(consumers if listener is None else [*consumers, throttled(listener)])


def open_log(setup: RunSetup, inspected: Inspected) -> None:
    """Opens the log where the images are those that the run began with, and emits what was read.

    Raises:
        RunError: a resumed run has other images.
        WriteError: the folder cannot be written.
    """
    _require_same_images(setup, inspected)
    setup.events.add(TensorBoardWriter(setup.folder), first=True)
    setup.events.add(RunLog(setup.folder, size=_logged_at_checkpoint(setup.folder)), first=True)
    inspection = inspected.inspection
    setup.events.emit(ImagesRead(str(setup.folder), inspection.counts(), len(inspection.findings)))
    emit_findings(setup, inspected)


def emit_findings(setup: RunSetup, inspected: Inspected) -> None:
    """Emits all findings so far."""
    base = inspected.dataset.base
    setup.events.emit(FindingsUpdated([finding.brief(base) for finding in inspected.inspection.findings]))


def measure_once(setup: RunSetup, loaded: Loaded, inspected: Inspected) -> Measured:
    """The engines of a run: those that it chose when it began, or chosen here and kept for resuming.

    Raises:
        WriteError: the folder cannot be written.
    """
    file = setup.folder / CHECKPOINTS / ENGINES_FILE
    measured = measure(setup.job, loaded, inspected, read_plan(file))
    with writing_run(setup.folder, file):
        write_plan(file, measured.engines)
    engines = measured.engines
    setup.events.emit(EnginesChosen(engines.reason(exact=True), engines.reason(exact=False)))
    return measured


def start_timetable(setup: RunSetup, planned: Planned) -> Timetable:
    """Says and emits the plan, and begins its first step; progress has the time left from here on."""
    for line in planned.lines:
        setup.events.say(line)
        setup.events.emit(PlanLine(line))
    timetable = Timetable(planned.steps, setup.events)
    setup.events.use_estimate(timetable.left)
    timetable.begin(FEATURES_STEP)
    return timetable


def _require_same_images(setup: RunSetup, inspected: Inspected) -> None:
    """Stores a fingerprint of the images, or compares it with the one that the run began with."""
    names, scanned = inspected.dataset.label_names(), inspected.inspection.scanned
    labelled = [
        (scanned.keys[i], f"{names[i]} {part}") for part, positions in inspected.positions.items() for i in positions
    ]
    images = data_fingerprint([key for key, _ in labelled], [label for _, label in labelled])
    if setup.start.images and setup.start.images != images:
        raise RunError(
            f"{setup.folder}: the images in {setup.start.data} have changed since this run began. Restore them, or "
            "start a new run, which reuses the cached features of unchanged images."
        )
    if not setup.start.images:
        write_start(setup.folder, setup.job.recipe, replace(setup.start, images=images))


def _logged_at_checkpoint(folder: Path) -> int:
    """Bytes of the log at the last checkpoint; what was written after it is done again."""
    sizes = [
        found[0]["log"]
        for file in (folder / CHECKPOINTS).glob("*.safetensors")
        if file.name != ENGINES_FILE and (found := load_checkpoint(file)) is not None
    ]
    return max(sizes, default=0)


class StepClock:
    """Measures how long each step takes.

    Attributes:
        seconds: step -> seconds.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Ends a step."""
        now = time.monotonic()
        self.seconds[name], self._last = round(now - self._last, 2), now
