"""What happened in a run, one JSON document a line, and the same curves for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from pathlib import Path
from typing import Any, final

from headstart.errors import RunError

LOG_FILE = "log.jsonl"
BOARD = "tensorboard"


@final
class RunLog:
    """The log of a run.

    Args:
        folder: of the run.
        size: bytes of an earlier log that stand; what was written after them is dropped, because it is done again.
    """

    def __init__(self, folder: Path, *, size: int = 0) -> None:
        self.path = folder / LOG_FILE
        self._board_folder = folder / BOARD
        self._board: Any = None
        with self._named_errors(), open(self.path, "ab") as file:
            file.truncate(min(size, file.tell()))
        shutil.rmtree(self._board_folder, ignore_errors=True)
        for entry in read_log(folder):
            self._draw(entry)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size

    def event(self, kind: str, **fields: Any) -> None:
        """Appends one event.

        Raises:
            RunError: the disk is full, or the folder cannot be written.
        """
        entry = {"event": kind, "time": round(time.time(), 3), **fields}
        with self._named_errors(), open(self.path, "ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
        self._draw(entry)

    def close(self) -> None:
        """Writes out what TensorBoard's writer holds back."""
        if self._board is not None:
            self._board.close()

    def _draw(self, entry: dict[str, Any]) -> None:
        if entry.get("event") != "epoch":
            return
        if self._board is None:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self._board_folder))
        for name in ("loss", "log_loss", "accuracy"):
            if entry.get(name) is not None:
                self._board.add_scalar(f"{entry['rung']}/{name}", entry[name], entry["epoch"], entry["time"])

    @contextlib.contextmanager
    def _named_errors(self) -> Any:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror}). Free some space and go on with "
                f"headstart train --resume {self.path.parent}"
            ) from error


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
