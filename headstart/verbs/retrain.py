"""Retraining with corrected labels: same recipe, same split; both models compared on the same held-out images."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from headstart.cache.keys import content_key
from headstart.data.file_tree import is_hidden
from headstart.data.image_formats import SUFFIXES
from headstart.data.sources.read import read_image
from headstart.errors import DataError, OptionError, RunError
from headstart.evaluation.mcnemar import Paired, paired
from headstart.figures import count_text
from headstart.files import csv_text, read_rows, text_bytes, user_path, write_atomically
from headstart.pipeline.train import train
from headstart.progress import Progress, SilentProgress
from headstart.runs.events import Listener
from headstart.runs.folder import Run, choose_run_folder, load_run, next_free
from headstart.serve.corrections import corrections_folder
from headstart.training.recipe import Recipe

Row = tuple[str, str, str, str]
"""(path, label, split, group) of an image; group "" for none."""


@dataclass(frozen=True)
class Retrained:
    """Result of ``retrain``.

    Attributes:
        run: the new run.
        table: the table of images and labels that it was trained on.
        changes: paired comparison of the former run (A) and the new run (B) on each held-out set, with corrected
            labels.
    """

    run: Run
    table: Path
    changes: tuple[Paired, ...]

    @property
    def sentences(self) -> list[str]:
        """One sentence per comparison in ``changes``."""
        return [change_sentence(change) for change in self.changes]


def retrain(
    run: str | os.PathLike[str],
    corrections: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
    listener: Listener | None = None,
) -> Retrained:
    """Trains the model of a run again with corrected labels.

    Corrected images of the run keep their split (train, val or test) and get their new labels. Images that are new to
    the run are used for training.

    Args:
        run: the folder of a finished run.
        corrections: a folder with one subfolder of images per class; "RUN-corrections", where the web page stores
            corrections, if None.
        out: the folder of the new run; the first unused of "RUN-2", "RUN-3", ... if None.
        device: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder; the default one if None.
        progress: receives messages and the progress of each task.
        listener: see ``train``.

    Raises:
        RunError: not a finished run.
        OptionError: the run is multi-label.
        DataError: there are no corrections, or see ``train``.

    Examples:
        >>> retrained = hs.retrain("runs/flowers", out="runs/retrained")
        >>> [change.name for change in retrained.changes]
        ['val', 'test']
    """
    progress = progress or SilentProgress()
    before = load_run(run)
    folder = before.folder.resolve()
    place = corrections_folder(folder) if corrections is None else user_path(corrections)
    recipe = replace(before.recipe, val=Recipe.val, test=Recipe.test)  # the table sets the split
    new = next_free(folder) if out is None else choose_run_folder(out, folder)
    rows = corrected_rows(folder, place, progress)
    table = new.with_name(f"{new.name}-data.csv")
    columns = 4 if any(row[3] for row in rows) else 3
    lines = [row[:columns] for row in [("path", "label", "split", "group"), *rows]]
    write_atomically(table, text_bytes(csv_text(lines)))
    try:
        after = train(table, out=new, recipe=recipe, device=device, cache=cache, progress=progress, listener=listener)
    except BaseException:
        if not new.exists():  # nothing to resume
            table.unlink(missing_ok=True)
        raise
    return Retrained(after, table, compare_runs(before.folder, after.folder))


def corrected_rows(run: Path, corrections: Path, progress: Progress) -> list[Row]:
    """The images of a run with corrected labels, and new images, each with its split.

    Args:
        run: the run folder.
        corrections: a folder with one subfolder of images per class.
        progress: receives a message about classes without training images, which are excluded.

    Raises:
        RunError: the table of images of the run cannot be read.
        OptionError: the run is multi-label.
        DataError: there are no corrections.
    """
    try:
        table = [row for row in read_rows(run / "split.csv") if row["split"]]
        if table and "label" not in table[0]:
            raise OptionError(
                f"{run}: a multi-label run; corrections of several labels are not supported yet. Correct the "
                "table, and train again."
            )
        kept = [(row["path"], row["label"], row["split"], row.get("group") or "", row["content"]) for row in table]
    except (OSError, KeyError) as error:
        raise RunError(f"{run}: the table of its images cannot be read ({error}).") from error
    corrected = {
        content_key(read_image(str(file))).hex(): (file, label) for file, label in _corrected_files(corrections)
    }
    if not corrected:
        raise DataError(
            f"{corrections}: contains no corrections. Correct predictions on the page of headstart serve {run}."
        )
    rows: list[Row] = []
    for path, label, split, group, content in kept:
        rows.append((path, corrected[content][1] if content in corrected else label, split, group))
    run_contents = {content for *_, content in kept}
    rows += [
        (str(file.resolve()), label, "train", "") for key, (file, label) in corrected.items() if key not in run_contents
    ]
    trained = {label for _, label, split, _ in rows if split == "train"}
    if unlearnt := sorted({label for _, label, _, _ in rows} - trained):
        left_out = [row for row in rows if row[1] in unlearnt]
        progress.say(
            f"Warning: {', '.join(unlearnt)}: no training image of this class, so {len(left_out)} image(s) of it are "
            "excluded. Correct images that the run was trained on, or new ones."
        )
    return [row for row in rows if row[1] in trained]


def _corrected_files(corrections: Path) -> Iterator[tuple[Path, str]]:
    """(file, class) of each image in a folder with one subfolder per class."""
    try:
        folders = sorted(folder for folder in corrections.iterdir() if folder.is_dir() and not is_hidden(folder.name))
    except OSError:
        return
    for folder in folders:
        label = unicodedata.normalize("NFC", folder.name)
        for file in sorted(folder.iterdir()):
            if file.is_file() and not is_hidden(file.name) and file.suffix.lower() in SUFFIXES:
                yield file, label


def compare_runs(before: Path, after: Path) -> tuple[Paired, ...]:
    """Compares two runs on the held-out images that both have predictions for, with the labels of the second.

    Args:
        before: the folder of a finished run (A).
        after: the folder of a finished run (B).
    """
    given = {row["path"]: row["predicted"] for row in _predictions(before)}
    sets: dict[str, list[tuple[bool, bool]]] = {}
    for row in _predictions(after):
        if row["path"] in given:
            right = given[row["path"]] == row["label"], row["predicted"] == row["label"]
            sets.setdefault(row["split"], []).append(right)
    return tuple(
        paired(name, np.array([first for first, _ in pairs]), np.array([second for _, second in pairs]))
        for name, pairs in sets.items()
    )


def _predictions(run: Path) -> list[dict[str, str]]:
    try:
        return [row for row in read_rows(run / "predictions.csv") if "label" in row]
    except OSError:
        return []


def change_sentence(change: Paired) -> str:
    """Accuracy before and after on one set, and whether the difference is significant."""
    verdict = "not significant" if change.p >= 0.05 else "significant"
    before, after = change.both + change.first, change.both + change.second
    return (
        f"{change.name} accuracy: before {count_text(before, change.count)}, after {count_text(after, change.count)}; "
        f"{100 * change.difference:+.1f} points, 95 % CI {100 * change.low:+.1f} to {100 * change.high:+.1f}, "
        f"p = {change.p:.2g}: {verdict}"
    )
