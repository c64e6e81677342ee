"""Where tensors are computed, and how exactly."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache as once

import torch
from threadpoolctl import threadpool_limits

from headstart.concurrency import SharedScope
from headstart.errors import OptionError

_settled = os.getpid()
"""The process whose OpenMP threads can be relied on: where torch was imported, or a child that was seen to."""


def settle_after_fork() -> None:
    """Makes torch usable in a forked child; does nothing elsewhere.

    GNU OpenMP's threads do not survive a fork: the first parallel region of the child would wait for them for ever. So
    the child computes on one thread, as each of many worker processes should. This is done when the child first uses
    a model, not at the fork: other children of a process that has imported Headstart are left alone.
    """
    global _settled
    if _settled == os.getpid():
        return
    torch.set_num_threads(1)
    threadpool_limits(1, user_api="openmp")
    _settled = os.getpid()


def resolve_device(name: str = "auto") -> torch.device:
    """The device by its name; "auto" takes CUDA, then Apple's MPS, then the CPU. Makes a forked child ready for it.

    Raises:
        OptionError: no such device on this machine, or a GPU that the parent of this forked process has used already.
    """
    settle_after_fork()
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if here[kind])
    if not isinstance(name, str) or name.split(":")[0] not in here:
        raise OptionError(f"device {name!r}: expected auto, cpu, cuda or mps.")
    if not here[name.split(":")[0]]:
        raise OptionError(f"device {name!r} is not available on this machine. Use --device auto.")
    if name.startswith("cuda") and getattr(torch.cuda, "_is_in_bad_fork", bool)():
        raise OptionError(
            "device 'cuda': this process was forked from one that has used the GPU already, which CUDA does not allow. "
            "Start it with multiprocessing's method 'spawn', load the model after the fork, or take device 'cpu'."
        )
    return torch.device(name)


def training_device(name: str = "auto") -> torch.device:
    """Where weights are trained: on CUDA where that is the device, else on the CPU.

    Raises:
        OptionError: no such device on this machine.
    """
    device = resolve_device(name)
    return device if device.type == "cuda" else torch.device("cpu")


_CUDNN = SharedScope(
    lambda: torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
)


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """On CUDA, float32 is float32 and the same input gives the same bits.

    By default cuDNN rounds the inputs of a float32 convolution to ten bits (TF32), which moves features by 1e-3, and
    takes kernels whose sums depend on the order in which threads arrive. These flags belong to the whole process; they
    are as before when the last thread has left the block.
    """
    if device.type != "cuda":
        yield
        return
    with _CUDNN:
        yield


@once
def keep_freed_memory() -> None:
    """Asks the C library to keep freed memory for the next activation instead of giving it back to the system.

    For the whole process and for good, so no other function of the library calls it: the ``headstart`` command does,
    and a program that predicts or trains a lot may. By default glibc maps and unmaps every large activation anew, and
    the kernel clears each of its pages: that took 60 % of a forward pass on the machine that this was measured on
    (LOG.md). Elsewhere than on glibc nothing happens.
    """
    libc = _glibc()
    if libc is None:
        return
    mmap_threshold, trim_threshold, never = -3, -1, 2**31 - 1
    for size in (1 << 30, 1 << 25):  # older versions refuse more than 32 MiB
        if libc.mallopt(mmap_threshold, size):
            break
    libc.mallopt(trim_threshold, never)


def give_back_freed_memory() -> None:
    """Gives the system what ``keep_freed_memory`` has kept so far, of all threads.

    For after something that was much larger than all that comes next: each thread of glibc has memory of its own, and
    keeps as much of it as the largest thing took that it ever did. Takes up to a third of a second (0.9 GB).
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@once
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None)
