"""Ranks in processes of this machine and on a Ray cluster: called at once, and ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from child_processes import workers_of
from thread_ranks import Adder

from headstart.concurrency import usable_cpus
from headstart.distributed.rank_group import (
    EFFICIENCY,
    START_SECONDS,
    LocalRanks,
    RankGroup,
    RankSettings,
    RayRanks,
    check_ranks,
)
from headstart.errors import DataError, OptionError, WorkerError

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


@pytest.mark.exhaustive
def test_ranks_add_up_and_an_error_of_one_ends_all(start: Start) -> None:
    group = start()
    assert group.call("total", 1) == [[3.0, 20.0]] * 2
    assert group.call("total", 5) == [[11.0, 20.0]] * 2
    began = time.monotonic()
    with pytest.raises(DataError, match="no such image"):
        group.call("fail", 1)
    assert time.monotonic() - began < 30


@pytest.mark.exhaustive
def test_a_rank_that_is_killed_is_an_error_at_once(start: Start) -> None:
    group = start()
    began = time.monotonic()
    with pytest.raises(WorkerError, match="a worker process was lost while it trained"):
        group.call("die", 0)
    assert time.monotonic() - began < 60


@pytest.mark.exhaustive
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


@pytest.mark.parametrize(
    ("settings", "gpus", "expected"),
    [
        (RankSettings(), 4, 73.0),
        (RankSettings(2), 0, 73.0 / EFFICIENCY + START_SECONDS),  # the processors are shared
        (RankSettings(4), 4, 73.0 / EFFICIENCY / 4 + START_SECONDS),
        (RankSettings(4), 2, 73.0 / EFFICIENCY / 2 + START_SECONDS),
        (RankSettings(ray="auto"), 4, 73.0 / EFFICIENCY + START_SECONDS),  # its speed is not known yet
    ],
)
def test_expected_seconds_count_gpus_and_not_workers(
    settings: RankSettings, gpus: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert settings.seconds(73.0, "auto") == pytest.approx(expected)
    assert settings.seconds(73.0, "auto", starts=False) <= expected


def test_expected_seconds_on_the_cpu_do_not_count_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert RankSettings(4).seconds(73.0, "cpu") == RankSettings(4).seconds(73.0, "auto") * 4 - 3 * START_SECONDS


def test_a_worker_that_begins_the_script_again_is_refused() -> None:
    """While a worker imports the script that started it, the script's code runs in a module of this name."""

    def run(workers: int | None, name: str, code: str) -> None:
        known = {"check_ranks": check_ranks, "settings": RankSettings(workers), "__name__": name}
        exec(compile(code, "script.py", "exec"), known)

    call = "check_ranks(settings, updates_batchnorm=False)"
    run(2, "__main__", call)
    run(None, "__mp_main__", call)
    with pytest.raises(OptionError, match="workers: a script must start them under if __name__"):
        run(2, "__mp_main__", call)


DRIVER = """
import sys
sys.path[:] = {path!r}
from thread_ranks import Adder
from headstart.distributed.rank_group import LocalRanks
if __name__ == "__main__":
    try:
        group = LocalRanks(Adder, 2, "cpu")
        try:
            group.call("wait", {folder!r})
        finally:
            group.close()
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("moment", ["ranks are started", "ranks compute"])
def test_ctrl_c_ends_the_ranks_at_once_and_without_a_traceback(tmp_path: Path, moment: str) -> None:
    script, begun = tmp_path / "driver.py", tmp_path / "begun"
    script.write_text(DRIVER.format(path=sys.path, folder=str(begun)))
    begun.mkdir()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    driver = subprocess.Popen(
        [sys.executable, str(script)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(temporary)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # background jobs ignore it
    )
    try:
        computing = moment == "ranks compute"
        end = time.monotonic() + 300
        while len(list(begun.iterdir()) if computing else workers_of(driver.pid)) < 2 and driver.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.01)
        os.killpg(driver.pid, signal.SIGINT)
        _, err = driver.communicate(timeout=60)  # of the ranks too, which have the same stderr, and wait for an hour
    finally:
        driver.kill()
    assert (driver.returncode, err) == (130, "")
    assert not list(temporary.glob("headstart-ranks-*"))
