"""Report and model card of a run, written from its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.data.finding import Finding
from headstart.evaluation.metrics import scores_from_json
from headstart.evaluation.predictions import read_predictions
from headstart.files import path_of, text_bytes, user_path, write_atomically, writing_run
from headstart.model import Model, load
from headstart.progress import Progress
from headstart.reports.image_map import read_map
from headstart.reports.model_card import CARD_FILE, model_card
from headstart.reports.report_data import ReportData
from headstart.reports.run_report import render_report
from headstart.runs.folder import (
    CROSS_VALIDATION_FILE,
    PREDICTIONS_FILE,
    REPORT_FILE,
    load_run,
    read_exports,
    read_selection,
)
from headstart.runs.results import curve_points
from headstart.runs.test_set_audit import audit_text, read_audit
from headstart.training.former_options import with_current_names
from headstart.training.ladder import RungResult

FORMER_HEAD_KEYS = {"known": "old_classes", "remembered": "rehearsal_samples", "imagined": "is_synthesised"}
"""Former keys of the head's description in ``run.json`` -> current keys."""


def report(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
) -> Path:
    """Writes the HTML report of a finished run again.

    The figures come from the predictions stored in the run folder; thumbnails come from the image files that still
    exist.

    Args:
        run: a run folder.
        out: the .html file to write; "report.html" in the run folder if None.
        progress: receives a message about images that can no longer be read.

    Returns:
        The file written.

    Raises:
        RunError: not a finished run, a damaged one, or the file cannot be written.
        ModelFileError: the model of the run cannot be read.
        SourceError: the storage of its images cannot be reached.

    Examples:
        >>> hs.report("runs/flowers", "flowers.html").name
        'flowers.html'
    """
    folder = user_path(run)
    load_run(folder)
    document = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    file = folder / REPORT_FILE if out is None else user_path(out)
    return write_report(folder, document, load(folder), file, progress=progress)


def write_report(
    folder: Path,
    document: Mapping[str, Any],
    model: Model,
    file: Path,
    *,
    brief: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes the HTML report of a run.

    Args:
        folder: the run folder; ``run.json`` need not exist yet.
        document: content of ``run.json``.
        model: the model of the run.
        file: the .html file to write.
        brief: see ``reports.report_data.ReportData.is_brief``.
        cache: the cache folder, where thumbnails and heat maps are kept.
        progress: see ``report``.

    Raises:
        RunError: the folder is damaged.
        WriteError: the file cannot be written.
    """
    tables = [file for file in (folder / CROSS_VALIDATION_FILE,) if file.is_file()] + [folder / PREDICTIONS_FILE]
    thresholds = model.thresholds
    evaluated = [part for table in tables for part in read_predictions(table, model.classes, thresholds=thresholds)]
    head, data = document["head"], document["data"]
    data_shown = ReportData(
        name=data["name"],
        base=path_of(data.get("base", "")) or os.path.commonpath([p for part in evaluated for p in part.paths]),
        model=model,
        head={"reason": "by its settings", "frozen": 0} | with_current_names(head, FORMER_HEAD_KEYS),
        counts=data["counts"],
        sizes=data.get("sizes") or {split: sum(classes.values()) for split, classes in data["counts"].items()},
        split_origin=data.get("split", "as given with the data" if data.get("given", True) else "drawn by content"),
        fingerprint=data["train_sha256"],
        findings=[Finding.from_json(entry) for entry in document["findings"]],
        evaluated=evaluated,
        rungs=[RungResult(**rung) for rung in document["rungs"]],
        best=document["best"],
        curves=curve_points(folder),
        image_map=read_map(folder),
        is_brief=brief,
        test_audit=audit_text(read_audit(folder)),
        proof=document["frozen"],
        seconds=document["seconds"],
        selection=read_selection(folder),
        exports=read_exports(folder),
    )
    page = text_bytes(render_report(data_shown, cache, progress))
    with writing_run(folder, file):
        write_atomically(file, page)
    return file


def write_card(folder: Path, document: Mapping[str, Any], model: Model) -> Path:
    """Writes the model card next to the model file; arguments as for ``write_report``.

    Raises:
        WriteError: the file cannot be written.
    """
    file = folder / CARD_FILE
    results = {name: scores_from_json(figures) for name, figures in document["scores"].items()}
    with writing_run(folder, file):
        card = model_card(model, results, document, selection=read_selection(folder))
        write_atomically(file, text_bytes(card))
    return file
