from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from served import until

from headstart.serve.decode_budget import DecodeBudget


class TaskKind:
    """Jobs that block until released, in the order in which they started."""

    def __init__(self, room: DecodeBudget) -> None:
        self.room = room
        self.begun: list[str] = []
        self.gates: dict[str, threading.Event] = {}

    def submit(self, name: str, size: int) -> None:
        self.gates[name] = threading.Event()
        self.future = self.room.submit(size, lambda: self._run(name))

    def end(self, *names: str) -> None:
        for name in names:
            self.gates[name].set()

    def _run(self, name: str) -> str:
        self.begun.append(name)
        assert self.gates[name].wait(20)
        return name


def test_jobs_within_the_capacity_run_concurrently_and_others_wait() -> None:
    with ThreadPoolExecutor(8) as pool:
        work = TaskKind(DecodeBudget(pool, 10))
        for name, size in {"a": 4, "b": 6, "c": 8, "d": 1, "whole": 99, "e": 1}.items():
            work.submit(name, size)
        until(lambda: len(work.begun) == 2)
        time.sleep(0.05)
        assert work.begun == ["a", "b"]
        work.end("a")
        time.sleep(0.05)
        assert work.begun == ["a", "b"]
        work.end("b")
        until(lambda: len(work.begun) == 4)
        assert sorted(work.begun[2:]) == ["c", "d"]
        work.end("c", "d")
        until(lambda: work.begun[4:] == ["whole"])
        time.sleep(0.05)
        assert work.begun[4:] == ["whole"]
        work.end("whole", "e")
        assert work.future.result(20) == "e"


def test_cancelled_jobs_are_skipped_and_running_jobs_keep_their_weight() -> None:
    with ThreadPoolExecutor(8) as pool:
        work = TaskKind(DecodeBudget(pool, 10))
        work.submit("a", 10)
        begun = work.future
        work.submit("b", 10)
        assert work.future.cancel()
        work.submit("c", 10)
        until(lambda: work.begun == ["a"])
        assert not begun.cancel()
        time.sleep(0.05)
        assert work.begun == ["a"]
        work.end("a", "c")
        assert work.future.result(20) == "c"
        assert work.begun == ["a", "c"]


def test_a_cancelled_job_frees_what_it_refers_to() -> None:
    class Bytes:
        pass

    with ThreadPoolExecutor(1) as pool:
        room, gate, held = DecodeBudget(pool, 1), threading.Event(), Bytes()
        room.submit(1, lambda: gate.wait(20))
        given_up = room.submit(1, lambda own=held: own)  # type: ignore[misc]
        alive = weakref.ref(held)
        del held
        assert alive() is not None
        assert given_up.cancel()
        del given_up
        gc.collect()
        assert alive() is None
        gate.set()


def test_a_failed_job_releases_its_weight() -> None:
    with ThreadPoolExecutor(2) as pool:
        room = DecodeBudget(pool, 1)
        with pytest.raises(ZeroDivisionError):
            room.submit(1, lambda: 1 // 0).result(20)
        assert room.submit(1, lambda: "next").result(20) == "next"


def test_jobs_after_executor_shutdown_do_not_run_or_raise() -> None:
    pool = ThreadPoolExecutor(2)
    room = DecodeBudget(pool, 1)
    pool.shutdown()
    assert not room.submit(1, lambda: None).running()
