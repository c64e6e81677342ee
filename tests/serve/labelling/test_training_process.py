"""Training in a child process: its states, its error and its end."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from labelling import wait_for

from headstart.errors import OptionError
from headstart.serve.labelling import training_process
from headstart.serve.labelling.training_process import TrainingProcess


def child(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(training_process, "COMMAND", (sys.executable, "-c", script))


WRITES = "import sys, pathlib; f = pathlib.Path(sys.argv[3]); f.mkdir(); (f / 'run.json').write_text('{}')"
FAILS = "import sys; print('Reading', file=sys.stderr); sys.exit('Error: label more images.')"
WAITS = "import time, pathlib; pathlib.Path('{0}').touch(); time.sleep(60)"


def test_a_run_is_written_beside_the_table_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child(monkeypatch, WRITES)
    training = TrainingProcess(tmp_path / "flowers-labels.csv", ["--minutes", "1"])
    assert training.state()["state"] == "none"
    assert training.start() == tmp_path / "flowers-run"
    wait_for(lambda: training.state()["state"] == "finished")
    assert training.state()["report"] == "watch/report"
    again = TrainingProcess(tmp_path / "flowers-labels.csv")
    assert again.state()["run"] == str(tmp_path / "flowers-run")
    assert again.start() == tmp_path / "flowers-run-2"
    wait_for(lambda: again.state()["state"] == "finished")


def test_the_error_of_a_failed_run_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child(monkeypatch, FAILS)
    training = TrainingProcess(tmp_path / "a-labels.csv")
    training.start()
    wait_for(lambda: training.state()["state"] == "failed")
    assert training.state()["message"] == "label more images."
    child(monkeypatch, "raise SystemExit(3)")
    training.start()
    wait_for(lambda: training.state()["state"] == "failed")
    assert training.state()["message"] == "The training ended with exit status 3."


def test_one_run_at_a_time_and_a_stop_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = tmp_path / "begun"
    child(monkeypatch, WAITS.format(begun))
    training = TrainingProcess(tmp_path / "a-labels.csv")
    folder = training.start()
    wait_for(begun.exists)
    with pytest.raises(OptionError, match="in progress"):
        training.start()
    started = time.monotonic()
    assert training.stop() == folder
    assert time.monotonic() - started < 10
    assert training.stop() is None
