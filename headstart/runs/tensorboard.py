"""TensorBoard: the curves of a run as event files."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any, final

from headstart.concurrency import start_method_kept
from headstart.extras import is_installed
from headstart.import_effects import restored_after_import
from headstart.runs.events import Event
from headstart.runs.log import read_log

BOARD_FOLDER = "tensorboard"
CURVES = {"epoch": ("loss", "accuracy"), "validation": ("log_loss", "accuracy")}
"""Kind of event -> the figures in it that are drawn."""


@final
class TensorBoardWriter:
    """Event consumer that writes TensorBoard curves if the extra is installed. Write errors do not stop the run.

    Args:
        folder: the run folder; curves of an interrupted run are written again from its log.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / BOARD_FOLDER
        self._writer: Any = None
        shutil.rmtree(self._folder, ignore_errors=True)
        for entry in read_log(folder):
            self(Event(entry.get("event", ""), entry.get("time", 0.0), entry))

    def __call__(self, event: Event) -> None:
        """Consumes "epoch", "validation" and "finished"."""
        with contextlib.suppress(OSError):
            if event.kind in CURVES and is_installed("tensorboard"):
                self._draw(event)
            elif event.kind == "finished" and self._writer is not None:
                self._writer.close()

    def _draw(self, event: Event) -> None:
        if self._writer is None:
            with restored_after_import():
                from tensorboardX import SummaryWriter

            with start_method_kept():
                self._writer = SummaryWriter(str(self._folder))
        part = "train" if event.kind == "epoch" else "val"
        for name in CURVES[event.kind]:
            self._writer.add_scalar(f"{event['stage']}/{part} {name}", event[name], event["epoch"], event.time)
