"""Helpers for threads and forked processes, and the number of usable CPUs.

A fork copies only the calling thread: locks held by other threads stay locked in the child, and thread pools have no
threads. Therefore locks are reset in a child, and objects that own threads are stored per process id (see
``model.Model``, ``engine.device``).
"""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar, final
from weakref import WeakSet

from .import_effects import scoped_filters

Item = TypeVar("Item")
Result = TypeVar("Result")

CGROUPS = Path("/sys/fs/cgroup")
"""Mount point of control groups on Linux; a container sees its quota there."""


@final
class ProcessLock:
    """A reentrant lock that is reset in a forked child, whether or not it was held in the parent."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _LOCKS.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Replaces the lock by an unlocked one, in the child of a fork."""
        self._lock = threading.RLock()


_LOCKS: WeakSet[ProcessLock] = WeakSet()


def _renew_locks() -> None:
    for lock in _LOCKS:
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


@final
class SharedScope:
    """A reference-counted context manager: the first thread enters the context, the last one exits it.

    Context managers for process-wide state (``redirect_stdout``, torch flags) restore the state that they found. If two
    threads overlap, the second restores the state that the first had set, which then stays.

    Args:
        context: creates the context manager.
    """

    def __init__(self, context: Callable[[], AbstractContextManager[object]]) -> None:
        self._context = context
        self._lock = ProcessLock()
        self._entered = 0
        self._active: AbstractContextManager[object] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._entered:
                self._active = self._context()
                self._active.__enter__()
            self._entered += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._entered -= 1
            if not self._entered and self._active is not None:
                self._active.__exit__(None, None, None)
                self._active = None


_FILTERS = ProcessLock()


@contextmanager
def ignored_warnings(module: str = "", category: type[Warning] = Warning) -> Iterator[None]:
    """Ignores warnings during the block. Unlike ``warnings.catch_warnings``, it may be used in overlapping threads.

    ``catch_warnings`` restores the list of filters that it found, so with overlapping threads one filter stays. This
    context inserts one filter and removes exactly that one.

    Args:
        module: regular expression for the start of the module name; "" for any module.
        category: the class of warnings to ignore.
    """
    rule = ("ignore", None, category, re.compile(module) if module else None, 0)
    with _FILTERS:
        scoped_filters.append(rule)
        filters = warnings.filters
        filters.insert(0, rule)  # type: ignore[attr-defined]  # typeshed calls it a sequence
    try:
        yield
    finally:
        with _FILTERS:
            scoped_filters[:] = [entry for entry in scoped_filters if entry is not rule]
            for held in (filters, warnings.filters):  # other code may have replaced the list by a copy
                position = next((i for i, entry in enumerate(held) if entry is rule), None)
                if position is not None:
                    del held[position]  # type: ignore[attr-defined]


@contextmanager
def start_method_kept() -> Iterator[None]:
    """Restores an unset start method of multiprocessing at the end of the block.

    tqdm's lock, used by torch.fx, and tensorboardX's queue set the start method, which blocks a later choice.
    """
    was_unset = multiprocessing.get_start_method(allow_none=True) is None
    try:
        yield
    finally:
        if was_unset and multiprocessing.get_start_method(allow_none=True) is not None:
            multiprocessing.set_start_method(None, force=True)


def map_images(
    work: Callable[[Item], Result], items: Iterable[Item], *, ahead: int = 64, threads: int | None = None
) -> Iterator[Result]:
    """Maps ``work`` over items in threads and yields the results in order; decoding releases the GIL.

    Args:
        work: is called with each item.
        items: any number of them.
        ahead: results that are computed before they are consumed; bounds the memory.
        threads: number of threads; None for the number of usable CPUs.
    """
    with ThreadPoolExecutor(threads or usable_cpus()) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:  # after an error: each of them may wait for a store that is not there
                future.cancel()


def usable_cpus() -> int:
    """Number of CPUs that this process may use: the affinity mask, limited by the control group's quota on Linux."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        count = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, min(count, _cgroup_quota() or count))


def _cgroup_quota() -> int | None:
    """CPU quota of the control group, rounded up to whole CPUs; None without a quota."""
    try:
        quota, period = (CGROUPS / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        try:  # version 1
            quota, period = (
                (CGROUPS / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
        except OSError:
            return None
    if not quota.isdecimal() or not period.isdecimal() or not int(period) or not int(quota):  # "max", or -1: no limit
        return None
    return -(-int(quota) // int(period))
