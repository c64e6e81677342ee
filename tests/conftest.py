"""Shared fixtures: a temporary cache per session, small data sets, and the command in a new process."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from random_images import write_classes

from headstart.deferred_compiler import defer_compiler

defer_compiler()  # as the command does


LONG_TESTS = "exhaustive", "share"
"""Markers of tests that are shared out; with ``-m slow`` the slow tests are as well."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """HEADSTART_SHARE=k/n selects every n-th long test, starting with the k-th, modules in another order for each k."""
    share = os.environ.get("HEADSTART_SHARE")
    if not share:
        return
    first, step = map(int, share.split("/"))
    markers = [*LONG_TESTS, *(["slow"] if config.option.markexpr.startswith("slow") else [])]
    long = [item for item in items if any(item.get_closest_marker(name) for name in markers)]
    chosen = long[first % step :: step]
    left = set(long) - set(chosen)
    config.hook.pytest_deselected(items=list(left))
    modules = sorted({item.path for item in chosen})
    random.Random(first).shuffle(modules)
    chosen.sort(key=lambda item: modules.index(item.path))
    items[:] = [item for item in items if item not in left and item not in chosen] + chosen


def pytest_collection_finish() -> None:
    """Excludes imported objects from garbage collection, which otherwise takes a tenth of the total time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """HEADSTART_SECONDS=s begins no slow or long test later than s seconds after the first one in this process."""
    seconds = os.environ.get("HEADSTART_SECONDS")
    if seconds and any(item.get_closest_marker(name) for name in (*LONG_TESTS, "slow")):
        now = time.monotonic()
        if now - item.config.stash.setdefault(BEGIN, now) > float(seconds):
            pytest.skip(f"the {seconds} seconds for long tests are over")


BEGIN = pytest.StashKey[float]()
"""When the first slow or long test of this process began."""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["HEADSTART_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["HF_HOME"] = str(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="session", autouse=True)
def low_precision() -> Iterator[None]:
    """Disables bfloat16 in this process, as on processors without it; tests of low precision enable it.

    Otherwise each data set calibrates low precision, which takes a second for each of some hundred runs.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headstart.engine.candidates.has_fast_bfloat16", lambda _device: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def default_minutes() -> Iterator[float | None]:
    """Runs in this process whose recipe leaves the effort open fit a probe, without a choice within a time.

    The choice loads three backbones. Gives the usual number of minutes.
    """
    from headstart.pipeline import choose_recipe

    usual = choose_recipe.DEFAULT_MINUTES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose_recipe, "DEFAULT_MINUTES", None)
        yield usual


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """Files of tests need not survive a power failure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _file: None)
        yield


def _choose_engines_from(count: int, patch: pytest.MonkeyPatch) -> None:
    for module in ("measure", "select"):
        patch.setattr(f"headstart.engine.{module}.MEASURE_FROM", count)


@pytest.fixture(scope="session", autouse=True)
def plain_engine() -> Iterator[int]:
    """Runs in this process compute by plain PyTorch, as those on fewer than 32 images do; ``all_engines`` ends that.

    To build another engine takes a third of a run on images as small as those of the tests. Gives the usual number of
    images from which on another engine is built.
    """
    from headstart.engine.measure import MEASURE_FROM

    with pytest.MonkeyPatch.context() as patch:
        _choose_engines_from(1_000_000, patch)
        yield MEASURE_FROM


@pytest.fixture
def all_engines(plain_engine: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are chosen as they are for users: from ``MEASURE_FROM`` images on the preferred that is exact enough.

    Their speeds, which decide nothing, are measured once instead of three times.
    """
    monkeypatch.setattr("headstart.engine.measure.ROUNDS", 1)
    _choose_engines_from(plain_engine, monkeypatch)


@pytest.fixture(scope="module")
def small_networks(request: pytest.FixtureRequest) -> Iterator[None]:
    """For modules that test runs and not accuracy: the default backbone and others are small, with random weights.

    The long tests train the real networks.
    """
    if request.config.option.markexpr == "exhaustive":
        yield
        return
    from small_architectures import small_architectures

    with small_architectures():
        yield


@pytest.fixture
def three_colours(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "colours", {"blue": 24, "green": 24, "red": 24})


@pytest.fixture(scope="session")
def headstart() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command in a new process."""

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
