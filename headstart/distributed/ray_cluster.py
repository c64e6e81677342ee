"""Ray: shards are computed by actors on a cluster; an actor that is lost with its machine is replaced.

The weights are put into Ray's object store once, from which each machine takes them once. Headstart must be installed
on every machine.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from headstart.distributed.pending import HANDED_OUT, MOST_LOSSES, PendingShards
from headstart.distributed.shards import Shard
from headstart.distributed.work import Computer, ShardTables, Work
from headstart.errors import HeadstartError, WorkerError, first_line
from headstart.extras import importing_extra

LOCAL = "local"
"""Address for a cluster that is started on this machine, and ended with the work."""

PATIENCE = 300.0
"""Seconds to wait for the first actor, or for another one when all are lost."""


CONNECT_SECONDS = 10.0
"""Seconds to wait for a machine's answer."""


def compute_on_ray(
    work: Work, shards: Iterable[Shard], *, address: str = LOCAL, workers: int | None = None, device: str = "auto"
) -> Iterator[tuple[Shard, ShardTables]]:
    """Computes shards on a Ray cluster, and yields them as they are finished, in any order.

    Args:
        work: what is computed.
        shards: taken one at a time, as workers become free.
        address: of the cluster, "auto" for the one this machine belongs to, or ``LOCAL``.
        workers: number of actors; default: one for each GPU of the cluster, or for each CPU if it has none.
        device: "auto", "cpu" or "cuda"; with "cpu" no GPU is taken.

    Raises:
        WorkerError: there is no such cluster, no worker can be started, or one shard lost its worker several times.
    """
    with importing_extra("ray", "computing on Ray"):
        import ray
    has_started = connect(ray, address)
    try:
        yield from _Actors(ray, work, workers, device).computed(PendingShards(iter(shards)))
    finally:
        if has_started:
            ray.shutdown()


def connect(ray: Any, address: str) -> bool:
    """Joins a cluster or starts one; True unless this process had already joined one."""
    if ray.is_initialized():
        return False
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdecimal():  # Ray itself tries for minutes
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise WorkerError(
            f"ray {address}: cannot be reached ({first_line(error)}). Start a cluster with ray start --head, or leave "
            "the address out to start one on this machine."
        ) from error
    return True


class _Worker:
    """A Ray actor: one worker process on a machine of the cluster."""

    def __init__(self, work: Work, device: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.computer: Computer = work.computer(device)

    def begin(self) -> None:
        """Returns when the network is loaded."""

    def compute(self, shard: Shard) -> ShardTables:
        """The tables of a shard."""
        return self.computer(shard.rows)


def actors_of(ray: Any, actor: type, workers: int | None, device: str) -> tuple[int, int, Any]:
    """How many actors share out a cluster, the threads of each, and the class of actors that Ray starts.

    Args:
        ray: the library, connected to the cluster.
        actor: class of the actors.
        workers: their number; default: one for each GPU of the cluster, or for each CPU if it has none.
        device: "auto", "cpu" or "cuda"; with "cpu" no GPU is taken.
    """
    resources = ray.cluster_resources()
    gpus = 0 if device == "cpu" else int(resources.get("GPU", 0))
    cpus = max(1, int(resources.get("CPU", 1)))
    count = workers or gpus or cpus
    threads = max(1, cpus // count)
    share = {"num_gpus": min(1.0, gpus / count)} if gpus else {}
    return count, threads, ray.remote(num_cpus=threads, max_restarts=0, **share)(actor)


class _Actors:
    """The actors of the work, and what each of them computes."""

    def __init__(self, ray: Any, work: Work, workers: int | None, device: str) -> None:
        self.ray, self.device = ray, device
        self.count, self.threads, self.kind = actors_of(ray, _Worker, workers, device)
        self.work = ray.put(work)
        self.tasks: dict[Any, tuple[Any, Shard | None]] = {}
        self.ready: list[Any] = []
        self.failed_starts = 0

    def computed(self, pending: PendingShards) -> Iterator[tuple[Shard, ShardTables]]:
        """Yields the tables of all shards."""
        for _ in range(self.count):
            self.start()
        while True:
            self.hand_out(pending)
            if not any(shard for _, shard in self.tasks.values()) and self.ready:
                return
            done, _ = self.ray.wait(list(self.tasks), num_returns=1, timeout=None if self.ready else PATIENCE)
            if not done:
                raise WorkerError(
                    f"ray: no worker could be started within {PATIENCE:.0f} s. Look at ray status: each worker needs "
                    f"{self.threads} free CPU{'s' if self.threads > 1 else ''}. What is finished is kept."
                )
            for task in done:
                yield from self.finished(task, pending)

    def start(self) -> None:
        """Starts an actor; it takes shards when it is ready."""
        actor = self.kind.remote(self.work, self.device, self.threads)
        self.tasks[actor.begin.remote()] = (actor, None)

    def hand_out(self, pending: PendingShards) -> None:
        """Gives every actor that is ready its shards."""
        for actor in self.ready:
            mine = [shard.name for other, shard in self.tasks.values() if other is actor and shard is not None]
            while len(mine) < HANDED_OUT and (shard := pending.next(mine)) is not None:
                mine.append(shard.name)
                self.tasks[actor.compute.remote(shard)] = (actor, shard)

    def finished(self, task: Any, pending: PendingShards) -> Iterator[tuple[Shard, ShardTables]]:
        """Takes the result of a task; if its actor is lost, its shards go back and another one is started."""
        if task not in self.tasks:  # of an actor that is known to be lost
            return
        actor, shard = self.tasks[task]
        try:
            tables = self.ray.get(task)
        except self.ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            raise (cause if isinstance(cause, HeadstartError) else WorkerError(f"ray: {first_line(error)}")) from error
        except self.ray.exceptions.RayError as error:
            self.failed_starts += shard is None
            if self.failed_starts > MOST_LOSSES * self.count:
                raise WorkerError(f"ray: workers end while they start ({first_line(error)}).") from error
            self.replace(actor, pending)
            return
        del self.tasks[task]
        if shard is None:
            self.ready.append(actor)
            self.failed_starts = 0
        else:
            yield shard, tables

    def replace(self, actor: Any, pending: PendingShards) -> None:
        """Gives back the shards of a lost actor, and starts another one."""
        lost = [shard for other, shard in self.tasks.values() if other is actor and shard is not None]
        self.tasks = {task: of for task, of in self.tasks.items() if of[0] is not actor}
        self.ready = [other for other in self.ready if other is not actor]
        with suppress(self.ray.exceptions.RayError):
            self.ray.kill(actor)
        pending.give_back(lost)
        self.start()
