"""The photographs, by path, and what a timed command gives."""

from __future__ import annotations

import os
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


def photographs(name: str) -> Path:
    """A folder of the real data; the test that asks for it is skipped where it is absent."""
    if not (DATA / name).is_dir():
        pytest.skip(f"no photographs at {DATA / name} (set HEADSTART_DATA)")
    return DATA / name
