"""Before a run: the recipe that suits the images and the time, written down so that it can be carried out again.

The search chooses a backbone, and the time that is left decides how deep to fine-tune. What was decided is a recipe, in
``plan.json``: a run with that plan needs no clock and gives the same weights.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from headstart.backbone.weights import Backbone
from headstart.data.inspection import Inspection
from headstart.data.preprocessing import Preprocessing
from headstart.errors import HeadstartError, OptionError, RunError, WeightsError, first_line, suggestion
from headstart.files import json_text, parsed_json, user_path, write_atomically, writing_run
from headstart.pipeline.choose_depth import DEEP, SHORTEST, Depth, Preferred, by_preference, depths_for, seconds_of
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
from headstart.selection.search import SearchImages, search
from headstart.selection.time_limit import TimeLimit
from headstart.training.former_options import RENAMED
from headstart.training.ladder import least_epochs
from headstart.training.recipe import Recipe, defaults, options_of

DEFAULT_MINUTES: float | None = 5.0
"""Time of a run whose recipe leaves backbone and effort open; None for effort "probe" without a choice."""

MAX_COST = 2.0
"""Default of the largest cost of larger images, or of backbones side by side, in multiples of one backbone alone."""

CANDIDATES = "offline"
"""Default of the backbones to choose from."""

KEPT = 0.8
"""Share of the time that is kept for fine-tuning, if it can use as much. On flowers it lowers the log loss from 0.24 to
0.12; larger images, other fits and combinations by 0.00 to 0.03."""

OVERRUN = 0.03
"""Share of the time by which a plan may exceed it. Plans are right within 10 % on an idle machine, and a network that
would miss the time by a little is better than one that leaves a third of it."""

PLAN_VERSION = 1

OF_THE_USER = ("accept_license", "weights")
"""Options that a plan leaves to whoever carries it out: a licence is accepted in person, and a file lies elsewhere."""

DECIDED = ("backbone", "weights", "image_size", "effort")
"""Options that the choice decides, and that a run which chooses cannot be given."""

EXCLUDED = (*DECIDED, "extend", "scratch", "unfreeze", "tune", "lora_rank", "epochs", "cut", "probe", "head")


def candidates_for(recipe: Recipe, wanted: str | Sequence[str], progress: Progress) -> tuple[Candidate, ...]:
    """The candidates for a recipe whose backbone is to be chosen; arguments and errors as ``find_candidates``."""
    return find_candidates(wanted, fit=recipe.fit, accept_license=recipe.accept_license, progress=progress)


def choose_recipe(
    job: Job, found: Sequence[Candidate], minutes: float, folder: Path, *, max_cost: float = MAX_COST
) -> Recipe:
    """Chooses backbone and effort within a time, and writes plan.json and selection.json into the run folder.

    Args:
        job: its recipe has the options that are not decided here.
        found: the candidates.
        minutes: of the whole run, the report included.
        folder: of the run.
        max_cost: of larger images or backbones side by side for one image, see ``search``.

    Returns:
        The recipe with every option decided.

    Raises:
        DataError, WeightsError: see ``train``.
    """
    ends = time.monotonic() + 60 * minutes
    job.progress.say(_intention(found, minutes))
    for one in found[1:]:
        if one.weights is not None:  # an unusable file is an error before minutes of comparison, not after
            load_candidate(one)
    inspection = run_inspection(job, _preprocessing(found[0], job))
    require_learnable(inspection, least=job.recipe.min_classes)
    inspected, training = inspected_images(inspection), partial(job.ranks.seconds, device=job.device)
    selection = search(
        found,
        search_images(inspected),
        seed=job.recipe.seed,
        time_limit=TimeLimit(
            ends,
            partial(seconds_of, SHORTEST, inspected, training=training),
            partial(seconds_of, None, inspected),
            partial(seconds_of, DEEP[2], inspected, training=training),
            KEPT * 60 * minutes,
        ),
        max_cost=max_cost,
        device=job.device,
        cache=job.cache,
        progress=job.progress,
    )
    selection, recipe, fingerprint = _chosen(job, selection, inspection, ends, 60 * minutes * OVERRUN)
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
        raise OptionError(f"minutes {minutes!r:.60}: expected a number above 0 and below 1,000,000.")
    if given := _decided_in(recipe):
        raise OptionError(
            f"minutes: chooses {', '.join(DECIDED).replace('_', ' ')} itself; leave {given[0]} out, or leave minutes "
            "out. Backbones to choose from are given with candidates."
        )


def require_use(
    recipe: Recipe, minutes: float | None, candidates: str | Sequence[str], max_cost: float, plan: object
) -> None:
    """Checks that nothing is given which only a choice of the backbone uses, if there is none.

    Raises:
        OptionError: otherwise.
    """
    given = "candidates" if candidates != CANDIDATES else "max_cost" if max_cost != MAX_COST else ""
    if given and minutes is None:
        decided = "plan" if plan is not None else next(iter(_decided_in(recipe)), "effort")
        raise OptionError(
            f"{given}: has no effect, because {decided} was given and no backbone is chosen. Leave one out."
        )


def check_max_cost(max_cost: object) -> None:
    """Checks that a limit on the cost of the model is possible.

    Raises:
        OptionError: otherwise.
    """
    if isinstance(max_cost, bool) or not isinstance(max_cost, (int, float)) or not 1 <= max_cost < 1e6:
        raise OptionError(f"max_cost {max_cost!r:.60}: expected a number of at least 1.")


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
        document: Any = parsed_json(path.read_text(encoding="utf-8"))
        return _plan_of(document, path)
    except FileNotFoundError as error:
        raise RunError(
            f"{path}: no such plan. headstart train --minutes writes plan.json into its run folder."
        ) from error
    except RunError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, HeadstartError) as error:
        raise RunError(f"{path}: not a plan ({first_line(error)}). Give plan.json of a run.") from error


def _plan_of(document: Any, path: Path) -> tuple[Recipe, str]:
    """The recipe and the fingerprint in a plan, as ``read_plan_file``, which names the file."""
    kinds = {"version": int, "recipe": dict, "fingerprint": str}
    if not isinstance(document, dict):
        raise ValueError("expected a JSON object")
    if type(document.get("version")) is int and document["version"] > PLAN_VERSION:
        raise RunError(f"{path}: written by a newer Headstart. Install that version.")
    for name, kind in kinds.items():
        if type(document.get(name)) is not kind:
            raise ValueError(f"{name}: {'wrong type' if name in document else 'missing'}")
    if given := [name for name in OF_THE_USER if name in document["recipe"]]:
        raise RunError(f"{path}: {given[0]} is no part of a plan. Remove it there, and give it as an option.")
    known = {*options_of(), *RENAMED}
    if unknown := [name for name in document["recipe"] if name not in known]:
        hint = suggestion(unknown[0], known)
        raise RunError(
            f"{path}: no option is called {unknown[0]!r:.60}, so the result would differ.{hint} Correct it, or install "
            "the version of Headstart that wrote the plan."
        )
    return Recipe.from_json(document["recipe"]), document["fingerprint"]


def require_weights(backbone: Backbone, expected: str) -> None:
    """Checks that a plan's weights are those that it was made with; "" expects none.

    Raises:
        WeightsError: they are others.
    """
    if expected not in ("", backbone.fingerprint):
        raise WeightsError(
            f"plan: the weights of {backbone.architecture} are not those that the plan was made with, so the result "
            "would differ. Install these weights, or train without the plan."
        )


def _intention(found: Sequence[Candidate], minutes: float) -> str:
    """The plan of the choice in words."""
    each = "; ".join(
        f"{one.architecture} at {one.image_size} pixels ({one.gmacs:.2g} GMACs, {one.license}"
        + (f", download of {one.download_bytes / 1e6:,.0f} MB)" if one.download_bytes else ")")
        for one in found
    )
    compared = "1 backbone is evaluated" if len(found) == 1 else f"{len(found)} backbones are compared"
    return (
        f"Plan: {minutes:g} minute{'' if minutes == 1 else 's'}. {compared} by "
        f"cross-validation on parts of the training images: {each}. Then larger images, other fits and backbones side "
        "by side, where there is time to fine-tune them. The time left is for fine-tuning; if there is none, the best "
        "one so far is used with a linear classifier."
    )


def _preprocessing(candidate: Candidate, job: Job) -> Preprocessing:
    return load_candidate(candidate, progress=job.progress).preprocessing


def _chosen(
    job: Job, selection: Selection, inspection: Inspection, ends: float, overrun: float
) -> tuple[Selection, Recipe, str]:
    """The candidate that is used, and how deep it is fine-tuned, see ``choose_depth.by_preference``.

    Returns:
        The selection with the chosen candidate first, the recipe, and the fingerprint of the backbone.
    """
    inspected, depths = inspected_images(inspection), depths_for(selection)
    efforts = ["probe", *(depth.effort for depth in depths)]
    tried: list[tuple[Preferred, Recipe, str]] = []
    training = partial(job.ranks.seconds, device=job.device)
    for preferred in by_preference(selection, inspected, ends + overrun - time.monotonic(), depths, training):
        one = selection.near[preferred.place].candidate
        weights = None if one.weights is None else str(one.weights)
        recipe = replace(job.recipe, backbone=one.architecture, weights=weights, image_size=one.image_size, fit=one.fit)
        tried.append((preferred, *_deepest_in_time(job, recipe, inspection, depths, ends, overrun)))
        if tried[-1][1].effort == preferred.effort != "probe":
            break  # those that follow are not expected to be fine-tuned deeper

    def rank(found: tuple[Preferred, Recipe, str]) -> tuple[int, int]:
        size = selection.near[found[0].place].candidate.parameters
        return efforts.index(found[1].effort), size if found[1].effort != "probe" else -found[0].place

    preferred, recipe, fingerprint = max(tried, key=rank)
    found = selection.with_chosen(preferred.place, preferred.why) if preferred.place else selection
    return found, recipe, fingerprint


def _deepest_in_time(
    job: Job, recipe: Recipe, inspection: Inspection, depths: Sequence[Depth], ends: float, overrun: float
) -> tuple[Recipe, str]:
    """The most thorough depth whose planned steps fit into the time, effort "probe" if none does.

    Steps may exceed the time by ``overrun`` seconds.

    Returns:
        The recipe with it, and the fingerprint of the backbone.
    """
    job = replace(job, recipe=replace(recipe, effort=depths[-1].effort))
    loaded = load(job)
    inspected = inspect_images(job, loaded, inspection)
    measured = measure(job, loaded, inspected)
    train, seconds = len(inspected.keys["train"]), ends - time.monotonic()
    expected = 0.0
    for depth in reversed(depths):
        one = replace(recipe, effort=depth.effort, epochs=least_epochs(train, depth.epochs), views=depth.views)
        planned = plan(replace(job, recipe=one), loaded, inspected, measured)
        if not planned.rungs:  # this backbone is not fine-tuned
            break
        expected = sum(step.seconds for step in planned.steps)
        if expected <= seconds + overrun:
            exact = replace(depth, epochs=one.epochs or depth.epochs)
            job.progress.say(
                f"Time left: {seconds:.0f} s; {recipe.backbone} with {exact} needs about {expected:.0f} s."
            )
            return one, loaded.backbone.fingerprint
    if expected:
        longer = "" if seconds > 0 else " The run takes longer than the time given."
        job.progress.say(
            f"Time left: {max(0, seconds):.0f} s, too little to fine-tune {recipe.backbone}, about {expected:.0f} s."
            + longer
        )
    return replace(recipe, effort="probe"), loaded.backbone.fingerprint
