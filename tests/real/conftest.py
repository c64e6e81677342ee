"""The photographs, by path; and fresh caches, so that what is timed is timed cold."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

DATA = Path(os.environ.get("HEADSTART_DATA", Path(__file__).parents[3] / "shared" / "data"))


@dataclass(frozen=True)
class Timed:
    """A finished command: what it printed, and the seconds from start to end."""

    status: int
    out: str
    err: str
    seconds: float


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["HEADSTART_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def command() -> Callable[..., Timed]:
    """Runs the headstart command in a process of its own."""

    def run(*arguments: object) -> Timed:
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "headstart", *map(str, arguments)], capture_output=True, text=True, check=False
        )
        return Timed(done.returncode, done.stdout, done.stderr, time.perf_counter() - started)

    return run


def photographs(name: str) -> Path:
    """A folder of the real data; the test that asks for it is skipped where it is absent."""
    if not (DATA / name).is_dir():
        pytest.skip(f"no photographs at {DATA / name} (set HEADSTART_DATA)")
    return DATA / name
