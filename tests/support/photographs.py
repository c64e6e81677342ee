"""Paths of the photographs, and results of timed commands."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

DATA = Path(os.environ.get("HEADSTART_DATA", Path(__file__).parents[3] / "shared" / "data"))


@dataclass(frozen=True)
class Timed:
    """A finished command: its output and duration in seconds."""

    status: int
    out: str
    err: str
    seconds: float


def photographs(name: str) -> Path:
    """A folder of the real data; skips the test if it does not exist."""
    if not (DATA / name).is_dir():
        pytest.skip(f"no photographs at {DATA / name} (set HEADSTART_DATA)")
    return DATA / name
