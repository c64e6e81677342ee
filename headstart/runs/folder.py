"""The run folder: its files, creating it, writing results into it, and opening a finished run.

start.json, run.json, log.jsonl and the tables (.csv) are private: they hold absolute paths. The other files hold no
path of this machine and can be published.

RUN/
  recipe.json       every option; written first
  start.json        data, device, other files, and a fingerprint of the images: what resuming needs
  log.jsonl         the events, one a line; tensorboard/ holds the same curves
  checkpoints/      finished rungs and the current one, to resume from
  split.csv         the split of each image, and why an image was left out
  rehearsal.csv     images of the old classes, if a model was extended
  findings.json     what the data check found
  model.safetensors the model
  predictions.csv   split, label, predicted label and all probabilities of every evaluated image
  cross-validation.csv  the same of training images by cross-validation, if few images are held out
  scores.json       scores by split
  test_uses.jsonl   audit: each time that the test images were scored
  map.csv           2-D coordinates of each image, and its nearest training images
  calibration.svg   reliability diagram, and accuracy against coverage
  curves.svg        learning curves, if anything was trained by steps
  report.html       the report
  README.md         the model card
  plan.json         what was chosen within the minutes given; selection.json, how the candidates did
  run.json          written last: a run without it did not finish
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from headstart.data.dataset import Dataset, open_data
from headstart.data.finding import Finding
from headstart.data.sources.addresses import absolute, title_of, user_address
from headstart.errors import DataError, OptionError, RunError
from headstart.evaluation.metrics import AnyScores, scores_from_json, shown_first
from headstart.figures import count_text, interval_text
from headstart.files import (
    json_text,
    not_written,
    parsed_json,
    read_rows,
    user_path,
    write_atomically,
    writing_run,
)
from headstart.html import data_address, image_element, paragraph, table
from headstart.model_file import MODEL_FILE
from headstart.runs.status import STATUS_FILE
from headstart.training.ladder import RungResult
from headstart.training.recipe import Recipe

START_FILE = "start.json"
CURVES_FILE = "curves.svg"
CALIBRATION_FILE = "calibration.svg"
FINDINGS_FILE = "findings.json"
PREDICTIONS_FILE = "predictions.csv"
CROSS_VALIDATION_FILE = "cross-validation.csv"
REPORT_FILE = "report.html"
PLAN_FILE, SELECTION_FILE, EXPORTS_FILE = "plan.json", "selection.json", "exports.json"
"""Of a run whose backbone was chosen: the recipe that was decided, and how the candidates did."""

REHEARSAL_FILE = "rehearsal.csv"
"""Images of the old classes, where a model was extended."""

FORMER_REHEARSAL_FILE = "remembered.csv"
"""Name of ``REHEARSAL_FILE`` in runs of earlier versions."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: the run folder.
        recipe: the options.
        results: scores by set, in the order cross-validation, val, test.
        rungs: of the ladder, in order; the first is the kNN reference.
        best: the name of the rung that was kept.
        findings: what the data check found.
        seconds: duration of each step.

    Examples:
        >>> run = hs.load_run("runs/flowers")
        >>> run.scores.sentence
        'cross-validation accuracy 93.8 % (30/32), 95 % CI 79.9-98.3'
        >>> run.model_path.name, run.report_path.name
        ('model.safetensors', 'report.html')
    """

    folder: Path
    recipe: Recipe
    results: dict[str, AnyScores]
    rungs: tuple[RungResult, ...] = ()
    best: str = "probe"
    findings: tuple[Finding, ...] = field(default=(), repr=False)
    seconds: dict[str, float] = field(default_factory=dict, repr=False)

    @property
    def scores(self) -> AnyScores:
        """The score that is shown first, see ``metrics.shown_first``."""
        return shown_first(self.results)

    @property
    def model_path(self) -> Path:
        """The model file."""
        return self.folder / MODEL_FILE

    @property
    def report_path(self) -> Path:
        """The report."""
        return self.folder / REPORT_FILE

    @property
    def curves_path(self) -> Path:
        """The learning curves as an SVG; no such file if nothing was trained by steps."""
        return self.folder / CURVES_FILE

    def _repr_html_(self) -> str:
        """For a notebook: the result, the ladder, the curves, and where the rest is."""
        parts = [paragraph(scores.sentence, strong=True) for scores in self.results.values()]
        if self.rungs:
            rows = [
                [
                    r.name,
                    count_text(r.correct, r.count),
                    interval_text(r.low, r.high),
                    f"{r.seconds:.1f}",
                    r.decision,
                ]
                for r in self.rungs
            ]
            parts.append(table(["rung", "accuracy", "95 % CI", "seconds", "decision"], rows))
        if self.curves_path.is_file():
            parts.append(
                image_element(data_address(self.curves_path.read_bytes(), "svg+xml"), "learning curves", width=720)
            )
        parts.append(paragraph(f"Kept: {self.best}. Report: {self.report_path}. Model: {self.model_path}."))
        return "".join(parts)


def load_run(folder: str | os.PathLike[str]) -> Run:
    """Opens a finished run.

    Raises:
        RunError: no run there, or one that did not finish.

    Examples:
        >>> run = hs.load_run("runs/flowers")
        >>> run.recipe.effort, run.best
        ('probe', 'probe')
    """
    path = user_path(folder)
    if not (path / "run.json").is_file():
        if (path / "recipe.json").is_file():
            raise RunError(f"{path}: an unfinished run. Resume it: headstart train --resume {path}")
        raise RunError(f"{path}: not a run folder. Expected a folder written by headstart train, with run.json in it.")
    try:
        document = parsed_json((path / "run.json").read_text(encoding="utf-8"))
        paths: dict[str, str] = {}
        with suppress(OSError, ValueError, AttributeError):  # a run that was moved here without it still opens
            paths = parsed_json((path / START_FILE).read_bytes()).get("paths", {})
        recipe = _read_recipe(path, paths)
        return Run(
            path,
            recipe,
            {name: scores_from_json(figures) for name, figures in document["scores"].items()},
            tuple(RungResult(**rung) for rung in document.get("rungs", [])),
            document.get("best", "probe"),
            tuple(map(Finding.from_json, document["findings"])),
            document["seconds"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: damaged run folder ({error}). The model file in it may still load.") from error


def choose_run_folder(out: str | os.PathLike[str] | None, source: str | os.PathLike[str]) -> Path:
    """Chooses the folder for a run; it is not created yet.

    Args:
        out: the folder, new or empty; "runs/NAME" by default.
        source: path or URL of the data, whose name the folder gets.

    Raises:
        RunError: it exists and holds something.
    """
    if out is None:
        return next_free(Path("runs") / (os.path.splitext(title_of(user_address(source)).strip("/"))[0] or "data"))
    folder = user_path(out)
    if _is_barely_begun(folder):
        raise RunError(
            f"{folder}: a run is being prepared here, or was killed before training began. If no run is active, delete "
            "the folder; or choose another one (option out)."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(
            f"{folder}: already exists and is not empty; nothing is overwritten. Choose another folder (option out), "
            "or resume an unfinished run (headstart train --resume)."
        )
    return folder


def _is_barely_begun(folder: Path) -> bool:
    """Whether a folder holds what a run writes before it can be resumed, and nothing else."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return bool(names) and names <= {STATUS_FILE, PLAN_FILE, SELECTION_FILE}


def make_run_folder(folder: Path) -> Path:
    """Creates the folder for a run if it does not exist.

    Raises:
        RunError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{not_written(folder, error)}, or choose another folder (option out).") from error
    return folder


def next_free(folder: Path) -> Path:
    """``folder`` itself where it does not exist yet, else the first free of folder-2, folder-3, ..."""
    names = (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(2))
    return next(path for path in itertools.chain([folder], names) if not path.exists())


@dataclass(frozen=True)
class RunStart:
    """What a run began with, and what it needs to be resumed.

    Attributes:
        data: absolute path, or URL, of the data.
        device: as it was asked for.
        images: a fingerprint of the images and their labels; "" until they were read.
        conditions: weights, versions, processor and device, see ``runs.environment``.
        columns: of the table, as they were chosen: arguments of ``open_data``.
        paths: of this machine that the recipe names: its fields, such as "weights", and the absolute path of each.
    """

    data: str
    device: str
    images: str = ""
    conditions: dict[str, str] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)


def write_start(folder: Path, recipe: Recipe, start: RunStart) -> None:
    """Writes recipe.json and start.json; paths of this machine are in the latter alone.

    Raises:
        WriteError: the folder cannot be written.
    """
    paths = {name: absolute(user_address(path)) for name, path in recipe.paths.items()}
    with writing_run(folder):
        _write_json(folder / "recipe.json", recipe.without_paths().as_json())
        _write_json(folder / START_FILE, asdict(replace(start, paths=paths)))


def read_start(folder: Path) -> tuple[Recipe, RunStart]:
    """Reads what a run began with.

    Raises:
        RunError: no run there, or one that is finished or damaged.
    """
    if (folder / "run.json").is_file():
        raise RunError(f"{folder}: this run is finished; there is nothing to resume.")
    try:
        start = RunStart(**parsed_json((folder / START_FILE).read_text(encoding="utf-8")))
        return _read_recipe(folder, start.paths), start
    except FileNotFoundError as error:
        if _is_barely_begun(folder):
            raise RunError(
                f"{folder}: nothing to resume: the run was killed before training began. Delete the folder and start a "
                "new run; images that were already read are cached."
            ) from error
        raise RunError(f"{folder}: no run to resume. Expected a folder that headstart train wrote.") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{folder}: damaged run folder ({error}). Start a new run.") from error


def _read_recipe(folder: Path, paths: dict[str, str]) -> Recipe:
    return Recipe.from_json(parsed_json((folder / "recipe.json").read_text(encoding="utf-8")) | paths)


def open_like(run: Path | None, source: str | os.PathLike[str] | Dataset, *, min_classes: int = 2) -> Dataset:
    """Opens data for a run's model; of a table, the columns that were chosen for the run are tried first.

    Args:
        run: the run folder; None without a run.
        source: see ``open_data``.
        min_classes: see there.

    Raises:
        DataError: see there.
    """
    columns: dict[str, str] = {}
    with suppress(OSError, ValueError, AttributeError):
        columns = parsed_json((run / START_FILE).read_bytes()).get("columns", {}) if run else {}
    if not columns or isinstance(source, Dataset) or os.path.isdir(user_address(source)):
        return open_data(source, min_classes=min_classes)
    try:
        return open_data(source, min_classes=min_classes, **columns)
    except (DataError, OptionError) as error:
        with suppress(DataError):
            return open_data(source, min_classes=min_classes)
        raise error


def split_rows(folder: Path, name: str = "split.csv") -> list[dict[str, str]]:
    """The rows of a run's table of images.

    Raises:
        RunError: there is none.
    """
    try:
        return read_rows(folder / name)
    except OSError as error:
        raise RunError(f"{folder / name}: {error.strerror}. Give the data to score the model on.") from error


def rehearsal_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's table of images of the old classes; none if the run did not extend a model."""
    names = (REHEARSAL_FILE, FORMER_REHEARSAL_FILE)
    return [row for name in names if (folder / name).is_file() for row in split_rows(folder, name)]


def read_selection(folder: Path) -> dict[str, Any] | None:
    """How the backbone of a run was chosen, see ``selection.results.Selection.as_json``; None if it was given.

    Raises:
        RunError: the file is damaged.
    """
    return _read_document(folder / SELECTION_FILE)


def read_exports(folder: Path) -> dict[str, Any] | None:
    """The exports of a run, see ``verbs.export_table.ExportTable.as_json``; None if it was not exported as a whole.

    Raises:
        RunError: the file is damaged.
    """
    return _read_document(folder / EXPORTS_FILE)


def _read_document(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        document: dict[str, Any] = parsed_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: damaged. Copy the run again, or remove this file.") from error
    return document


def write_findings(file: Path, findings: Sequence[Finding]) -> None:
    """Writes findings as JSON; an OSError is left to the caller."""
    _write_json(file, [asdict(finding) for finding in findings])


def seal(folder: Path, document: dict[str, Any]) -> None:
    """Writes ``run.json``: the run is finished.

    Raises:
        WriteError: the folder cannot be written.
    """
    with writing_run(folder):
        _write_json(folder / "run.json", document)


def _write_json(path: Path, document: object) -> None:
    write_atomically(path, json_text(document, indent=1).encode())
