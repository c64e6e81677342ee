"""A weighted semaphore in front of an executor, with two FIFO queues: urgent work runs first."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Any, TypeVar, final

Result = TypeVar("Result")


@final
class Room:
    """A weighted semaphore in front of an executor: urgent work first, and first come, first served.

    Work that is cancelled while it waits leaves its queue, and the bytes that it holds with it; of what has begun, the
    room is taken until its end, whoever still waits for it.

    Args:
        executor: runs the work.
        size: of the room; what is larger has it for itself.
    """

    def __init__(self, executor: Executor, size: int) -> None:
        self._executor, self._size = executor, size
        self._taken = 0
        self._urgent: deque[tuple[int, Callable[[], None]]] = deque()
        self._other: deque[tuple[int, Callable[[], None]]] = deque()
        self._lock = threading.Lock()

    def submit(self, size: int, work: Callable[[], Result], *, urgent: bool = True) -> Future[Result]:
        """Runs work once there is room for it; what is not urgent, once nothing urgent waits."""
        size, future = min(size, self._size), Future[Any]()

        def run() -> None:
            try:
                _settle(future, work)
            finally:
                self._open(-size)

        place, queue = (size, run), self._urgent if urgent else self._other
        with self._lock:
            queue.append(place)
        self._open()
        future.add_done_callback(lambda own: self._leave(queue, place) if own.cancelled() else None)
        return future

    def _leave(self, queue: deque[tuple[int, Callable[[], None]]], place: tuple[int, Callable[[], None]]) -> None:
        with self._lock, suppress(ValueError):  # it has begun
            queue.remove(place)
        self._open()

    def _open(self, change: int = 0) -> None:
        """Lets in who fits."""
        with self._lock, suppress(RuntimeError):  # the executor is shut down: nobody waits any more
            self._taken += change
            while (queue := self._urgent or self._other) and self._taken + queue[0][0] <= self._size:
                size, run = queue.popleft()
                self._executor.submit(run)
                self._taken += size


def _settle(future: Future[Result], work: Callable[[], Result]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except Exception as error:
        future.set_exception(error)
    else:
        future.set_result(result)
