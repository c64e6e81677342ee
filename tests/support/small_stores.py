"""Small stores in a cache of their own, and a disk of known size."""

from __future__ import annotations

import json
import os
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from headstart.cache.entries import cache_entries
from headstart.cache.keys import content_key
from headstart.cache.row_store import RowStore
from headstart.cache.sealed_document import seal_document

Disk = namedtuple("Disk", "total used free")

HOUR = 3600.0

ROW = 10_000


def keys(*numbers: int) -> list[bytes]:
    return [content_key(str(n).encode()) for n in numbers]


def rows(*numbers: int) -> np.ndarray:
    return np.array([np.full(ROW, n) for n in numbers], dtype=np.uint8)


def open_store(root: Path, name: str = "a", kind: str = "test") -> RowStore:
    return RowStore(kind, {"architecture": name}, dtype=np.uint8, shape=(ROW,), root=root)


def fill(root: Path, name: str, *, hours: float, count: int = 1, kind: str = "test") -> Path:
    """A closed store of so many rows of 10 kB, last used so many hours ago."""
    made = open_store(root, name, kind)
    made.append(keys(*range(count)), rows(*range(count)))
    age(made.folder, hours)
    return made.folder


def age(folder: Path, hours: float) -> None:
    then = time.time() - hours * HOUR
    os.utime(folder / "used", (then, then))


def names(root: Path) -> list[str]:
    return [entry.about["architecture"] for entry in cache_entries(root)]


def limit(monkeypatch: pytest.MonkeyPatch, kilobytes: float) -> None:
    monkeypatch.setenv("HEADSTART_CACHE_LIMIT", repr(kilobytes / 1e6))


def write_plan_file(file: Path) -> Path:
    means = {"conv": np.arange(6000, dtype=np.float64)}
    told = {"about": json.dumps({"architecture": "resnet18"}), "plan": "{}"}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(save(means, told | {"digest": seal_document(save(means, told))}))
    return file


def simulate_disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A disk of 1000 GB, all of it free, and no limit of the cache; a test may change the bytes "total" and "free"."""
    state = {"total": 1e12, "free": 1e12}
    monkeypatch.setattr(
        "headstart.cache.budget.shutil.disk_usage",
        lambda _: Disk(int(state["total"]), int(state["total"] - state["free"]), int(state["free"])),
    )
    monkeypatch.delenv("HEADSTART_CACHE_LIMIT", raising=False)
    return state
