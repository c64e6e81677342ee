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
class _Method:
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
    groups = _checked_groups(only)
    _check_seconds(seconds)
    recipe = _shared_recipe(options)
    dataset = open_data(source)
    check_shares(dataset, SplitShares(recipe.val, recipe.test))
    job = Job(dataset, recipe, device, cache, progress)
    loaded = load(job)
    split = split_backbone(loaded.backbone)
    if split.obstacle and not {"probes", "heads"} & set(groups):
        raise OptionError(
            f"compare {', '.join(groups)}: {loaded.backbone.architecture} has no freeze boundaries ({split.obstacle})."
        )
    folder = make_run_folder(choose_run_folder(out, dataset.root))
    loaded = with_value_range(job, loaded)
    inspected = inspect_images(job, loaded)
    rate = measure(job, loaded, inspected).engines.training_rate
    fine_tuning = _FineTuning(recipe, len(inspected.keys["train"]), rate, seconds)
    methods = _methods(fine_tuning, split, groups, multi_label=inspected.inspection.dataset.multi_label)
    return _run_all(methods, inspected.inspection, folder, job)


def _checked_groups(only: Sequence[str]) -> Sequence[str]:
    groups = [only] if isinstance(only, str) else only
    if not isinstance(groups, Iterable) or not all(isinstance(name, str) for name in groups):
        raise OptionError(f"only: expected one or more of {', '.join(GROUPS)}, got {groups!r:.60}.")
    unknown = [name for name in groups if name not in GROUPS]
    if unknown or not groups:
        raise OptionError(
            f"compare {', '.join(unknown) or 'nothing'}: no such group. The groups are {', '.join(GROUPS)}."
        )
    return groups


def _check_seconds(seconds: float) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise OptionError(f"seconds: expected a number, got {seconds!r:.60}.")
    if seconds <= 0:
        raise OptionError(f"seconds {seconds:g}: expected more than 0.")


def _shared_recipe(options: RecipeOptions) -> Recipe:
    recipe = Recipe.of(None, options)
    if varied := [name for name in options if name not in COMPARE_OPTIONS]:
        raise OptionError(f"{varied[0]}: cannot be set in a comparison; choose from {', '.join(COMPARE_OPTIONS)}.")
    return recipe


def _run_all(methods: Sequence[_Method], inspection: Inspection, folder: Path, job: Job) -> Comparison:
    """One run for each method; the table is written after each of them."""
    rows: list[Compared] = []
    frozen_seconds = 0.0
    for number, method in enumerate(methods, start=1):
        job.progress.say(f"{number} of {len(methods)}: {method.name}.")
        run = _run(method, inspection, folder / "runs" / _file_name(method.name), job)
        frozen_seconds = frozen_seconds or run.seconds["run the backbone"]
        training_seconds = run.seconds["fit the head"] + run.seconds.get("fine-tune", 0.0)
        row = _row(method, run, frozen_seconds + training_seconds)
        rows.append(row)
        job.progress.say(f"{method.name}: accuracy {count_text(row.correct, row.count)}, {row.seconds:.0f} s.")
        _write(folder, inspection, rows, run.scores.name)
    return Comparison(folder, run.scores.name, tuple(rows))


def _run(method: _Method, inspection: Inspection, folder: Path, job: Job) -> Run:
    """One run of the comparison, from the images that were read already."""
    try:
        events = run_events(folder, SilentProgress(), None)
        setup = set_up(Job(inspection.dataset, method.recipe, job.device, job.cache, events), folder, events)
        make_run_folder(folder)
        write_start(folder, method.recipe, setup.start)
        return carry_out(setup, inspection=inspection, keeps_last=True, is_brief=True)
    except HeadstartError:
        job.progress.say(f"{method.name} stopped with an error; the finished methods are in {folder.parent.parent}.")
        raise


@dataclass(frozen=True)
class _FineTuning:
    """Recipes for fine-tuning that take about the same time.

    Attributes:
        recipe: what they have in common.
        images: number of training images.
        rate: images per second through the frozen network, for training.
        seconds: of each recipe, about.
    """

    recipe: Recipe
    images: int
    rate: float
    seconds: float

    def of(self, unfreeze: str, cost: float, **choices: Any) -> Recipe:
        """The recipe to fine-tune from a layer group.

        Args:
            unfreeze: the first group to train, or "all".
            cost: share of the network's cost that lies before it.
            **choices: further fields of the recipe, with which BatchNorm learns.
        """
        live = LIVE_COST if choices else 1.0
        if unfreeze == "all":  # every epoch computes new views
            view_seconds, epoch = 0.0, self.images * (EVERYTHING_COST * live / self.rate + 1 / VIEW_RATE)
        else:
            view_seconds = (VIEWS - 1) * self.images * (cost / self.rate + 1 / VIEW_RATE)
            epoch = self.images * TRAINING_COST * live * (1 - cost) / self.rate
        epochs = min(MOST_EPOCHS, max(1, int((self.seconds - view_seconds) / epoch)))
        views = {"fresh_views": True} if unfreeze == "all" else {"views": VIEWS}
        return replace(self.recipe, effort="standard", unfreeze=unfreeze, epochs=epochs, **views, **choices)


def _methods(
    fine_tuning: _FineTuning, split: SplittableBackbone, groups: Sequence[str], *, multi_label: bool
) -> list[_Method]:
    recipe, methods = fine_tuning.recipe, []
    if "probes" in groups:
        methods += _probes(recipe, multi_label=multi_label)
    if "heads" in groups:
        methods.append(_Method("heads", f"head {HEAD}", replace(recipe, head=HEAD)))
    return methods if split.obstacle else methods + _fine_tuned(fine_tuning, split, groups)


def _probes(recipe: Recipe, *, multi_label: bool) -> list[_Method]:
    if multi_label:
        return [_Method("probes", "logistic regression", recipe)]  # the others predict one class per image
    probes = [("logistic regression", LOGISTIC), *((_NAMES[kind], kind) for kind in CLASSICAL)]
    return [_Method("probes", name, replace(recipe, probe=cast(Any, probe))) for name, probe in probes]


def _fine_tuned(fine_tuning: _FineTuning, split: SplittableBackbone, groups: Sequence[str]) -> list[_Method]:
    methods = []
    depths = [(name, deepest_at(SHARES[depth], split)) for name, depth in (("last groups", "last"), ("half", "half"))]
    starts = [(name, split.parts(b.name)[0][0], b.cost_before) for name, b in depths if b is not None]
    by_depth = [
        _Method("depths", f"{name} (from {first})", fine_tuning.of(first, cost)) for name, first, cost in starts
    ]
    if "depths" in groups:
        methods += by_depth
    if "batchnorm" in groups and starts:
        name, first, cost = starts[-1]
        if "depths" not in groups:
            methods.append(by_depth[-1])
        live = fine_tuning.of(first, cost, update_batchnorm=True)
        methods.append(_Method("batchnorm", f"{name}, live BatchNorm", live))
    if {"depths", "weights"} & set(groups):
        methods.append(_Method("depths", "everything", fine_tuning.of("all", 0.0)))
    if "weights" in groups:
        methods.append(_Method("weights", "all layers, from scratch", fine_tuning.of("all", 0.0, scratch=True)))
    return methods


_NAMES = {"svm": "linear SVM", "rbf": "Gaussian SVM", "knn": "nearest neighbours", "centroid": "nearest class mean"}


def _row(method: _Method, run: Run, seconds: float) -> Compared:
    scores = run.scores
    epochs = run.rungs[-1].epochs if run.rungs else 0
    return Compared(
        method.group,
        method.name,
        scores.correct,
        scores.count,
        scores.low,
        scores.high,
        scores.log_loss,
        round(seconds, 1),
        epochs,
        str(run.folder.relative_to(run.folder.parent.parent)),
    )


def _write(folder: Path, inspection: Inspection, rows: Sequence[Compared], name: str) -> None:
    title = f"{inspection.dataset.root.resolve().name}: {rows[0].count:,} images of {name}"
    document = {"data": str(inspection.dataset.root), "scored_on": name, "rows": [asdict(row) for row in rows]}
    with writing_run(folder):
        write_atomically(folder / "comparison.md", text_bytes(comparison_markdown(title, rows)))
        write_atomically(folder / "comparison.json", json_text(document, indent=1).encode())
        write_atomically(folder / "comparison.svg", svg_file([comparison_chart(rows)], title=title))


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in name).strip("-")
