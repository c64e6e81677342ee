"""Training on the labels table in a child process, so that the page stays responsive and a crash loses no label."""

from __future__ import annotations

import glob
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, final

from headstart.errors import OptionError
from headstart.runs.folder import next_free
from headstart.serve.watch.run_reader import RunReader

COMMAND: Final = (sys.executable, "-m", "headstart", "train")

STOP_SECONDS: Final = 20.0
"""Seconds for a training to write its last state when the server ends."""

MESSAGE_LENGTH: Final = 600
"""Maximum length of an error message of the training, in characters."""


def session_name(labels_file: Path) -> str:
    """Name of a session: that of its labels table, without "-labels"."""
    return labels_file.stem.removesuffix("-labels") or labels_file.stem


@final
class TrainingProcess:
    """Runs ``headstart train`` on a labels table, one run at a time.

    Args:
        labels_file: the labels table. Runs are written beside it: NAME-run, NAME-run-2 and so on.
        options: further options of ``headstart train``.
    """

    def __init__(self, labels_file: Path, options: Sequence[str] = ()) -> None:
        self.labels_file, self.options = labels_file, tuple(options)
        self._process: subprocess.Popen[bytes] | None = None
        self._message = ""
        self._stderr: list[bytes] = []
        self._collector: threading.Thread | None = None
        self._lock = threading.Lock()
        found = self._last_finished()
        self.reader = None if found is None else self._reader(found)

    def _reader(self, folder: Path) -> RunReader:
        return RunReader(folder, expected=self.is_running)

    def _base(self) -> Path:
        return self.labels_file.with_name(f"{session_name(self.labels_file)}-run")

    def _last_finished(self) -> Path | None:
        base = self._base()
        finished = [file.parent for file in base.parent.glob(f"{glob.escape(base.name)}*/run.json")]
        return max(finished, key=lambda folder: (folder / "run.json").stat().st_mtime, default=None)

    def is_running(self) -> bool:
        """Whether the child process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Path:
        """Starts a run.

        Returns:
            Its folder.

        Raises:
            OptionError: a run is in progress.
        """
        with self._lock:
            if self.is_running():
                raise OptionError("A training is in progress. Wait until it has finished.")
            folder = next_free(self._base())
            # A new session: Ctrl-C reaches the server, which then stops the training in an orderly way.
            self._process = subprocess.Popen(
                [*COMMAND, str(self.labels_file), "--out", str(folder), *self.options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            self._stderr = []
            self._collector = threading.Thread(target=self._collect, args=(self._process, self._stderr), daemon=True)
            self._collector.start()
            self.reader = self._reader(folder)
            return folder

    def _collect(self, process: subprocess.Popen[bytes], lines: list[bytes]) -> None:
        """Keeps the last lines of the child's messages, one of which is its error."""
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            del lines[:-20]

    def stop(self) -> Path | None:
        """Stops a run as Ctrl-C does, and returns the folder of the stopped run."""
        process = self._process
        if process is None or process.poll() is not None or self.reader is None:
            return None
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return self.reader.folder

    def state(self) -> dict[str, Any]:
        """State of the last run: none, running, finished or failed, with its folder and files."""
        reader = self.reader
        if reader is None:
            return {"state": "none", "run": None, "watch": None, "report": None, "message": ""}
        finished = (reader.folder / "run.json").is_file()
        state = "running" if self.is_running() else "finished" if finished else "failed"
        return {
            "state": state,
            "run": str(reader.folder),
            "watch": "watch",
            "report": "watch/report" if finished else None,
            "message": self._failure() if state == "failed" else "",
        }

    def _failure(self) -> str:
        if self._collector is not None:
            self._collector.join(1.0)
        lines = [line.decode(errors="replace").strip() for line in self._stderr]
        errors = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
        text = errors[-1] if errors else next((line for line in reversed(lines) if line), "")
        status = None if self._process is None else self._process.returncode
        return text[:MESSAGE_LENGTH] or f"The training ended with exit status {status}."
