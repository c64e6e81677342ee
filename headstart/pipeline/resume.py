"""Resuming a stopped run. It ends with the same weights as a run that was never stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from headstart.data.dataset import open_data
from headstart.distributed.rank_group import RankSettings
from headstart.errors import DataError, OptionError, RunError
from headstart.files import user_path
from headstart.pipeline.load import Job
from headstart.pipeline.run_setup import run_events, set_up
from headstart.pipeline.train import carry_out, say_stopped
from headstart.progress import Progress, SilentProgress
from headstart.runs.environment import conditions_of, require_same
from headstart.runs.events import Listener
from headstart.runs.folder import Run, read_start


def resume(
    folder: str | os.PathLike[str],
    *,
    workers: int | None = None,
    ray: str | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    listener: Listener | None = None,
    **options: Any,
) -> Run:
    """Resumes a run that was stopped; on a CPU the model is bit for bit that of a run which was not.

    Args:
        folder: of the run.
        workers: number of processes that fine-tune together, see ``train``; bit for bit with the number that the run
            began with.
        ray: address of a Ray cluster where they run, see ``train``.
        cache: the cache folder of the run.
        progress: receives messages and the progress of each task.
        listener: receives each event from here on.
        **options: none; a run is resumed with the options that it began with.

    Raises:
        OptionError: an option is given.
        RunError: no unfinished run there; its data cannot be opened; or images, weights, library versions, processor or
            device have changed.
        SourceError: the storage of its data cannot be reached.

    Examples:
        >>> run = hs.resume("runs/interrupted")
        >>> run.model_path.is_file()
        True
    """
    if options:
        raise OptionError(f"{next(iter(options))}: a resumed run keeps its original options; leave this one out.")
    path = user_path(folder)
    recipe, start = read_start(path)
    progress = progress or SilentProgress()
    try:
        dataset = open_data(start.data, min_classes=recipe.min_classes, **start.columns)
    except DataError as error:
        raise RunError(
            f"{path}: the data of this run cannot be opened: {error} Put them back where they were, or start a new run."
        ) from error
    events = run_events(path, progress, listener)
    setup = set_up(Job(dataset, recipe, start.device, cache, events, RankSettings(workers, ray)), path, events, start)
    require_same(path, start.conditions, conditions_of(recipe, setup.loaded.backbone, start.device))
    try:
        return carry_out(setup)
    except KeyboardInterrupt:
        say_stopped(path, progress)
        raise
