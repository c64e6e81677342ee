"""What happens in a run: events, told to a listener while they happen and kept, a JSON document a line.

The curves are written for TensorBoard as well.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from headstart.errors import WriteError
from headstart.extras import is_installed
from headstart.files import json_text, writing_run

LOG_FILE = "log.jsonl"
BOARD = "tensorboard"
CURVES = {"epoch": ("loss", "accuracy"), "validation": ("log_loss", "accuracy")}
"""Kind of event -> the figures in it that make curves."""


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    ``event["loss"]`` is ``event.fields["loss"]``. Kinds, and their fields:

    - "images": the data were read; ``run`` (the folder), ``counts`` (split -> class -> images), ``findings`` (number).
    - "findings": what the data check found so far, all of it; ``found`` (of each kind, severity, message, number of
      cases, and path and words of the first cases' images). Told again once the labels were checked.
    - "engine": ``exact`` and ``fast``, what runs the frozen part and why.
    - "plan": ``text``, a line of what is going to be done.
    - "stage": what is trained from here on, or, of a classifier on frozen features, what was; ``stage`` (its name,
      "probe", "behind blocks.4"), ``trainable``, ``frozen`` and ``statistics`` (numbers of weights, and of BatchNorm's
      statistics), ``learns_statistics``, ``layers`` (of each group: name, weights, and how many of them are trained).
    - "step": ``stage``, ``step`` (from 1), ``steps``, ``epoch`` (from 0), ``loss``, ``lr`` (of the head). Not kept.
    - "epoch": ``stage``, ``epoch``, ``loss`` and ``accuracy`` on the training images as they were shown, mixed and
      augmented, while the model learnt.
    - "validation": ``stage``, ``epoch``, ``accuracy``, ``correct`` and ``log_loss`` of the averaged weights.
    - "checkpoint": ``stage``, ``step``, ``file``: a stop from here on loses nothing before it.
    - "mistakes": of a stage, on val; ``stage``, ``count``, ``of`` (images), ``items`` (of the surest: path, right
      label, given label).
    - "rung": a stage was judged; the attributes of ``training.ladder.RungResult``.
    - "finished": everything is on disk; ``run``, ``best`` (the stage that was kept), ``scores``, ``seconds``.
    - "message" (``text``) and "progress" (``task``, ``done``, ``total``, ``unit``): from ``train_events`` alone. Not
      kept.

    Attributes:
        kind: see above.
        time: seconds since 1970.
        fields: what is known of it, a JSON document.
    """

    kind: str
    time: float
    fields: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


Listener = Callable[[Event], None]


@final
class RunLog:
    """The log of a run.

    Args:
        folder: of the run.
        size: bytes of an earlier log that stand; what was written after them is dropped, because it is done again.
        listener: told of each event.
    """

    def __init__(self, folder: Path, *, size: int = 0, listener: Listener | None = None) -> None:
        self._folder, self.path = folder, folder / LOG_FILE
        self._listener = listener
        self._board_folder = folder / BOARD
        self._board: Any = None
        with writing_run(self._folder, self.path), open(self.path, "ab") as file:
            file.truncate(min(size, file.tell()))
        shutil.rmtree(self._board_folder, ignore_errors=True)
        for entry in read_log(folder):
            self._draw(entry)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size

    def event(self, kind: str, **fields: Any) -> None:
        """Appends one event, and tells the listener.

        Raises:
            WriteError: the disk is full, or the folder cannot be written.
        """
        self._draw(self._append(kind, fields))
        self.tell(kind, **fields)

    def _append(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        entry = {"event": kind, "time": round(time.time(), 3), **fields}
        with writing_run(self._folder, self.path), open(self.path, "ab") as file:
            file.write(json_text(entry).encode() + b"\n")
        return entry

    def epoch(self, stage: str, entry: dict[str, float], count: int) -> None:
        """The events of a finished epoch.

        Args:
            stage: its name.
            entry: see ``training.finetune.Progressed``.
            count: validation images.

        Raises:
            WriteError: see ``event``.
        """
        number = int(entry["epoch"])
        self.event("epoch", stage=stage, epoch=number, loss=entry["loss"], accuracy=entry["accuracy"])
        if "correct" in entry:
            right = int(entry["correct"])
            figures = {"accuracy": right / max(1, count), "correct": right, "log_loss": entry["log_loss"]}
            self.event("validation", stage=stage, epoch=number, **figures)

    def tell(self, kind: str, **fields: Any) -> None:
        """Tells the listener of an event that is not kept."""
        if self._listener is not None:
            self._listener(Event(kind, time.time(), fields))

    def finish(self, **fields: Any) -> None:
        """The last event, "finished", once everything else is on disk; the run is complete even if this is not kept."""
        with contextlib.suppress(WriteError):
            self._append("finished", fields)
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()
        self.tell("finished", **fields)

    def _draw(self, entry: dict[str, Any]) -> None:
        """Curves for TensorBoard, if the extra is installed. A full disk does not end the run for them."""
        if entry.get("event") in CURVES and is_installed("tensorboard"):
            with contextlib.suppress(OSError):
                self._add_curves(entry)

    def _add_curves(self, entry: dict[str, Any]) -> None:
        if self._board is None:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self._board_folder))
        part = "train" if entry["event"] == "epoch" else "val"
        for name in CURVES[entry["event"]]:
            self._board.add_scalar(f"{entry['stage']}/{part} {name}", entry[name], entry["epoch"], entry["time"])


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The events of a run so far; a last line that was cut off by a kill is left aside."""
    path = folder / LOG_FILE
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    return entries
