"""A full look at a data set: files, duplicates and splits, and what the features say of labels and images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from headstart.data.dataset import Dataset, open_data
from headstart.data.finding import Finding
from headstart.data.inspection import Inspection, by_severity, images_to_exclude, inspect
from headstart.data.splits import SplitShares
from headstart.errors import DataError
from headstart.files import csv_text, text_bytes, user_path, write_atomically, write_csv_file, writing_run
from headstart.pipeline.base_classifier import load_base
from headstart.pipeline.extend import load_network
from headstart.pipeline.featurise import featurise
from headstart.pipeline.fit import check_labels, fit_head
from headstart.pipeline.inspect_images import inspect_images, run_inspection, with_value_range
from headstart.pipeline.load import Job, load
from headstart.pipeline.plan import measure, plan
from headstart.progress import Progress, SilentProgress
from headstart.reports.check_report import render_check
from headstart.runs.folder import FINDINGS_FILE, make_run_folder, write_findings
from headstart.training.recipe import Recipe
from headstart.training.recipe_options import RecipeOptions


def check(
    source: str | os.PathLike[str] | Dataset,
    *,
    files_only: bool = False,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[RecipeOptions],
) -> Inspection:
    """Finds what is wrong, or merely odd, with labelled images; changes nothing.

    The backbone is run once over the images for it, and not again by a run with the same options.

    Args:
        source: a folder, a table, or a data set that is open already.
        files_only: leave the backbone alone, and with it labels that are probably wrong and images of no class.
        device: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder; the default one where it is not given.
        progress: told of each step.
        **options: fields of ``Recipe`` that decide the features, the seed and a drawn split.

    Returns:
        The data set with its split and its findings, the gravest first.

    Raises:
        DataError: the data cannot be used at all; says what was found.
        WeightsError: the backbone's weights cannot be had.
        OptionError: an option has a value that it cannot take.
    """
    progress = progress or SilentProgress()
    recipe = Recipe.of(None, options)
    shares = SplitShares(recipe.val, recipe.test)
    dataset = open_data(source, min_classes=1)
    if files_only:
        return inspect(dataset, seed=recipe.seed, shares=shares, cache=cache, progress=progress)
    job = Job(dataset, recipe, device, cache, progress)
    loaded = load_network(job, load_base(recipe)) if recipe.extend else with_value_range(job, load(job))
    inspection = run_inspection(job, loaded.backbone.preprocessing)
    try:
        inspected = inspect_images(job, loaded, inspection)
    except DataError as error:
        unlearnable = Finding("not-trainable", "serious", str(error))
        return replace(inspection, findings=by_severity([*inspection.findings, unlearnable]))
    if recipe.extend:  # labels are not checked: there may be no images of the classes that the model has
        return inspection
    loaded = replace(loaded, splittable=None)  # nothing is fine-tuned, so no activations are kept
    planned = plan(job, loaded, inspected, measure(job, loaded, inspected))
    featurised = featurise(job, loaded, inspected, planned)
    fitted = fit_head(job, loaded, inspected, planned, featurised)
    return check_labels(job, loaded, inspected, featurised, fitted).inspection


def write_check(look: Inspection, folder: Path) -> list[Path]:
    """Writes what was found as ``findings.json``, and as ``check.html`` with the images.

    Args:
        look: what was found.
        folder: new or empty.

    Returns:
        The files.

    Raises:
        WriteError: the folder cannot be written.
    """
    findings, page = make_run_folder(folder) / FINDINGS_FILE, folder / "check.html"
    with writing_run(folder):
        write_findings(findings, look.findings)
        write_atomically(page, text_bytes(render_check(look)))
    return [findings, page]


def write_clean(look: Inspection, file: str | os.PathLike[str]) -> dict[int, str]:
    """Writes a table of the images without those that something serious or a warning is about (see ``checks.clean``).

    Paths below the table's folder are relative to it, others absolute. Labels, and splits and groups that the data came
    with, are kept; no image is touched.

    Args:
        look: what was found.
        file: the .csv file to write.

    Returns:
        Position of each image that was left out -> the kind of the finding.

    Raises:
        OutputError: the file cannot be written.
    """
    path = user_path(file)
    dataset, out, folder = look.dataset, images_to_exclude(look), Path(os.path.abspath(path)).parent
    columns: dict[str, Sequence[str]] = {
        "path": [_from(folder, own) for own in dataset.files()],
        "labels" if dataset.multi_label else "label": dataset.label_names(),
    }
    if dataset.splits is not None:
        columns["split"] = dataset.splits
    if dataset.groups is not None:
        columns["group"] = dataset.groups
    rows = [[column[i] for column in columns.values()] for i in range(len(dataset)) if i not in out]
    write_csv_file(path, csv_text([list(columns), *rows]))
    return out


def _from(folder: Path, file: str) -> str:
    relative = os.path.relpath(file, folder)
    return file if relative.startswith(os.pardir) else relative
