"""Weighted FIFO semaphore in front of an executor, with two queues: urgent jobs start first."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar, final

Result = TypeVar("Result")

Entry: TypeAlias = tuple[int, Callable[[], None]]
"""Weight of a job, and the job."""


@final
class DecodeBudget:
    """Weighted FIFO semaphore in front of an executor: the weights of all running jobs add up to at most ``capacity``.

    A job that is cancelled while it waits is removed from its queue, which frees its image. A running job keeps its
    weight until it ends, even if its future was cancelled.

    Args:
        executor: runs the jobs.
        capacity: total weight of the jobs that run at a time; a heavier job runs alone.
    """

    def __init__(self, executor: Executor, capacity: int) -> None:
        self._executor, self._capacity = executor, capacity
        self._used = 0
        self._urgent: deque[Entry] = deque()
        self._other: deque[Entry] = deque()
        self._lock = threading.Lock()

    def submit(self, weight: int, work: Callable[[], Result], *, urgent: bool = True) -> Future[Result]:
        """Queues a job. Urgent jobs start in order of arrival; others start only while no urgent job waits."""
        weight, future = min(weight, self._capacity), Future[Any]()

        def run() -> None:
            try:
                _run_into(future, work)
            finally:
                self._start_fitting(-weight)

        entry, queue = (weight, run), self._urgent if urgent else self._other
        with self._lock:
            queue.append(entry)
        self._start_fitting()
        future.add_done_callback(lambda done: self._withdraw(queue, entry) if done.cancelled() else None)
        return future

    def _withdraw(self, queue: deque[Entry], entry: Entry) -> None:
        with self._lock, suppress(ValueError):  # it has started
            queue.remove(entry)
        self._start_fitting()

    def _start_fitting(self, change: int = 0) -> None:
        """Adds ``change`` to the weight in use, then starts the jobs that fit."""
        with self._lock, suppress(RuntimeError):  # the executor is shut down: results are no longer needed
            self._used += change
            while (queue := self._urgent or self._other) and self._used + queue[0][0] <= self._capacity:
                weight, run = queue.popleft()
                self._executor.submit(run)
                self._used += weight


def _run_into(future: Future[Result], work: Callable[[], Result]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except Exception as error:
        future.set_exception(error)
    else:
        future.set_result(result)
