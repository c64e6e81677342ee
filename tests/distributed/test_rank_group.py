"""Ranks in processes of this machine and on a Ray cluster: called at once, and ended together."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest
from thread_ranks import Adder

from headstart.concurrency import usable_cpus
from headstart.distributed.rank_group import LocalRanks, RankGroup, RankSettings, RayRanks
from headstart.errors import DataError, WorkerError

pytestmark = pytest.mark.exhaustive

Start = Callable[[], RankGroup]


@pytest.fixture(params=["processes", "ray"])
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    path = os.pathsep.join(path for path in (os.path.dirname(__file__), os.path.join("tests", "support")))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.abspath("tests/support"), os.getcwd(), path]))
    groups: list[RankGroup] = []

    def started() -> RankGroup:
        groups.append(LocalRanks(Adder, 2, "cpu") if request.param == "processes" else RayRanks(Adder, 2, "cpu"))
        return groups[-1]

    yield started
    for group in groups:
        group.close()


def test_ranks_add_up_and_an_error_of_one_ends_all(start: Start) -> None:
    group = start()
    assert group.call("total", 1) == [[3.0, 20.0]] * 2
    assert group.call("total", 5) == [[11.0, 20.0]] * 2
    began = time.monotonic()
    with pytest.raises(DataError, match="no such image"):
        group.call("fail", 1)
    assert time.monotonic() - began < 30


def test_a_rank_that_is_killed_is_an_error_at_once(start: Start) -> None:
    group = start()
    began = time.monotonic()
    with pytest.raises(WorkerError, match="a worker process was lost while it trained"):
        group.call("die", 0)
    assert time.monotonic() - began < 60


def test_a_member_that_cannot_be_made_says_why() -> None:
    with pytest.raises(TypeError):
        LocalRanks(int, 2, "cpu")
    assert usable_cpus() >= 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (RankSettings(), False),
        (RankSettings(1), False),
        (RankSettings(2), True),
        (RankSettings(ray="local"), True),
        (RankSettings(1, "auto"), True),
    ],
)
def test_more_than_this_process_is_parallel(settings: RankSettings, expected: bool) -> None:
    assert settings.is_parallel is expected
