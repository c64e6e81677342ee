"""Local worker processes: shards are computed by processes of this machine, those of a process that dies once more.

The processes are those of the standard library's pool. It ends every process when one dies; the shards that were under
way are then computed by new ones.
"""

from __future__ import annotations

import inspect
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any, TypeVar, final

import torch

from headstart.concurrency import usable_cpus
from headstart.distributed.pending import HANDED_OUT, PendingShards
from headstart.distributed.shards import Shard
from headstart.distributed.work import Computer, ShardTables, Work
from headstart.errors import OptionError, WorkerError

Result = TypeVar("Result")

_MAIN_GUARD = 'a script must start them under if __name__ == "__main__":, because each worker imports the script'

_computer: Computer | None = None
"""Of this worker process; None if it could not be prepared."""

_failure: Exception | None = None
"""Why not."""


def compute_in_processes(
    work: Work, shards: Iterable[Shard], *, workers: int, device: str = "auto"
) -> Iterator[tuple[Shard, ShardTables]]:
    """Computes shards in worker processes, and yields them as they are finished, in any order.

    Args:
        work: what is computed.
        shards: taken one at a time, as workers become free.
        workers: number of processes, at least 1; they share the usable processors.
        device: see ``engine.device.resolve_device``.

    Raises:
        WorkerError: one shard lost its process several times.
    """
    pending, under_way, is_finished = PendingShards(iter(shards)), dict[str, Shard](), False
    while not is_finished:
        with _pool(work, workers, device) as pool:
            try:
                yield from _computed(pool, pending, under_way, workers * HANDED_OUT)
                is_finished = True
            except BrokenProcessPool:
                pending.give_back(under_way.values())
                under_way.clear()


def _computed(
    pool: ProcessPoolExecutor, pending: PendingShards, under_way: dict[str, Shard], most: int
) -> Iterator[tuple[Shard, ShardTables]]:
    """Hands shards to a pool, at most so many at a time, and yields those that are finished.

    Args:
        pool: of the workers.
        pending: the shards.
        under_way: by name, those that were taken and are not finished; kept up to date.
        most: shards that are handed out at a time.
    """
    futures: dict[Future[ShardTables], Shard] = {}
    while True:
        while len(futures) < most and (shard := pending.next(under_way)) is not None:
            under_way[shard.name] = shard
            with interrupts_held():  # a pool starts its processes one by one, as it is given work
                futures[pool.submit(_compute, shard)] = shard
        if not futures:
            return
        for future in wait(futures, return_when=FIRST_COMPLETED).done:
            tables = future.result()
            shard = futures.pop(future)
            yield shard, tables
            del under_way[shard.name]


@contextmanager
def _pool(work: Work, workers: int, device: str) -> Iterator[ProcessPoolExecutor]:
    """The workers. If the block raises, as at Ctrl-C or on a full disk, they end at once and not after their shards."""
    threads, context = max(1, usable_cpus() // workers), multiprocessing.get_context("spawn")
    given_up, lifeline = context.Pipe(duplex=False)
    arguments = (work, device, threads, context.Value("i", 0), given_up)
    with given_up, lifeline, ProcessPoolExecutor(workers, context, initializer=_begin, initargs=arguments) as pool:
        try:
            yield pool
        except BaseException:
            lifeline.close()
            raise


def _begin(work: Work, device: str, threads: int, counter: Any, given_up: Connection) -> None:
    """Prepares a worker process; ``counter`` numbers them, and ``given_up`` ends when they are no longer needed."""
    global _computer, _failure
    live_with_parent(given_up)
    torch.set_num_threads(threads)
    with counter.get_lock():
        number, counter.value = counter.value, counter.value + 1
    try:
        _computer = work.computer(device_of_worker(device, number, torch.cuda.device_count()))
    except Exception as error:  # an initializer that fails would count as a process that died
        _failure = error


def device_of_worker(device: str, number: int, num_gpus: int) -> str:
    """The device of a worker: the GPUs in turn where there are several.

    Args:
        device: as given.
        number: of the worker, from 0 on.
        num_gpus: CUDA devices of this machine.
    """
    return f"cuda:{number % num_gpus}" if device in ("auto", "cuda") and num_gpus > 1 else device


def check_workers(workers: int | None) -> None:
    """Checks a number of workers.

    Raises:
        OptionError: it is impossible.
    """
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise OptionError(f"workers {workers!r}: expected a whole number of at least 1.")


def check_main_module() -> None:
    """Checks that this process is not a worker that imports the script which starts workers.

    Raises:
        OptionError: it is; the script would begin its work again in each worker.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__mp_main__":
            raise OptionError(f"workers: {_MAIN_GUARD}.")
        frame = frame.f_back


def not_started() -> WorkerError:
    """The error of workers that ended before they were prepared."""
    return WorkerError(
        f"the worker processes ended while they started. {_MAIN_GUARD[0].upper()}{_MAIN_GUARD[1:]}; use fewer workers "
        "if there is too little memory."
    )


@final
class StartedProcesses:
    """The processes that pools start, so that they can be ended at once.

    They must be given little: a process is started when it has taken what it is given, for which it imports PyTorch.
    """

    def __init__(self) -> None:
        self._processes = list[Any]()

    def submit(self, pool: ProcessPoolExecutor, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Submits a call to a pool, which may start a process for it; Ctrl-C never reaches that."""
        others = multiprocessing.active_children()
        with interrupts_held():
            future = pool.submit(function, *arguments)
            self._processes += [process for process in multiprocessing.active_children() if process not in others]
        return future

    def kill(self) -> None:
        """Ends the processes, also those that still import."""
        for process in self._processes:
            process.kill()


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C waits for the end of the block. Processes that start in it never get it, not even while they import."""
    mask = getattr(signal, "pthread_sigmask", None)  # not on Windows
    before = mask(signal.SIG_BLOCK, {signal.SIGINT}) if mask else ()
    try:
        yield
    finally:
        if mask:
            mask(signal.SIG_SETMASK, before)


def live_with_parent(*given_up: Connection) -> None:
    """Makes this worker process end with the one that started it, and not before it at Ctrl-C, which reaches all.

    Args:
        given_up: end of a pipe whose other end is closed when the work is given up.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=given_up, name="headstart-parent", daemon=True).start()


def _end_with_parent(*given_up: Connection) -> None:
    """Ends this process if the one that started it was killed or gave up; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel, *given_up])
        os._exit(1)


def _compute(shard: Shard) -> ShardTables:
    if _computer is None:
        raise _failure or WorkerError("a worker process was not prepared. Run the command again.")
    return _computer(shard.rows)
