"""The full data check: files, duplicates, splits, label errors and outliers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from headstart.data.dataset import Dataset, open_data
from headstart.data.finding import Finding
from headstart.data.inspection import Inspection, by_severity, images_to_exclude, inspect
from headstart.data.sources.addresses import relative_to
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
    """Checks a labelled data set for unreadable files, duplicates, leaks, label errors and outliers; changes no file.

    The features are computed once and cached; a training run with the same options reuses them.

    Args:
        source: a folder, a table, or an open data set.
        files_only: skip the checks that need features: label errors and outliers.
        device: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder; the default one if None.
        progress: receives messages and the progress of each task.
        **options: fields of ``Recipe`` for the features, the seed and the split.

    Returns:
        The data set, its split and its findings, most severe first.

    Raises:
        DataError: the data cannot be used; the message says what was found.
        WeightsError: the weights of the backbone cannot be loaded.
        LicenseError: the licence of the weights is restricted, and was not accepted.
        OptionError: an option is invalid.

    Examples:
        >>> inspection = hs.check("flowers/")
        >>> [finding.message for finding in inspection.findings if finding.severity == "serious"]
        []
    """
    progress = progress or SilentProgress()
    recipe = Recipe.of(None, options)
    shares = SplitShares(recipe.val, recipe.test)
    dataset = open_data(source, min_classes=1)
    if files_only:
        return inspect(dataset, seed=recipe.seed, shares=shares, cache=cache, progress=progress)
    job = Job(dataset, recipe, device, cache, progress)
    loaded = load_network(job, load_base(recipe, progress)) if recipe.extend else with_value_range(job, load(job))
    inspection = run_inspection(job, loaded.backbone.preprocessing)
    try:
        inspected = inspect_images(job, loaded, inspection)
    except DataError as error:
        unlearnable = Finding("not-trainable", "serious", str(error))
        return replace(inspection, findings=by_severity([*inspection.findings, unlearnable]))
    if recipe.extend:  # no label check: the data may hold no images of the model's classes
        return inspection
    loaded = replace(loaded, splittable=None)  # nothing is fine-tuned, so no activations are cached
    planned = plan(job, loaded, inspected, measure(job, loaded, inspected))
    featurised = featurise(job, loaded, inspected, planned)
    fitted = fit_head(job, loaded, inspected, planned, featurised)
    return check_labels(job, loaded, inspected, featurised, fitted).inspection


def write_check(look: Inspection, folder: Path) -> list[Path]:
    """Writes the findings as ``findings.json``, and as the report ``check.html`` with images.

    Args:
        look: the inspected data set.
        folder: a new or empty folder.

    Returns:
        The files written.

    Raises:
        WriteError: the folder cannot be written.
    """
    findings, page = make_run_folder(folder) / FINDINGS_FILE, folder / "check.html"
    with writing_run(folder):
        write_findings(findings, look.findings)
        write_atomically(page, text_bytes(render_check(look)))
    return [findings, page]


def write_clean(look: Inspection, file: str | os.PathLike[str]) -> dict[int, str]:
    """Writes a table without the images of serious findings and warnings (see ``data.inspection.images_to_exclude``).

    Paths below the folder of the table are relative to it, others absolute, or URLs. The table has the labels, and the
    splits and groups if the data came with them. No image file is changed.

    Args:
        look: the inspected data set.
        file: the .csv file to write.

    Returns:
        Position of each excluded image -> kind of the finding.

    Raises:
        OutputError: the file cannot be written.
    """
    path = user_path(file)
    dataset, out, folder = look.dataset, images_to_exclude(look), os.path.dirname(os.path.abspath(path))
    columns: dict[str, Sequence[str]] = {
        "path": [relative_to(path, folder) for path in dataset.files()],
        "labels" if dataset.multi_label else "label": dataset.label_names(),
    }
    if dataset.splits is not None:
        columns["split"] = dataset.splits
    if dataset.groups is not None:
        columns["group"] = dataset.groups
    rows = [[column[i] for column in columns.values()] for i in range(len(dataset)) if i not in out]
    write_csv_file(path, csv_text([list(columns), *rows]))
    return out
