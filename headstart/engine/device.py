"""Devices: selection, float32 without TF32 on CUDA, OpenMP after a fork, and the memory allocator."""

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
from headstart.engine.torch_internals import is_cuda_unusable_after_fork
from headstart.errors import OptionError

_settled = os.getpid()
"""The process whose OpenMP threads work: the one that imported torch, or a child after ``settle_after_fork``."""


def settle_after_fork() -> None:
    """Makes torch usable in a forked child process; does nothing in other processes.

    GNU OpenMP's threads do not survive a fork: the first parallel region of the child would wait for them forever. So
    the child computes on one thread, as one of many worker processes should. This happens when the child first uses a
    model, not at the fork, so that other children of a process that imported Headstart are not affected.
    """
    global _settled
    if _settled == os.getpid():
        return
    torch.set_num_threads(1)
    threadpool_limits(1, user_api="openmp")
    _settled = os.getpid()


def resolve_device(name: str = "auto") -> torch.device:
    """A device by name; "auto" is CUDA if available, else Apple's MPS, else the CPU. Prepares a forked child.

    Raises:
        OptionError: no such device on this machine, or CUDA in a process whose parent used CUDA before the fork.
    """
    settle_after_fork()
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if here[kind])
    if not isinstance(name, str) or name.split(":")[0] not in here:
        raise OptionError(f"device {name!r}: expected auto, cpu, cuda or mps.")
    try:
        device = torch.device(name)
    except RuntimeError as error:  # such as cuda:x
        raise OptionError(f"device {name!r}: expected auto, cpu, cuda, mps, or one of several as in cuda:1.") from error
    if not here[device.type] or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise OptionError(f"device {name!r} is not available on this machine. Use device auto (--device auto).")
    if device.type == "cuda" and is_cuda_unusable_after_fork():
        raise OptionError(
            "device 'cuda': this process was forked from one that has already used the GPU, which CUDA does not allow. "
            "Start it with multiprocessing's method 'spawn', load the model after the fork, or use device 'cpu'."
        )
    return device


def training_device(name: str = "auto") -> torch.device:
    """The device for training: CUDA if that is the device, else the CPU.

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
    """Context in which CUDA computes float32 convolutions exactly and deterministically.

    By default cuDNN rounds the inputs of a float32 convolution to ten bits (TF32), which changes features by 1e-3, and
    uses kernels whose sums depend on thread order. These flags are process-wide; they are restored when the last thread
    has left the context.
    """
    if device.type != "cuda":
        yield
        return
    with _CUDNN:
        yield


@once
def keep_freed_memory() -> None:
    """Configures the C library to keep freed memory for the next activation instead of returning it to the system.

    The setting is process-wide and permanent, so no other function of the library calls it: the ``headstart`` command
    does, and a program that predicts or trains a lot may. By default glibc maps and unmaps the memory of every large
    activation, and the kernel clears each page: that took 60 % of a forward pass when it was measured (docs/results).
    Without glibc this does nothing.
    """
    libc = _glibc()
    if libc is None:
        return
    mmap_threshold, trim_threshold, never = -3, -1, 2**31 - 1
    for size in (1 << 30, 1 << 25):  # older versions of glibc accept at most 32 MiB
        if libc.mallopt(mmap_threshold, size):
            break
    libc.mallopt(trim_threshold, never)


def give_back_freed_memory() -> None:
    """Returns the memory that ``keep_freed_memory`` has kept to the system, for all threads.

    Call it after something that needed much more memory than what follows: each thread has an arena in glibc, which
    keeps as much memory as its largest use so far. Takes up to 0.3 s (0.9 GB).
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@once
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None)
