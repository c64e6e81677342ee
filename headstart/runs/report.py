"""Writing a run's report from what lies in its folder: at the end of a training, and again whenever it is asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.backbone.engine import keep_freed_memory
from headstart.backbone.split import SplittableBackbone
from headstart.data.checks import Finding
from headstart.errors import RunError
from headstart.evaluation.image_map import read_map
from headstart.evaluation.predictions import read_predictions
from headstart.evaluation.reliability import reliabilities
from headstart.evaluation.report import Told, render_report
from headstart.files import write_atomically
from headstart.model import Model, load
from headstart.runs.folder import CALIBRATION_FILE, CURVES_FILE, PREDICTIONS_FILE, REPORT_FILE, load_run
from headstart.runs.uses import read_uses, uses_text
from headstart.training.ladder import RungResult


def report(run: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes the report of a finished run anew.

    Every figure in it comes from the run's predictions; pictures come from the images where they still are.

    Args:
        run: its folder.
        out: the .html file; "report.html" in the run's folder where it is not given.

    Returns:
        The file.

    Raises:
        RunError: no finished run there, it is damaged, or the file cannot be written.
        ModelFileError: its model cannot be read.
    """
    keep_freed_memory()
    folder = Path(run).expanduser()
    load_run(folder)
    document = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    file = folder / REPORT_FILE if out is None else Path(out).expanduser()
    return write_report(folder, document, load(folder), file)


def write_report(
    folder: Path, document: Mapping[str, Any], model: Model, file: Path, *, split: SplittableBackbone | None = None
) -> Path:
    """Writes a report.

    Args:
        folder: of the run, with all but ``run.json`` in it.
        document: what ``run.json`` holds, or will.
        model: of the run.
        file: to write.
        split: see ``heat.heat_maps``.

    Raises:
        RunError: the folder is damaged, or the file cannot be written.
    """
    evaluated = read_predictions(folder / PREDICTIONS_FILE, model.classes, thresholds=model.thresholds)
    head, data = document["head"], document["data"]
    told = Told(
        name=data["name"],
        base=Path(data.get("base") or os.path.commonpath([p for part in evaluated for p in part.paths])),
        model=model,
        head={"reason": "as its settings say", "frozen": 0} | head,
        counts=data["counts"],
        sizes=data.get("sizes") or {split: sum(own.values()) for split, own in data["counts"].items()},
        given=data.get("given", True),
        fingerprint=data["train_sha256"],
        findings=[Finding.from_json(entry) for entry in document["findings"]],
        evaluated=evaluated,
        rungs=[RungResult(**rung) for rung in document["rungs"]],
        best=document["best"],
        curves=_bytes(folder / CURVES_FILE),
        trust=_bytes(folder / CALIBRATION_FILE),
        reliable=reliabilities(model.calibration, evaluated),
        image_map=read_map(folder),
        split=split,
        uses=uses_text(read_uses(folder)),
        proof=document["frozen"],
        seconds=document["seconds"],
    )
    text = render_report(told)
    try:
        write_atomically(file, text.encode("utf-8", errors="replace"))
    except OSError as error:
        raise RunError(f"{file}: cannot be written: {error.strerror or error}.") from error
    return file


def _bytes(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""
