"""Result files of a run: each is one entry of ``RESULT_FILES``, a name and the function that computes its content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headstart.data.inspection import Inspection
from headstart.evaluation.metrics import CROSS_VALIDATION
from headstart.evaluation.predictions import Evaluated, predictions_csv
from headstart.evaluation.reliability import Reliability, reliabilities, usual_kept
from headstart.files import csv_text, json_text, text_bytes, write_atomically, writing_run
from headstart.model import Model
from headstart.model_file import MODEL_FILE
from headstart.reports.calibration_chart import calibration_charts
from headstart.reports.curves import CurvePoint, curve_charts
from headstart.reports.image_map import MAP_FILE, ImageMap
from headstart.reports.svg_chart import svg_file
from headstart.runs.folder import (
    CALIBRATION_FILE,
    CROSS_VALIDATION_FILE,
    CURVES_FILE,
    FINDINGS_FILE,
    PREDICTIONS_FILE,
    REHEARSAL_FILE,
    Run,
)
from headstart.runs.log import read_log
from headstart.training.fit_head import Fitted


@dataclass(frozen=True)
class RunResults:
    """What the result files of a run are computed from.

    Attributes:
        run: scores and rungs.
        model: the finished model.
        fitted: the head on frozen features, the first rung.
        inspection: the data set and its split.
        evaluated: predictions of every set.
        reliability: calibration of val and test, see ``evaluation.reliability.reliabilities``.
        proof: digests of what was frozen, before and after, and the engines; a JSON document.
        image_map: map of all images; None for none.
        rehearsal: table of the images of the old classes, where a model was extended.
    """

    run: Run
    model: Model
    fitted: Fitted
    inspection: Inspection
    evaluated: tuple[Evaluated, ...]
    reliability: tuple[Reliability, ...]
    proof: dict[str, Any]
    image_map: ImageMap | None = None
    rehearsal: str = ""


def collect_results(
    run: Run,
    model: Model,
    fitted: Fitted,
    inspection: Inspection,
    evaluated: tuple[Evaluated, ...],
    proof: dict[str, Any],
    *,
    image_map: ImageMap | None = None,
    rehearsal: str = "",
) -> RunResults:
    """``RunResults`` with the calibration figures of its predictions; arguments as its attributes."""
    reliability = tuple(reliabilities(model.calibration, list(evaluated)))
    return RunResults(run, model, fitted, inspection, evaluated, reliability, proof, image_map, rehearsal)


def write_results(results: RunResults) -> dict[str, Any]:
    """Writes every result file into the run folder.

    Returns:
        The document for ``run.json``, which ``folder.seal`` writes last.

    Raises:
        WriteError: the folder cannot be written.
    """
    folder = results.run.folder
    with writing_run(folder):
        for name, content_of in RESULT_FILES.items():
            content = content_of(results)
            if content is not None:
                write_atomically(folder / name, content)
    return run_document(results)


def run_document(results: RunResults) -> dict[str, Any]:
    """The content of ``run.json``."""
    run, model, fitted, inspection = results.run, results.model, results.fitted, results.inspection
    usual = usual_kept(model.calibration, list(results.evaluated))
    return {
        "scores": _scores(results),
        "findings": [asdict(finding) for finding in run.findings],
        "seconds": run.seconds,
        "head": {"name": fitted.name, "reason": fitted.reason, "frozen": fitted.frozen} | fitted.settings,
        "backbone": model.net.backbone.source,
        "fingerprint": model.net.backbone.fingerprint,
        "license": model.net.backbone.license,
        "rungs": [asdict(rung) for rung in run.rungs],
        "best": run.best,
        "frozen": results.proof,
        "data": model.data
        | {
            "base": inspection.dataset.base,
            "split": inspection.split.origin,
            "sizes": inspection.split.sizes,
            "name": inspection.dataset.name,
        },
        "libraries": model.libraries,
        "calibration": model.calibration.as_json()
        | {
            "reliability": [entry.as_json() for entry in results.reliability],
            "usual": "; ".join(entry.sentence for entry in usual[-1:]),
        },
    }


def curve_points(folder: Path) -> list[CurvePoint]:
    """The epochs of the run in a folder, from its log."""
    entries = read_log(folder)
    val = {(e["stage"], e["epoch"]): (e["log_loss"], e["accuracy"]) for e in entries if e["event"] == "validation"}
    return [
        CurvePoint(e["stage"], e["epoch"], e["loss"], e["accuracy"], *val.get((e["stage"], e["epoch"]), (None, None)))
        for e in entries
        if e["event"] == "epoch"
    ]


def split_csv(inspection: Inspection) -> str:
    """Path, label, split and content hash of each image, why it was left out, and its group where the data have any."""
    dataset, split = inspection.dataset, inspection.split
    names, groups = dataset.label_names(), dataset.groups
    label = "labels" if dataset.multi_label else "label"
    rows: list[list[str]] = [["path", label, "split", "content", "left_out", *([] if groups is None else ["group"])]]
    for i, path in enumerate(dataset.files()):
        why = inspection.scanned.faults.get(i) or split.left_out.get(i, "")
        group = [] if groups is None else [groups[i]]
        rows.append([path, names[i], split.assigned[i], inspection.scanned.keys[i].hex(), why, *group])
    return csv_text(rows)


def _scores(results: RunResults) -> dict[str, Any]:
    return {name: scores.as_json() for name, scores in results.run.results.items()}


def _json(document: object) -> bytes:
    return json_text(document, indent=1).encode()


def _predictions(results: RunResults, *, cross_validated: bool) -> bytes | None:
    chosen = [part for part in results.evaluated if (part.scores.name == CROSS_VALIDATION) is cross_validated]
    return None if cross_validated and not chosen else text_bytes(predictions_csv(chosen))


def _curves(results: RunResults) -> bytes | None:
    points = curve_points(results.run.folder)
    return svg_file(curve_charts(points), title=results.run.folder.name) if points else None


def _calibration(results: RunResults) -> bytes | None:
    charts = calibration_charts(results.model.calibration, list(results.reliability), list(results.evaluated))
    return svg_file(charts) if charts else None


RESULT_FILES: dict[str, Callable[[RunResults], bytes | None]] = {
    "split.csv": lambda results: text_bytes(split_csv(results.inspection)),
    REHEARSAL_FILE: lambda results: text_bytes(results.rehearsal) if results.rehearsal else None,
    FINDINGS_FILE: lambda results: _json([asdict(finding) for finding in results.run.findings]),
    MODEL_FILE: lambda results: results.model.as_bytes(),
    MAP_FILE: lambda results: None if results.image_map is None else text_bytes(results.image_map.csv()),
    CROSS_VALIDATION_FILE: lambda results: _predictions(results, cross_validated=True),
    PREDICTIONS_FILE: lambda results: _predictions(results, cross_validated=False),
    "scores.json": lambda results: _json(_scores(results)),
    CURVES_FILE: _curves,
    CALIBRATION_FILE: _calibration,
}
"""Name of a result file -> its content, None for no such file; in the order in which they are written."""
