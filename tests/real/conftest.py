"""Fresh caches, so that what is timed is timed cold; what HEADSTART_TEST_CACHE names is shared by several sessions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from filelock import FileLock
from photographs import Timed, photographs


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    given = os.environ.get("HEADSTART_TEST_CACHE")
    os.environ["HEADSTART_CACHE"] = str(Path(given) / "cache") if given else str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def low_precision() -> None:
    """What the processor has is used here."""


@pytest.fixture(scope="session", autouse=True)
def plain_engine() -> None:
    """Engines are chosen as they are for users."""


@pytest.fixture(scope="session")
def command() -> Callable[..., Timed]:
    """Runs the headstart command in a separate process."""

    def run(*arguments: object) -> Timed:
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "headstart", *map(str, arguments)], capture_output=True, text=True, check=False
        )
        return Timed(done.returncode, done.stdout, done.stderr, time.perf_counter() - started)

    return run


@pytest.fixture(scope="session")
def flowers(command: Callable[..., Timed], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, Timed]:
    """A run on flowers with nothing chosen: its folder, its figures by split, and the command.

    Made once, by the session that comes first: those with a clock.
    """
    given = os.environ.get("HEADSTART_TEST_CACHE")
    home = Path(given) / "flowers" if given else tmp_path_factory.mktemp("flowers")
    home.mkdir(exist_ok=True)
    with FileLock(home / "lock"):
        if not (home / "command.json").exists():
            done = command("train", photographs("flowers"), "--effort", "probe", "--out", home / "run", "--json")
            assert done.status == 0, done.err
            assert "Calibrated on 550 validation images" in done.err
            (home / "command.json").write_text(json.dumps(asdict(done)))
    done = Timed(**json.loads((home / "command.json").read_text()))
    return home / "run", json.loads(done.out)["scores"], done


@pytest.fixture(scope="session")
def flowers_run(flowers: tuple[Path, dict, Timed]) -> Path:
    """Its folder."""
    return flowers[0]
