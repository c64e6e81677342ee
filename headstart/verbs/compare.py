"""Several ways to train on the same data, side by side: accuracy with its interval against seconds.

Every way is a run like any other, from the same caches; what it is given is measured here. Ways that fine-tune get
the same time each, as well as that can be told before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack, cast

from headstart.backbone.pixel_net import split_backbone
from headstart.backbone.split import SplittableBackbone
from headstart.data.dataset import Dataset, open_data
from headstart.data.inspection import Inspection
from headstart.data.splits import SplitShares, check_shares
from headstart.errors import HeadstartError, OptionError
from headstart.evaluation.comparison import Compared, comparison_markdown
from headstart.figures import count_text
from headstart.files import json_text, text_bytes, write_atomically, writing_run
from headstart.pipeline.inspect_images import inspect_images, with_value_range
from headstart.pipeline.load import Job, load
from headstart.pipeline.plan import measure
from headstart.pipeline.run_setup import run_events, set_up
from headstart.pipeline.train import carry_out
from headstart.progress import Progress, SilentProgress
from headstart.reports.comparison_chart import comparison_chart
from headstart.reports.svg_chart import svg_file
from headstart.runs.folder import Run, choose_run_folder, make_run_folder, write_start
from headstart.training.classical import CLASSICAL
from headstart.training.fit_head import LOGISTIC
from headstart.training.ladder import MOST_EPOCHS, SHARES, TRAINING_COST, deepest_at
from headstart.training.recipe import Recipe
from headstart.training.recipe_options import RecipeOptions

GROUPS = ("probes", "heads", "depths", "batchnorm", "weights")
"""What can be compared: classifiers on frozen features; heads that are trained by steps; how deep to fine-tune;
BatchNorm frozen against live; pretrained weights against random ones."""

HEAD = "1024-512-0.2"
SECONDS = 60.0
"""Seconds that each way to fine-tune gets, about."""

VIEW_RATE = 400.0
"""Augmented views a second that are made, about (docs/results/2026-11-22-heads.md)."""

LIVE_COST = 2.0
"""Times that a step takes where BatchNorm learns and cannot be folded away (docs/results/2026-11-22-heads.md)."""

EVERYTHING_COST = 8.0
"""As ``ladder.TRAINING_COST``, of the whole network: its first layers have large maps and few channels
(docs/results/2026-11-22-heads.md)."""

VIEWS = 3
"""Of each image, where activations are kept."""


@dataclass(frozen=True)
class Comparison:
    """What was compared.

    Attributes:
        folder: comparison.md, comparison.json, comparison.svg, and a run in ``runs/`` for each way.
        name: of the set that all were scored on.
        rows: of each way, in the order in which they were tried.
    """

    folder: Path
    name: str
    rows: tuple[Compared, ...]


@dataclass(frozen=True)
class _Way:
    group: str
    name: str
    recipe: Recipe


COMPARE_OPTIONS = ("backbone", "weights", "image_size", "balance_classes", "flip", "val", "test", "seed")
"""Options of a recipe that hold for everything that is compared."""


def compare(
    source: str | os.PathLike[str] | Dataset,
    *,
    out: str | os.PathLike[str] | None = None,
    only: Sequence[str] = GROUPS,
    seconds: float = SECONDS,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[RecipeOptions],
) -> Comparison:
    """Trains in several ways on the same data and writes one table and one picture.

    Args:
        source: a folder, a table, or a data set that is open already.
        out: the folder for it, new or empty; "runs/NAME" where it is not given.
        only: some of ``GROUPS``.
        seconds: that each way to fine-tune gets, about.
        device: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder; the default one where it is not given.
        progress: told of each step.
        **options: fields of ``Recipe`` that hold for everything that is compared: those in ``COMPARE_OPTIONS``.

    Raises:
        DataError, WeightsError, OptionError, RunError: as ``train``.
    """
    progress = progress or SilentProgress()
    only = [only] if isinstance(only, str) else only
    if not isinstance(only, Iterable) or not all(isinstance(name, str) for name in only):
        raise OptionError(f"only: expected one or more of {', '.join(GROUPS)}, got {only!r:.60}.")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise OptionError(f"seconds: expected a number, got {seconds!r:.60}.")
    unknown = [name for name in only if name not in GROUPS]
    if unknown or not only:
        raise OptionError(
            f"compare {', '.join(unknown) or 'nothing'}: no such group. The groups are {', '.join(GROUPS)}."
        )
    if seconds <= 0:
        raise OptionError(f"seconds {seconds:g}: expected more than 0.")
    plain = Recipe.of(None, options)
    if varied := [name for name in options if name not in COMPARE_OPTIONS]:
        raise OptionError(f"{varied[0]}: cannot be set in a comparison; choose from {', '.join(COMPARE_OPTIONS)}.")
    shares = SplitShares(plain.val, plain.test)
    dataset = open_data(source)
    check_shares(dataset, shares)
    job = Job(dataset, plain, device, cache, progress)
    loaded = load(job)
    split = split_backbone(loaded.backbone)
    if split.obstacle and not {"probes", "heads"} & set(only):
        raise OptionError(
            f"compare {', '.join(only)}: {loaded.backbone.architecture} has no freeze boundaries ({split.obstacle})."
        )
    folder = make_run_folder(choose_run_folder(out, dataset.root))
    loaded = with_value_range(job, loaded)
    inspected = inspect_images(job, loaded)
    look = inspected.inspection
    rate = measure(job, loaded, inspected).engines.training_rate
    train = len(inspected.keys["train"])
    multi_label = look.dataset.multi_label
    ways = _ways(plain, split, only, multi_label=multi_label, train=train, rate=rate, seconds=seconds)
    rows: list[Compared] = []
    shared = 0.0
    for number, way in enumerate(ways, start=1):
        progress.say(f"{number} of {len(ways)}: {way.name}.")
        run = _run(way, look, folder / "runs" / _file_name(way.name), job)
        shared = shared or run.seconds["run the backbone"]
        own = run.seconds["fit the head"] + run.seconds.get("fine-tune", 0.0)
        rows.append(_row(way, run, shared + own))
        last = rows[-1]
        progress.say(f"{way.name}: accuracy {count_text(last.correct, last.count)}, {last.seconds:.0f} s.")
        _write(folder, look, rows, run.scores.name)
    return Comparison(folder, run.scores.name, tuple(rows))


def _run(way: _Way, look: Inspection, folder: Path, job: Job) -> Run:
    """One run of the comparison, from the images that were read already."""
    try:
        events = run_events(folder, SilentProgress(), None)
        setup = set_up(Job(look.dataset, way.recipe, job.device, job.cache, events), folder, events)
        make_run_folder(folder)
        write_start(folder, way.recipe, setup.start)
        return carry_out(setup, inspection=look, keeps_last=True, is_brief=True)
    except HeadstartError:
        job.progress.say(f"{way.name} stopped with an error; the finished methods are in {folder.parent.parent}.")
        raise


def _ways(
    plain: Recipe,
    split: SplittableBackbone,
    only: Sequence[str],
    *,
    multi_label: bool,
    train: int,
    rate: float,
    seconds: float,
) -> list[_Way]:
    ways = []
    if "probes" in only and multi_label:
        ways.append(_Way("probes", "logistic regression", plain))  # the others tell classes apart
    elif "probes" in only:
        ways += [
            _Way("probes", name, replace(plain, probe=cast(Any, probe)))
            for name, probe in (("logistic regression", LOGISTIC), *((_NAMES[kind], kind) for kind in CLASSICAL))
        ]
    if "heads" in only:
        ways.append(_Way("heads", f"head {HEAD}", replace(plain, head=HEAD)))
    if split.obstacle:
        return ways

    def tuned(unfreeze: str, cost: float, **choices: Any) -> Recipe:
        live = LIVE_COST if choices else 1.0
        if unfreeze == "all":  # every epoch makes its views anew
            making, epoch = 0.0, train * (EVERYTHING_COST * live / rate + 1 / VIEW_RATE)
        else:
            making = (VIEWS - 1) * train * (cost / rate + 1 / VIEW_RATE)
            epoch = train * TRAINING_COST * live * (1 - cost) / rate
        epochs = min(MOST_EPOCHS, max(1, int((seconds - making) / epoch)))
        shown = {"fresh_views": True} if unfreeze == "all" else {"views": VIEWS}
        return replace(plain, effort="standard", unfreeze=unfreeze, epochs=epochs, **shown, **choices)

    depths = [(name, deepest_at(SHARES[depth], split)) for name, depth in (("last groups", "last"), ("half", "half"))]
    places = [(name, split.parts(b.name)[0][0], b.cost_before) for name, b in depths if b is not None]
    if "depths" in only:
        ways += [_Way("depths", f"{name} (from {first})", tuned(first, cost)) for name, first, cost in places]
    if "batchnorm" in only and places:
        name, first, cost = places[-1]
        if "depths" not in only:
            ways.append(_Way("depths", f"{name} (from {first})", tuned(first, cost)))
        ways.append(_Way("batchnorm", f"{name}, live BatchNorm", tuned(first, cost, update_batchnorm=True)))
    if {"depths", "weights"} & set(only):
        ways.append(_Way("depths", "everything", tuned("all", 0.0)))
    if "weights" in only:
        ways.append(_Way("weights", "all layers, from scratch", tuned("all", 0.0, scratch=True)))
    return ways


_NAMES = {"svm": "linear SVM", "rbf": "Gaussian SVM", "knn": "nearest neighbours", "centroid": "nearest class mean"}


def _row(way: _Way, run: Run, seconds: float) -> Compared:
    scores = run.scores
    epochs = run.rungs[-1].epochs if run.rungs else 0
    return Compared(
        way.group,
        way.name,
        scores.correct,
        scores.count,
        scores.low,
        scores.high,
        scores.log_loss,
        round(seconds, 1),
        epochs,
        str(run.folder.relative_to(run.folder.parent.parent)),
    )


def _write(folder: Path, look: Inspection, rows: Sequence[Compared], name: str) -> None:
    title = f"{look.dataset.root.resolve().name}: {rows[0].count:,} images of {name}"
    document = {"data": str(look.dataset.root), "scored_on": name, "rows": [asdict(row) for row in rows]}
    with writing_run(folder):
        write_atomically(folder / "comparison.md", text_bytes(comparison_markdown(title, rows)))
        write_atomically(folder / "comparison.json", json_text(document, indent=1).encode())
        write_atomically(folder / "comparison.svg", svg_file([comparison_chart(rows)], title=title))


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in name).strip("-")
