"""A run that several processes fine-tune: a worker is killed in the middle, and the run is resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from child_processes import workers_of
from random_images import mislabel, write_classes

pytestmark = pytest.mark.exhaustive

OPTIONS = ("--unfreeze", "blocks.6", "--epochs", "30", "--views", "1", "--image-size", "64", "--layers", "last")


def begun(*arguments: object) -> subprocess.Popen[str]:
    """The command in a separate process, whose cache is that of the test session."""
    words = [sys.executable, "-m", "headstart", "train", *map(str, arguments)]
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )


def until_there(file: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not file.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "no checkpoint was written"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the workers in /proc")
def test_a_run_that_was_stopped_in_the_middle_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    data = mislabel(write_classes(tmp_path / "data", {"a": 60, "b": 60}), "a", "b", 40)
    whole = begun(data, "--workers", 2, "--out", tmp_path / "whole", *OPTIONS)
    out, _ = whole.communicate(timeout=500)
    assert whole.returncode == 0, out
    assert "Fine-tuning by 2 workers" in out

    run = tmp_path / "killed"
    killed = begun(data, "--workers", 2, "--out", run, *OPTIONS)
    until_there(run / "checkpoints" / "current.safetensors", killed)
    os.kill(workers_of(killed.pid)[-1], signal.SIGKILL)
    out, _ = killed.communicate(timeout=300)
    assert killed.returncode == 1, out
    assert "a worker process was lost" in out
    assert f"headstart train --resume {run}" in out
    assert "Traceback" not in out
    assert not workers_of(killed.pid)

    interrupted = begun("--resume", run, "--workers", 2)
    end = time.monotonic() + 300
    while not workers_of(interrupted.pid):
        assert interrupted.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    interrupted.send_signal(signal.SIGINT)
    out, _ = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130, out
    assert f"To resume this run: headstart train --resume {run}" in out
    assert "Traceback" not in out
    assert not workers_of(interrupted.pid)

    again = begun("--resume", run, "--workers", 2)
    out, _ = again.communicate(timeout=500)
    assert again.returncode == 0, out
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
