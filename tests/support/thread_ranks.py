"""Ranks that are threads of this process, and a member for ranks in other processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from headstart.errors import DataError
from headstart.training import ranks
from headstart.training.ranks import Rank


class _Sums:
    """Adds up tensors over threads, each of which is a rank."""

    def __init__(self, count: int) -> None:
        self.barrier, self.own = threading.Barrier(count, timeout=60), threading.local()
        self.given: list[Tensor] = [torch.zeros(0)] * count

    def all_reduce(self, tensor: Tensor) -> None:
        self.given[self.own.number] = tensor.clone()
        self.barrier.wait()
        total = torch.stack(self.given).sum(0)
        self.barrier.wait()
        tensor.copy_(total)


@contextmanager
def summing(count: int) -> Iterator[Callable[[Sequence[Callable[[], Any]]], list[Any]]]:
    """Context in which threads can be ranks; gives a function that calls one function for each rank at once."""
    sums = _Sums(count)

    def call(functions: Sequence[Callable[[], Any]]) -> list[Any]:
        found: dict[int, Any] = {}
        faults: list[BaseException] = []

        def run(number: int) -> None:
            sums.own.number = number
            try:
                found[number] = functions[number]()
            except BaseException as fault:
                faults.append(fault)
                sums.barrier.abort()

        threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if faults:
            raise faults[0]
        return [found[number] for number in range(count)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "distributed", SimpleNamespace(all_reduce=sums.all_reduce))
        yield call


class ThreadRanks:
    """A ``RankGroup`` of threads; use it inside ``summing``."""

    def __init__(self, make: Any, count: int, device: str, call: Callable[..., list[Any]]) -> None:
        self.count, self._call = count, call
        self.members = call([lambda i=i: make(Rank(i, count), device) for i in range(count)])

    def call(self, method: str, *arguments: Any) -> list[Any]:
        return self._call([lambda m=member: getattr(m, method)(*arguments) for member in self.members])

    def close(self) -> None:
        """Nothing is left to end."""


class Adder:
    """A member that needs no network."""

    def __init__(self, rank: Rank, device: str) -> None:
        self.rank, self.device = rank, device

    def total(self, start: int) -> list[float]:
        """The sum of (start + rank, 10) over the ranks."""
        given = torch.tensor([float(start + self.rank.number), 10.0])
        self.rank.add_up([given])
        return given.tolist()

    def fail(self, number: int) -> list[float]:
        """One rank fails; the others wait for it."""
        if self.rank.number == number:
            raise DataError("no such image")
        return self.total(0)

    def die(self, number: int) -> list[float]:
        """One rank is killed; the others wait for it."""
        if self.rank.number == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.total(0)

    def wait(self, folder: str) -> None:
        """Every rank says that it has begun, and computes for an hour."""
        (Path(folder) / str(self.rank.number)).touch()
        time.sleep(3600)
