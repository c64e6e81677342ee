"""Before a run: the recipe that suits the images and the time, written down so that it can be carried out again.

The search chooses a backbone, and the time that is left decides how deep to fine-tune. What was decided is a recipe, in
``plan.json``: a run with that plan needs no clock and gives the same weights.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from headstart.backbone.weights import Backbone
from headstart.data.inspection import Inspection
from headstart.data.preprocessing import Preprocessing
from headstart.errors import HeadstartError, OptionError, RunError, WeightsError, first_line
from headstart.files import json_text, user_path, write_atomically, writing_run
from headstart.pipeline.inspect_images import (
    Inspected,
    inspect_images,
    inspected_images,
    require_learnable,
    run_inspection,
)
from headstart.pipeline.load import Job, load
from headstart.pipeline.plan import measure, plan
from headstart.progress import Progress
from headstart.runs.folder import PLAN_FILE, SELECTION_FILE
from headstart.selection.candidates import Candidate, find_candidates, load_candidate
from headstart.selection.results import Selection
from headstart.selection.search import SearchImages, TimeLimit, search
from headstart.training.ladder import EFFORTS, SHARES, TRAINING_COST, least_epochs
from headstart.training.recipe import EffortName, Recipe, defaults
from headstart.trust.ood import MAX_REFERENCES_FINE_TUNED

DEFAULT_MINUTES: float | None = 5.0
"""Time of a run whose recipe leaves backbone and effort open; None for effort "probe" without a choice."""

MAX_COST = 2.0
"""Default of the largest cost of the model for one image, in multiples of that of the best candidate."""

FIXED_SECONDS = 30.0
"""Time of a run that does not depend on the number of images: engines, probe, label check, report."""

PLAN_VERSION = 1

OF_THE_USER = ("accept_license", "weights")
"""Options that a plan leaves to whoever carries it out: a licence is accepted in person, and a file lies elsewhere."""

DECIDED = ("backbone", "weights", "image_size", "effort")
"""Options that the choice decides, and that a run which chooses cannot be given."""

EXCLUDED = (*DECIDED, "extend", "scratch", "unfreeze", "tune", "lora_rank", "epochs", "cut", "probe", "head")


def candidates_for(recipe: Recipe, wanted: str | Sequence[str], progress: Progress) -> tuple[Candidate, ...]:
    """The candidates for a recipe whose backbone is to be chosen; arguments and errors as ``find_candidates``."""
    return find_candidates(wanted, fit=recipe.fit, accept_license=recipe.accept_license, progress=progress)


@dataclass(frozen=True)
class Depth:
    """How deep a run fine-tunes, and for how long.

    Attributes:
        effort: see ``ladder.EFFORTS``.
        epochs: of its rungs for many images; 0 for those of the effort.
        views: augmented views of each image; 0 for those of the effort.
    """

    effort: EffortName
    epochs: int = 0
    views: int = 0

    def __str__(self) -> str:
        return f"effort {self.effort}" + (f", {self.epochs} epochs and {self.views} views" if self.epochs else "")


DEPTHS = (
    Depth("quick"),
    Depth("quick", 8, 2),
    Depth("quick", 8, 3),
    Depth("quick", 10, 4),
    Depth("standard"),
    Depth("standard", 6, 4),
    Depth("standard", 10, 6),
    Depth("thorough"),
)
"""What the time left is used for, by increasing time.

On flowers, more epochs with more views of the last layers lower the log loss before deeper layers do
(docs/results/2026-11-30-choose-for-me.md).
"""


def choose_recipe(
    job: Job, found: Sequence[Candidate], minutes: float, folder: Path, *, max_cost: float = MAX_COST
) -> Recipe:
    """Chooses backbone and effort within a time, and writes plan.json and selection.json into the run folder.

    Args:
        job: its recipe has the options that are not decided here.
        found: the candidates.
        minutes: of the whole run, the report included.
        folder: of the run.
        max_cost: of the model for one image, in multiples of the cost of the best candidate.

    Returns:
        The recipe with every option decided.

    Raises:
        DataError, WeightsError: see ``train``.
    """
    ends = time.monotonic() + 60 * minutes
    job.progress.say(_intention(found, minutes))
    inspection = run_inspection(job, _preprocessing(found[0], job))
    require_learnable(inspection, least=job.recipe.min_classes)
    inspected = inspected_images(inspection)
    selection = search(
        found,
        search_images(inspected),
        seed=job.recipe.seed,
        time_limit=TimeLimit(ends, partial(_seconds_of_quick, inspected), partial(_seconds_of_probe, inspected)),
        max_cost=max_cost,
        device=job.device,
        cache=job.cache,
        progress=job.progress,
    )
    selection, recipe, fingerprint = _affordable(job, selection, inspection, ends)
    job.progress.say(f"Chosen: {recipe.backbone} at {recipe.image_size} pixels, effort {recipe.effort}.")
    document = {
        "version": PLAN_VERSION,
        "minutes": minutes,
        "fingerprint": fingerprint,
        "recipe": {k: v for k, v in recipe.without_paths().as_json().items() if k not in OF_THE_USER},
    }
    with writing_run(folder):
        write_atomically(folder / PLAN_FILE, json_text(document, indent=1).encode())
        write_atomically(folder / SELECTION_FILE, json_text(selection.as_json(), indent=1).encode())
    return recipe


def search_images(inspected: Inspected) -> SearchImages:
    """The training images, as the search takes them."""
    train = inspected.positions["train"]
    labels, parts = inspected.dataset.labels[train], inspected.parts(train)
    return SearchImages(inspected.keys["train"], inspected.files, labels, parts)


def minutes_for(recipe: Recipe, minutes: float | None) -> float | None:
    """The time in which a recipe is chosen: as given, or the default where the recipe leaves the choice open.

    Returns:
        None where nothing is chosen.

    Raises:
        OptionError: the time is impossible, or the recipe does not leave the choice open.
    """
    if minutes is not None:
        _check_minutes(recipe, minutes)
        return float(minutes)
    return None if _decided_in(recipe) else DEFAULT_MINUTES


def _decided_in(recipe: Recipe) -> list[str]:
    """Options of a recipe that decide what would be chosen."""
    given = [name for name in EXCLUDED if getattr(recipe, name) != defaults()[name] and name != "effort"]
    return [*given, "effort"] if recipe.is_effort_given else given


def _check_minutes(recipe: Recipe, minutes: object) -> None:
    if isinstance(minutes, bool) or not isinstance(minutes, (int, float)) or not 0 < minutes < 1e6:
        raise OptionError(f"minutes {minutes!r:.60}: expected a number above 0.")
    if given := _decided_in(recipe):
        raise OptionError(
            f"minutes: chooses {', '.join(DECIDED).replace('_', ' ')} itself; leave {given[0]} out, or leave minutes "
            "out. Backbones to choose from are given with candidates."
        )


def check_max_cost(max_cost: object) -> None:
    """Checks that a limit on the cost of the model is possible.

    Raises:
        OptionError: otherwise.
    """
    if isinstance(max_cost, bool) or not isinstance(max_cost, (int, float)) or not 1 <= max_cost < 1e6:
        raise OptionError(f"max_cost {max_cost!r:.60}: expected a number from 1 on.")


def read_plan_file(file: str | os.PathLike[str]) -> tuple[Recipe, str]:
    """The recipe of a plan that an earlier run wrote, and the fingerprint of its weights.

    Args:
        file: plan.json, or the folder of the run.

    Raises:
        RunError: no such file, or not a plan.
    """
    path = user_path(file)
    path = path / PLAN_FILE if path.is_dir() else path
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if document["version"] > PLAN_VERSION:
            raise RunError(f"{path}: written by a newer Headstart. Install that version.")
        return Recipe.from_json(document["recipe"]), str(document["fingerprint"])
    except FileNotFoundError as error:
        raise RunError(
            f"{path}: no such plan. headstart train --minutes writes plan.json into its run folder."
        ) from error
    except RunError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, HeadstartError) as error:
        raise RunError(f"{path}: not a plan ({first_line(error)}). Give plan.json of a run.") from error


def require_weights(backbone: Backbone, expected: str) -> None:
    """Checks that a plan's weights are those that it was made with; "" expects none.

    Raises:
        WeightsError: they are others.
    """
    if expected not in ("", backbone.fingerprint):
        raise WeightsError(
            f"plan: the weights of {backbone.architecture} are not those that the plan was made with, so the result "
            "would be another one. Install these weights, or train without the plan."
        )


def _intention(found: Sequence[Candidate], minutes: float) -> str:
    """The plan of the choice in words."""
    each = "; ".join(
        f"{one.architecture} at {one.image_size} pixels ({one.gmacs:.2g} GMACs, {one.license}"
        + (f", download of {one.download_bytes / 1e6:,.0f} MB)" if one.download_bytes else ")")
        for one in found
    )
    return (
        f"Plan: {minutes:g} minute{'' if minutes == 1 else 's'}. {len(found)} backbones are compared by "
        f"cross-validation on parts of the training images: {each}. Then larger images, other fits and backbones side "
        "by side, where there is time to fine-tune them. The time left is for fine-tuning; without any, the best one "
        "so far is used with a linear classifier."
    )


def _preprocessing(candidate: Candidate, job: Job) -> Preprocessing:
    return load_candidate(candidate, progress=job.progress).preprocessing


def _seconds_of_quick(inspected: Inspected, per_image: float) -> float:
    """Seconds that a run with effort "quick" takes after the search.

    Args:
        inspected: the images.
        per_image: seconds in which a backbone reads and featurises an image.
    """
    quick, train = EFFORTS["quick"], len(inspected.keys["train"])
    held_out = inspected.num_images - train
    epochs = least_epochs(train, quick.epochs[0])
    shown = train * quick.views + train * epochs * (1 - SHARES["last"]) * TRAINING_COST
    again = held_out + min(MAX_REFERENCES_FINE_TUNED, train)  # evaluated with the fine-tuned network
    return (shown + held_out + again) * per_image + FIXED_SECONDS


def _seconds_of_probe(inspected: Inspected, per_image: float) -> float:
    """Seconds that a run with effort "probe" takes after the search; arguments as ``_seconds_of_quick``."""
    return inspected.num_images * per_image + FIXED_SECONDS


def _affordable(job: Job, selection: Selection, inspection: Inspection, ends: float) -> tuple[Selection, Recipe, str]:
    """The best of the candidates within noise that can be fine-tuned in the time left, and how deep.

    Returns:
        The selection with the chosen candidate first, the recipe, and the fingerprint of the backbone.
    """
    first: tuple[Selection, Recipe, str] | None = None
    inspected = inspected_images(inspection)
    for place, near in enumerate(selection.near):
        one, left = near.candidate, ends - time.monotonic()
        if place and _seconds_of_quick(inspected, near.per_image) > left:
            continue
        weights = None if one.weights is None else str(one.weights)
        recipe = replace(job.recipe, backbone=one.architecture, weights=weights, image_size=one.image_size, fit=one.fit)
        recipe, fingerprint = _deepest_in_time(job, recipe, inspection, ends)
        found = selection if place == 0 else selection.with_time_for(place)
        first = first or (found, recipe, fingerprint)
        if recipe.effort != "probe":
            return found, recipe, fingerprint
    assert first is not None  # the best candidate is within noise of itself
    return first


def _deepest_in_time(job: Job, recipe: Recipe, inspection: Inspection, ends: float) -> tuple[Recipe, str]:
    """The most thorough of ``DEPTHS`` whose planned steps fit into the time, effort "probe" if none does.

    Returns:
        The recipe with it, and the fingerprint of the backbone.
    """
    job = replace(job, recipe=replace(recipe, effort="thorough"))
    loaded = load(job)
    inspected = inspect_images(job, loaded, inspection)
    measured = measure(job, loaded, inspected)
    train, seconds = len(inspected.keys["train"]), ends - time.monotonic()
    expected = 0.0
    for depth in reversed(DEPTHS):
        one = replace(recipe, effort=depth.effort)
        if depth.epochs:
            one = replace(one, epochs=least_epochs(train, depth.epochs), views=depth.views)
        planned = plan(replace(job, recipe=one), loaded, inspected, measured)
        if not planned.rungs:  # this backbone is not fine-tuned
            break
        expected = sum(step.seconds for step in planned.steps)
        if expected <= seconds:
            job.progress.say(
                f"Time left: {seconds:.0f} s; {recipe.backbone} with {depth} needs about {expected:.0f} s."
            )
            return one, loaded.backbone.fingerprint
    if expected:
        job.progress.say(
            f"Time left: {seconds:.0f} s, too little to fine-tune {recipe.backbone}, about {expected:.0f} s."
        )
    return replace(recipe, effort="probe"), loaded.backbone.fingerprint
