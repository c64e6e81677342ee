"""What a run is at in this moment, beside its log: for whoever watches, and gone once the run has finished.

A run holds a lock on its folder while it works. The system lets go of it when the process ends, however it ends: so a
run that was killed is told from one that is at work, and no two processes go on with the same run.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from filelock import FileLock, Timeout

from headstart.errors import RunError
from headstart.files import json_text
from headstart.progress import Progress, call_repeatedly

NOW_FILE = "now.json"
LOCK_FILE = "lock"

BEAT = 1.0
"""Seconds between two writings where a task does not tell how far it is."""

NOTE_EVERY = 0.5
"""Seconds between two writings, at least."""

SAID = 40
"""Sentences that are kept."""

WAIT = 1.0
"""Seconds that a run waits for its lock: who watches holds it for an instant."""


@contextmanager
def under_way(folder: Path) -> Iterator[None]:
    """The time in which a run works.

    Raises:
        RunError: another process is at work on it.
    """
    lock = FileLock(folder / LOCK_FILE, timeout=WAIT)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"{folder}: another process is at work on this run. Wait for it, or stop it first.") from None
    except (OSError, NotImplementedError):  # a file system without locks: nobody can tell whether it is at work
        yield
        return
    try:
        yield
    finally:
        lock.release()


def is_under_way(folder: Path) -> bool:
    """Whether a process is at work on a run."""
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


def forget_now(folder: Path) -> None:
    """Removes what tells of the moment: the run has finished."""
    for name in (NOW_FILE, LOCK_FILE):
        with contextlib.suppress(OSError):
            (folder / name).unlink()


def read_now(folder: Path) -> dict[str, Any] | None:
    """What was last written: ``time`` (seconds since 1970), ``task``, ``left``, ``said``; None where there is nothing.

    ``task`` is null, or holds ``name``, ``done``, ``total``, ``unit``, and ``seconds`` since it began. ``left`` are the
    seconds that are left of the run, null before there is a plan. ``said`` are the last sentences, each with its time.
    """
    try:
        found: dict[str, Any] = json.loads((folder / NOW_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


@final
class Noted:
    """A ``Progress`` that writes down what it is told, and hands it on.

    Args:
        folder: of the run.
        also: told as well.

    Attributes:
        left: gives the seconds that are left of the run, once there is a plan.
    """

    left: Callable[[], float] | None = None

    def __init__(self, folder: Path, also: Progress) -> None:
        self._folder, self._also = folder, also
        self._said: deque[tuple[float, str]] = deque(maxlen=SAID)
        self._task: dict[str, Any] | None = None
        self._written = 0.0
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Keeps the sentence among the last ones."""
        self._also.say(text)
        self._said.append((round(time.time(), 3), text))
        self._write()

    @contextmanager
    def task(self, name: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """Writes how far it is, twice a second at most, and every second where it does not tell."""
        outer, started = self._task, time.monotonic()
        own: dict[str, Any] = {"name": name, "done": 0, "total": total, "unit": unit, "seconds": 0.0}
        self._task = own
        self._write()

        def beat() -> None:
            own["seconds"] = round(time.monotonic() - started, 2)
            if self._task is own:
                self._write()

        try:
            with self._also.task(name, total, unit) as also, call_repeatedly(beat, BEAT):

                def advance(count: int) -> None:
                    also(count)
                    own["done"] += count
                    own["seconds"] = round(time.monotonic() - started, 2)
                    if time.monotonic() - self._written >= NOTE_EVERY:
                        self._write()

                yield advance
        finally:
            self._task = outer
            self._write()

    def _write(self) -> None:
        """Without waiting for the disk: it is for the moment, and worth no failure."""
        self._written = time.monotonic()
        left = None if self.left is None else round(self.left(), 1)
        document = {"time": round(time.time(), 3), "task": self._task, "left": left, "said": list(self._said)}
        partial = self._folder / f".{NOW_FILE}.{os.getpid()}.partial"
        with contextlib.suppress(OSError), self._lock:
            partial.write_bytes(json_text(document).encode())
            os.replace(partial, self._folder / NOW_FILE)
