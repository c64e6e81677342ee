"""Live status of a run: now.json, for pages that watch it, removed once the run has finished; and the run's lock.

An active run holds a lock on its folder. The operating system releases the lock when the process ends for any reason.
Thereby a killed run is distinguished from an active one, and two processes cannot work on the same run.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from filelock import FileLock, Timeout

from headstart.errors import RunError
from headstart.file_lock import lock_held
from headstart.files import json_text, remove_partials
from headstart.progress import call_repeatedly
from headstart.runs.events import Event

STATUS_FILE = "now.json"
LOCK_FILE = "lock"

BEAT = 1.0
"""Seconds between two writes while a task does not advance."""

WRITE_EVERY = 0.5
"""Seconds between two writes while a task advances, at least."""

MESSAGES = 40
"""Latest messages that the status holds."""

WAIT = 1.0
"""Seconds that a run waits for its lock: a page that watches holds it for an instant."""


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds the run's lock while it works; first removes what a killed process left half-written.

    Raises:
        RunError: another process is working on the run.
    """
    taken = RunError(f"{folder}: another process is working on this run. Wait for it, or stop it first.")
    with lock_held(folder / LOCK_FILE, taken, WAIT):
        with contextlib.suppress(OSError):
            remove_partials(folder)
        yield


def is_running(folder: Path) -> bool:
    """Whether a process is working on a run."""
    file = folder / LOCK_FILE
    if not file.exists():
        return False
    try:
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False


def remove_status(folder: Path) -> None:
    """Removes status and lock of a run that has finished."""
    for name in (STATUS_FILE, LOCK_FILE):
        with contextlib.suppress(OSError):
            (folder / name).unlink()


def read_status(folder: Path) -> dict[str, Any] | None:
    """The live status that was written last; None without one.

    Returns:
        ``time`` (seconds since 1970); ``task``, null or ``name``, ``done``, ``total``, ``unit`` and ``seconds`` since
        it began; ``left``, estimated seconds left of the run, null before there is a plan; ``said``, the latest
        messages, each with its time.
    """
    try:
        found: dict[str, Any] = json.loads((folder / STATUS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


@final
class LiveStatus:
    """Writes the live status of a run; a consumer of events.

    Args:
        folder: of the run. Nothing is written as long as it does not exist, and a full disk ends nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._messages: deque[tuple[float, str]] = deque(maxlen=MESSAGES)
        self._tasks: list[_RunningTask] = []
        self._left: tuple[float, float] | None = None  # seconds left of the run, and when that was estimated
        self._written = 0.0
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Consumes "message" and "progress": writes at most every ``WRITE_EVERY`` seconds while a task advances."""
        if event.kind == "message":
            self._messages.append((round(event.time, 3), event["text"]))
            self._write()
        elif event.kind == "progress":
            self._progress(event)

    def _progress(self, event: Event) -> None:
        if event["left"] is not None:
            self._left = event["left"], time.monotonic()
        if event["began"]:
            self._begin(_RunningTask(event["task"], event["total"], event["unit"], time.monotonic(), ExitStack()))
            return
        task = next((task for task in reversed(self._tasks) if task.name == event["task"]), None)
        if task is None:
            return
        task.done = event["done"]
        if event["ended"]:
            task.beat.close()
            self._tasks.remove(task)
            self._write()
        elif time.monotonic() - self._written >= WRITE_EVERY:
            self._write()

    def _begin(self, task: _RunningTask) -> None:
        self._tasks.append(task)
        self._write()
        task.beat.enter_context(call_repeatedly(lambda: self._beat(task), BEAT))

    def _beat(self, task: _RunningTask) -> None:
        if self._tasks[-1:] == [task]:
            self._write()

    def _write(self) -> None:
        """Without waiting for the disk: a lost status is worth no failure."""
        now = self._written = time.monotonic()
        task = self._tasks[-1].as_json(now) if self._tasks else None
        left = None if self._left is None else round(max(0.0, self._left[0] - (now - self._left[1])), 1)
        document = {"time": round(time.time(), 3), "task": task, "left": left, "said": list(self._messages)}
        partial = self._folder / f".{STATUS_FILE}.{os.getpid()}.partial"
        with contextlib.suppress(OSError), self._lock:
            partial.write_bytes(json_text(document).encode())
            os.replace(partial, self._folder / STATUS_FILE)


@dataclass(eq=False)
class _RunningTask:
    name: str
    total: int
    unit: str
    started: float
    beat: ExitStack
    done: int = 0

    def as_json(self, now: float) -> dict[str, Any]:
        seconds = round(now - self.started, 2)
        return {"name": self.name, "done": self.done, "total": self.total, "unit": self.unit, "seconds": seconds}
