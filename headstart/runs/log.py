"""log.jsonl: the events of a run, a JSON document a line."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, final

from headstart.errors import WriteError
from headstart.files import json_text, writing_run
from headstart.runs.events import Event

LOG_FILE = "log.jsonl"


@final
class RunLog:
    """Writes the log; a consumer of events.

    Args:
        folder: of the run.
        size: bytes of an earlier log that stay; what was written after them is dropped, because it is done again.

    Raises:
        WriteError: the folder cannot be written.
    """

    def __init__(self, folder: Path, *, size: int = 0) -> None:
        self._folder, self.path = folder, folder / LOG_FILE
        with writing_run(self._folder, self.path), open(self.path, "ab") as file:
            file.truncate(min(size, file.tell()))

    def __call__(self, event: Event) -> None:
        """Appends one event.

        Raises:
            WriteError: the disk is full, or the folder cannot be written. A run is complete even if its last event
                cannot be written.
        """
        if not event.is_logged:
            return
        with contextlib.suppress(WriteError) if event.kind == "finished" else contextlib.nullcontext():
            self._append({"event": event.kind, "time": round(event.time, 3), **event.fields})

    def _append(self, entry: dict[str, Any]) -> None:
        with writing_run(self._folder, self.path), open(self.path, "ab") as file:
            file.write(json_text(entry).encode() + b"\n")


def log_size(folder: Path) -> int:
    """Size of the log of a run in bytes; 0 without a log."""
    path = folder / LOG_FILE
    return path.stat().st_size if path.is_file() else 0


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The logged events of a run so far; a last line that was cut off by a kill is skipped."""
    path = folder / LOG_FILE
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    return entries
