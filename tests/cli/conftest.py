"""A small data set, and a run trained on it once by the command in a separate process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from random_images import write_classes
from shared import shared_folder


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, headstart) -> Path:
    """Data, the run on them, and what the command printed. Network access is blocked: the default works offline."""

    def fill(folder: Path) -> None:
        data = write_classes(folder / "colours", {"blue": 30, "red": 30})
        guard = folder / "guard"
        guard.mkdir()
        (guard / "sitecustomize.py").write_text(
            "import os, socket\n"
            "def refuse(*a, **k): raise SystemExit('the network was asked for')\n"
            "socket.socket.connect = refuse; socket.getaddrinfo = refuse; socket.create_connection = refuse\n"
            "open(os.path.join(os.path.dirname(__file__), 'stood'), 'w').close()\n"
        )
        path = os.pathsep.join(filter(None, [str(guard), os.environ.get("PYTHONPATH")]))
        options = ("--image-size", 64, "--device", "cpu")
        done = headstart("train", data, "--out", folder / "run", *options, PYTHONPATH=path)
        assert done.returncode == 0, done.stderr
        (folder / "stdout").write_text(done.stdout)
        (folder / "stderr").write_text(done.stderr)

    return shared_folder(tmp_path_factory, "cli", fill)


@pytest.fixture(scope="session")
def data(shared: Path) -> Path:
    return shared / "colours"


@pytest.fixture(scope="session")
def trained(shared: Path) -> tuple[Path, str, str]:
    """Run folder, stdout and stderr."""
    return shared / "run", (shared / "stdout").read_text(), (shared / "stderr").read_text()


@pytest.fixture(scope="session")
def run(trained: tuple[Path, str, str]) -> Path:
    return trained[0]
