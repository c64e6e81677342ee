"""Ranks: processes that train together, on this machine or on a Ray cluster, and are called all at once.

Each rank holds one object, its member, whose methods are called on every rank with the same arguments. Members add up
tensors through ``torch.distributed``: gloo on CPUs, NCCL on GPUs. If one rank is lost, all are ended.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import distributed

from headstart.concurrency import usable_cpus
from headstart.distributed.processes import (
    StartedProcesses,
    check_main_module,
    check_workers,
    device_of_worker,
    live_with_parent,
    not_started,
)
from headstart.distributed.ray_cluster import LOCAL, PATIENCE, actors_of, connect
from headstart.engine.device import training_device
from headstart.errors import HeadstartError, OptionError, WorkerError, first_line
from headstart.extras import importing_extra, require_extra
from headstart.training.ranks import Rank

SILENCE = timedelta(minutes=15)
"""Time after which a rank that waits for another one gives up."""

START_SECONDS = 20.0
"""Time in which ranks start."""

EFFICIENCY = 0.73
"""Speed of two ranks that share the processors of one process, as a fraction of its speed: 51 of 70 seconds, measured
like the start (docs/results/2026-11-30-scale.md)."""

Make = Callable[[Rank, str], Any]
"""Makes the member of a rank, for its device; can be pickled."""


@dataclass(frozen=True)
class RankSettings:
    """Where networks are fine-tuned by several processes.

    Attributes:
        workers: number of ranks; None: one for each GPU, or else each CPU, of the Ray cluster.
        ray: address of the cluster, "auto", or "local" to start one here; None: processes of this machine.
    """

    workers: int | None = None
    ray: str | None = None

    @property
    def is_parallel(self) -> bool:
        """Whether there is more than this process."""
        return self.ray is not None or (self.workers or 1) > 1

    def seconds(self, alone: float, device: str, *, starts: bool = True) -> float:
        """Expected seconds of fine-tuning. Ranks share the processors of a machine, but not its GPUs.

        A cluster counts as one machine: its speed is not known before it is joined.

        Args:
            alone: expected seconds in one process.
            device: see ``start_ranks``.
            starts: whether the ranks have to be started first.
        """
        if not self.is_parallel:
            return alone
        gpus = torch.cuda.device_count() if self.ray is None and device in ("auto", "cuda") else 0
        return alone / (EFFICIENCY * max(1, min(gpus, self.workers or 1))) + START_SECONDS * starts


THIS_PROCESS = RankSettings()
"""Nothing but this process."""


def check_ranks(settings: RankSettings, *, updates_batchnorm: bool) -> None:
    """Checks that a network can be fine-tuned by several processes.

    Args:
        settings: how many, and where.
        updates_batchnorm: whether batch normalisation learns its statistics.

    Raises:
        OptionError: it cannot, or the number of processes is impossible.
        MissingExtra: Ray is not installed.
    """
    check_workers(settings.workers)
    if settings.is_parallel:
        check_main_module()
    if settings.ray is not None:
        require_extra("ray", "computing on Ray")
    if settings.is_parallel and updates_batchnorm:
        raise OptionError(
            "workers: batch normalisation that learns its statistics needs whole batches in one process. Leave "
            "workers and ray out, or update_batchnorm and scratch."
        )


class RankGroup(Protocol):
    """Ranks that train together.

    Attributes:
        count: of ranks.
    """

    count: int

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Calls a method of every member; returns what each returned, by rank.

        Raises:
            WorkerError: a rank was lost.
            HeadstartError: what a member raised.
        """

    def close(self) -> None:
        """Ends the ranks."""


def start_ranks(make: Make, settings: RankSettings, device: str) -> RankGroup:
    """Starts the ranks.

    Args:
        make: of the members.
        settings: how many ranks, and where.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        WorkerError: they cannot be started.
    """
    if settings.ray is None:
        return LocalRanks(make, settings.workers or 1, device)
    return RayRanks(make, settings.workers, device, settings.ray)


_member: Any = None
"""Of this rank's process."""


@final
class LocalRanks:
    """Ranks in processes of this machine, which share its processors, and its GPUs in turn.

    Args:
        make: of the members.
        count: of ranks.
        device: see ``start_ranks``.
    """

    def __init__(self, make: Make, count: int, device: str) -> None:
        self.count = count
        self._folder = Path(tempfile.mkdtemp(prefix="headstart-ranks-"))
        context, self._started = multiprocessing.get_context("spawn"), StartedProcesses()
        self._pools = [ProcessPoolExecutor(1, context, initializer=_begin) for _ in range(count)]
        threads, num_gpus = max(1, usable_cpus() // count), torch.cuda.device_count()
        meeting = f"file://{self._folder / 'meeting'}"
        ranks = [(Rank(number, count), device_of_worker(device, number, num_gpus)) for number in range(count)]
        try:
            self._start()
            joined = zip(self._pools, ranks, strict=True)
            self._together([pool.submit(_join, make, *rank, threads, meeting) for pool, rank in joined])
        except BaseException:  # also Ctrl-C
            self.close()
            raise

    def _start(self) -> None:
        """Starts the processes."""
        try:
            self._together([self._started.submit(pool, int) for pool in self._pools])
        except WorkerError as error:
            raise not_started() from error

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """See ``RankGroup``."""
        try:
            futures = [pool.submit(_call, method, arguments) for pool in self._pools]
        except BrokenProcessPool as error:
            self._started.kill()
            raise _lost(error) from error
        return self._together(futures)

    def _together(self, futures: Sequence[Future[Any]]) -> list[Any]:
        """What the ranks return. If this is interrupted, as at Ctrl-C, they are ended at once."""
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:
            self._started.kill()
            raise
        if failed := [future for future in futures if future.done() and future.exception() is not None]:
            raise self._cause(futures, failed)
        return [future.result() for future in futures]

    def _cause(self, futures: Sequence[Future[Any]], failed: Sequence[Future[Any]]) -> BaseException:
        """What went wrong first; the other ranks, which would wait for the one that failed, are ended."""
        errors = [future.exception() for future in failed]
        self._started.kill()
        wait(futures)
        known = [error for error in errors if isinstance(error, HeadstartError)]
        error = known[0] if known else errors[0]
        assert error is not None
        return error if known or not _is_loss(error) else _lost(error)

    def close(self) -> None:
        """See ``RankGroup``. Ranks that are idle have nothing to save, so they are not asked to end."""
        self._started.kill()
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(self._folder, ignore_errors=True)


def _is_loss(error: BaseException) -> bool:
    """Whether a rank lost another one, or itself."""
    return isinstance(error, (BrokenProcessPool, RuntimeError, EOFError, ConnectionError))


def _lost(error: BaseException) -> WorkerError:
    return WorkerError(f"a worker process was lost while it trained ({first_line(error)}).")


def _begin() -> None:
    """Prepares the process of a rank."""
    live_with_parent()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if os.path.exists("/sys/class/net/lo") else "")


def _join(make: Make, rank: Rank, device: str, threads: int, meeting: str) -> None:
    """Makes the member of a rank in its process."""
    global _member
    _member = join(make, rank, device, threads, meeting)


def join(make: Make, rank: Rank, device: str, threads: int, meeting: str) -> Any:
    """Joins the process group, and makes the member of a rank.

    Args:
        make: of the members.
        rank: of this process.
        device: of its member.
        threads: that it computes with.
        meeting: the address at which all ranks meet.
    """
    torch.set_num_threads(threads)
    if not rank.is_alone:
        backend = "nccl" if training_device(device).type == "cuda" else "gloo"
        distributed.init_process_group(
            backend, init_method=meeting, rank=rank.number, world_size=rank.count, timeout=SILENCE
        )
    return make(rank, device)


def _call(method: str, arguments: Sequence[Any]) -> Any:
    return getattr(_member, method)(*arguments)


class _RankActor:
    """A Ray actor: the process of one rank on a machine of the cluster."""

    def __init__(self) -> None:
        self.member: Any = None

    def address(self) -> str:
        """Where the ranks can meet: a free port of this machine."""
        ray: Any = importlib.import_module("ray")
        with socket.socket() as own:
            own.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{own.getsockname()[1]}"

    def join(self, make: Make, rank: Rank, device: str, threads: int, meeting: str) -> None:
        """Makes the member."""
        self.member = join(make, rank, device, threads, meeting)

    def call(self, method: str, arguments: Sequence[Any]) -> Any:
        """Calls a method of the member."""
        return getattr(self.member, method)(*arguments)


@final
class RayRanks:
    """Ranks on a Ray cluster, one for each GPU or CPU unless their number is given.

    Args:
        make: of the members; sent to each machine once.
        workers: number of ranks.
        device: see ``start_ranks``.
        address: of the cluster, "auto", or "local" to start one on this machine.
    """

    def __init__(self, make: Make, workers: int | None, device: str, address: str = LOCAL) -> None:
        with importing_extra("ray", "computing on Ray"):
            ray: Any = importlib.import_module("ray")
        self._ray, self._has_started, self._actors = ray, connect(ray, address), list[Any]()
        try:
            self._start(make, workers, device)
        except BaseException:  # also Ctrl-C
            self.close()
            raise

    def _start(self, make: Make, workers: int | None, device: str) -> None:
        """Starts the actors, and makes their members."""
        self.count, threads, kind = actors_of(self._ray, _RankActor, workers, device)
        self._actors = [kind.remote() for _ in range(self.count)]
        meeting = self._results([self._actors[0].address.remote()], PATIENCE)[0]
        sent = self._ray.put(make)
        joined = [
            actor.join.remote(sent, Rank(number, self.count), device, threads, meeting)
            for number, actor in enumerate(self._actors)
        ]
        self._results(joined, PATIENCE)

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """See ``RankGroup``."""
        sent = self._ray.put(arguments)
        return self._results([actor.call.remote(method, sent) for actor in self._actors], None)

    def _results(self, tasks: Sequence[Any], seconds: float | None) -> list[Any]:
        try:
            return list(self._ray.get(list(tasks), timeout=seconds))
        except self._ray.exceptions.GetTimeoutError as error:
            self.close()
            raise WorkerError(
                f"ray: {self.count} workers could not be started within {PATIENCE:.0f} s. Look at ray status, or use "
                "fewer workers."
            ) from error
        except self._ray.exceptions.RayTaskError as error:
            self.close()
            cause = getattr(error, "cause", None)
            raise (cause if isinstance(cause, HeadstartError) else _lost(cause or error)) from error
        except self._ray.exceptions.RayError as error:
            self.close()
            raise _lost(error) from error

    def close(self) -> None:
        """See ``RankGroup``."""
        for actor in self._actors:
            with suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)
        self._actors = []
        if self._has_started:
            self._ray.shutdown()
            self._has_started = False
