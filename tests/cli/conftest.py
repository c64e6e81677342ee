"""A small data set, and a run trained on it once by the command in a separate process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from random_images import write_classes


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("cli") / "colours", {"blue": 30, "red": 30})


@pytest.fixture(scope="session")
def trained(data: Path, headstart) -> tuple[Path, str, str]:
    """Run folder, stdout and stderr. Network access is blocked: the default backbone works offline."""
    guard = data.parent / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(
        "import os, socket\n"
        "def refuse(*a, **k): raise SystemExit('the network was asked for')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse; socket.create_connection = refuse\n"
        "open(os.path.join(os.path.dirname(__file__), 'stood'), 'w').close()\n"
    )
    path = os.pathsep.join(filter(None, [str(guard), os.environ.get("PYTHONPATH")]))
    out = data.parent / "run"
    done = headstart("train", data, "--out", out, "--image-size", 64, "--device", "cpu", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    return out, done.stdout, done.stderr


@pytest.fixture(scope="session")
def run(trained: tuple[Path, str, str]) -> Path:
    return trained[0]
