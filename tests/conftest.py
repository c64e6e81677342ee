"""Small real files on disk, and a cache of their own for the whole session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (40, 170, 60), "red": (200, 50, 40)}


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["HEADSTART_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["HF_HOME"] = str(tmp_path_factory.mktemp("hub"))


def picture(seed: int, colour: tuple[int, int, int] = (120, 120, 120), size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A coloured picture with eight large random patches: no two seeds are near-identical."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(-110, 110, (6, 6, 3)) + np.array(colour)
    small = Image.fromarray(patches.clip(0, 255).astype(np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def write_classes(folder: Path, counts: dict[str, int], *, first_seed: int = 0) -> Path:
    """``folder/<class>/<n>.png``; classes of one of the names in COLOURS have that colour."""
    seed = first_seed
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            colour = COLOURS.get(name, list(COLOURS.values())[number % 3])
            picture(seed, colour).save(folder / name / f"{i}.png")
            seed += 1
    return folder


@pytest.fixture
def three_colours(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "colours", {"blue": 24, "green": 24, "red": 24})


@pytest.fixture(scope="session")
def headstart() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command as its user would: in a process of its own."""

    def run(*arguments: object, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "headstart", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=os.environ | environment,
            check=False,
        )

    return run
