"""Threads, forked processes, and the processors that this process may use.

A fork copies one thread. Locks that others held stay locked in the child, and thread pools have no threads there; so
locks are made anew in a child, and what owns threads is kept by process id (see ``model.Model``, ``engine.device``).
"""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import final
from weakref import WeakSet

from headstart.import_effects import scoped_filters

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux mounts control groups; containers see their own there."""


@final
class ProcessLock:
    """A reentrant lock of one process: a forked child begins with a new one, whoever held it in the parent."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _LOCKS.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Forgets who holds it; for the child of a fork."""
        self._lock = threading.RLock()


_LOCKS: WeakSet[ProcessLock] = WeakSet()


def _renew_locks() -> None:
    for lock in _LOCKS:
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


@final
class SharedScope:
    """A context that several threads may be in at a time: the first one sets it up, the last one undoes it.

    Python's own contexts for process-wide state (``redirect_stdout``, torch's flags) restore what they found. Where two
    threads overlap, the second one finds the state of the first, and leaves it behind for good.

    Args:
        context: makes the context that is set up and undone.
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
    """Ignores warnings of other libraries while the block runs, in any number of threads at a time.

    ``warnings.catch_warnings`` puts back the list that it found; where two threads overlap, the filter of one stays.
    Here one filter is put in front, and that very filter is taken out again.

    Args:
        module: regular expression that the name of the warning's module begins with; "" for any.
        category: of the warnings.
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
            for held in (filters, warnings.filters):  # somebody else may have put a copy in its place
                place = next((i for i, own in enumerate(held) if own is rule), None)
                if place is not None:
                    del held[place]  # type: ignore[attr-defined]


@contextmanager
def start_method_kept() -> Iterator[None]:
    """Context after which multiprocessing's start method is unset again if it was before.

    A lock of tqdm, which torch.fx uses, and tensorboardX's queue set it; the program could not choose another one then.
    """
    was_unset = multiprocessing.get_start_method(allow_none=True) is None
    try:
        yield
    finally:
        if was_unset and multiprocessing.get_start_method(allow_none=True) is not None:
            multiprocessing.set_start_method(None, force=True)


def usable_cpus() -> int:
    """Processors that this process may use: its affinity mask, and on Linux the quota of its control groups."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        count = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, min(count, _cgroup_quota() or count))


def _cgroup_quota() -> int | None:
    """Processors that the container's quota amounts to, rounded up; None where there is none."""
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
