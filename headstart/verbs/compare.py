"""Comparison of training methods on the same data: accuracy with 95 % interval against seconds.

Each method is an ordinary run that uses the shared cache. Methods that fine-tune get the same time budget each: the
number of epochs is planned from the measured speed of the backbone.
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
from headstart.errors import DataError, HeadstartError, OptionError
from headstart.evaluation.comparison import Compared, comparison_markdown
from headstart.evaluation.metrics import CROSS_VALIDATION
from headstart.figures import count_text
from headstart.files import json_text, text_bytes, write_atomically, writing_run
from headstart.pipeline.choose_recipe import search_images
from headstart.pipeline.inspect_images import inspect_images, inspected_images, run_inspection, with_value_range
from headstart.pipeline.load import Job, load
from headstart.pipeline.plan import measure
from headstart.pipeline.run_setup import run_events, set_up
from headstart.pipeline.train import carry_out
from headstart.progress import Progress, SilentProgress
from headstart.reports.comparison_chart import comparison_chart
from headstart.reports.svg_chart import svg_file
from headstart.runs.folder import SELECTION_FILE, Run, choose_run_folder, make_run_folder, write_start
from headstart.selection.candidates import find_candidates, load_candidate
from headstart.selection.search import search
from headstart.training.classical import CLASSICAL
from headstart.training.ladder import MOST_EPOCHS, SHARES, TRAINING_COST, deepest_at
from headstart.training.recipe import LOGISTIC, Recipe
from headstart.training.recipe_options import RecipeOptions

BACKBONES = "backbones"
"""In place of the groups: which backbone suits the images best, without training further."""

GROUPS = ("probes", "heads", "depths", "batchnorm", "weights")
"""Groups of methods: classifiers on frozen features; heads trained by gradient descent; depths of fine-tuning; frozen
against live BatchNorm; pretrained against random weights."""

HEAD = "1024-512-0.2"
SECONDS = 60.0
"""Approximate time budget of each method that fine-tunes, in seconds."""

VIEW_RATE = 400.0
"""Augmented views computed per second, approximately (docs/results/2026-11-22-heads.md)."""

LIVE_COST = 2.0
"""Factor on the time of a training step if BatchNorm is live and not folded (docs/results/2026-11-22-heads.md)."""

EVERYTHING_COST = 8.0
"""``ladder.TRAINING_COST`` for the whole network, whose first layers have large maps and few channels
(docs/results/2026-11-22-heads.md)."""

VIEWS = 3
"""Augmented views of each image if activations are cached."""


@dataclass(frozen=True)
class Comparison:
    """Result of ``compare``.

    Attributes:
        folder: contains comparison.md, comparison.json, comparison.svg, and in ``runs/`` the run of each method; for
            backbones selection.json instead of runs.
        name: the set that every method is scored on, such as "val".
        rows: one row per method, in the order in which they ran.
    """

    folder: Path
    name: str
    rows: tuple[Compared, ...]


@dataclass(frozen=True)
class _Method:
    group: str
    name: str
    recipe: Recipe


COMPARE_OPTIONS = (
    "backbone",
    "weights",
    "accept_license",
    "image_size",
    "fit",
    "balance_classes",
    "flip",
    "val",
    "test",
    "seed",
)
"""Options that may be set in a comparison; they apply to every method."""


def compare(
    source: str | os.PathLike[str] | Dataset,
    *,
    out: str | os.PathLike[str] | None = None,
    only: Sequence[str] = GROUPS,
    candidates: str | Sequence[str] = "offline",
    seconds: float = SECONDS,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[RecipeOptions],
) -> Comparison:
    """Trains several methods on the same data and writes a table and a chart.

    Args:
        source: a folder, a table, or an open data set.
        out: the folder of the comparison, new or empty; "runs/NAME" if None.
        only: groups of methods, from ``GROUPS``; or "backbones" alone.
        candidates: backbones that "backbones" compares, see ``selection.candidates.find_candidates``.
        seconds: approximate time budget of each method that fine-tunes.
        device: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder; the default one if None.
        progress: receives messages and the progress of each task.
        **options: the fields of ``Recipe`` in ``COMPARE_OPTIONS``; they apply to every method.

    Raises:
        DataError: the data cannot be used; the message says what was found.
        WeightsError: the weights of the backbone cannot be loaded.
        LicenseError: the licence of the weights is restricted, and was not accepted.
        OptionError: an option is invalid, or cannot be set in a comparison.
        RunError: the folder is not empty, or cannot be written.

    Examples:
        >>> comparison = hs.compare("flowers/", out="runs/comparison", only=["probes"])
        >>> comparison.rows[0].name
        'logistic regression'
    """
    progress = progress or SilentProgress()
    groups = _checked_groups(only)
    _check_seconds(seconds)
    recipe = _shared_recipe(options)
    dataset = open_data(source)
    check_shares(dataset, SplitShares(recipe.val, recipe.test))
    job = Job(dataset, recipe, device, cache, progress)
    if groups == (BACKBONES,):
        return _compare_backbones(job, candidates, choose_run_folder(out, dataset.root))
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


def _checked_groups(only: Sequence[str]) -> tuple[str, ...]:
    groups = [only] if isinstance(only, str) else only
    if not isinstance(groups, Iterable) or not all(isinstance(name, str) for name in groups):
        raise OptionError(f"only: expected one or more of {', '.join((*GROUPS, BACKBONES))}, got {groups!r:.60}.")
    unknown = [name for name in groups if name not in (*GROUPS, BACKBONES)]
    if unknown or not groups:
        raise OptionError(
            f"compare {', '.join(unknown) or 'nothing'}: no such group. The groups are "
            f"{', '.join((*GROUPS, BACKBONES))}."
        )
    if BACKBONES in groups and len(set(groups)) > 1:
        raise OptionError(
            f"compare {', '.join(groups)}: backbones are compared by cross-validation on training images and the other "
            "groups on held-out images, so their scores cannot be compared. Compare backbones alone."
        )
    return tuple(dict.fromkeys(groups))


def _compare_backbones(job: Job, candidates: str | Sequence[str], folder: Path) -> Comparison:
    """Evaluates every candidate on all training images, by cross-validation of a probe."""
    recipe = job.recipe
    found = find_candidates(
        candidates,
        image_size=recipe.image_size,
        fit=recipe.fit,
        accept_license=recipe.accept_license,
        progress=job.progress,
    )
    inspected = inspected_images(run_inspection(job, load_candidate(found[0], progress=job.progress).preprocessing))
    images = search_images(inspected)
    options: dict[str, Any] = {"device": job.device, "cache": job.cache, "progress": job.progress}
    selection = search(found, images, seed=recipe.seed, drops=False, **options)
    if not selection.results:
        raise DataError(f"compare backbones: {selection.stopped}. Add images.")
    rows = [result.compared() for result in selection.results]
    make_run_folder(folder)
    _write(folder, inspected.inspection, rows, CROSS_VALIDATION)
    with writing_run(folder):
        write_atomically(folder / SELECTION_FILE, json_text(selection.as_json(), indent=1).encode())
    return Comparison(folder, CROSS_VALIDATION, tuple(rows))


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
    """Trains each method and rewrites the table after each."""
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
    """Trains one method, on the data set as inspected before."""
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
    """Makes fine-tuning recipes with approximately equal training time.

    Attributes:
        recipe: the options that all recipes share.
        images: number of training images.
        rate: speed of the frozen backbone on training images, in images per second.
        seconds: approximate time budget of each recipe.
    """

    recipe: Recipe
    images: int
    rate: float
    seconds: float

    def of(self, unfreeze: str, cost: float, **choices: Any) -> Recipe:
        """The recipe that fine-tunes a layer group and all later ones.

        Args:
            unfreeze: name of the first layer group to train, or "all".
            cost: share of the network's compute before that group, 0 to 1.
            **choices: other fields of the recipe; with any, BatchNorm is live.
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
    title = f"{inspection.dataset.name}: {rows[0].count:,} images of {name}"
    document = {"data": inspection.dataset.root, "scored_on": name, "rows": [asdict(row) for row in rows]}
    with writing_run(folder):
        write_atomically(folder / "comparison.md", text_bytes(comparison_markdown(title, rows)))
        write_atomically(folder / "comparison.json", json_text(document, indent=1).encode())
        write_atomically(folder / "comparison.svg", svg_file([comparison_chart(rows)], title=title))


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in name).strip("-")
