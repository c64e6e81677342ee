"""Where tensors are computed, and how exactly."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache as once

import torch

from headstart.errors import OptionError


def resolve_device(name: str = "auto") -> torch.device:
    """The device by its name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        OptionError: no such device on this machine.
    """
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if here[kind]))
    if not isinstance(name, str) or name.split(":")[0] not in here:
        raise OptionError(f"device {name!r}: expected auto, cpu, cuda or mps.")
    if not here[name.split(":")[0]]:
        raise OptionError(f"device {name!r} is not available on this machine. Use --device auto.")
    return torch.device(name)


def training_device(name: str = "auto") -> torch.device:
    """Where weights are trained: on CUDA where that is the device, else on the CPU.

    Raises:
        OptionError: no such device on this machine.
    """
    device = resolve_device(name)
    return device if device.type == "cuda" else torch.device("cpu")


@contextmanager
def as_told(device: torch.device) -> Iterator[None]:
    """On CUDA, float32 is float32 and the same input gives the same bits.

    By default cuDNN rounds the inputs of a float32 convolution to ten bits (TF32), which moves features by 1e-3, and
    takes kernels whose sums depend on the order in which threads arrive.
    """
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


@once
def keep_freed_memory() -> None:
    """Asks the C library to keep freed memory for the next activation instead of giving it back to the system.

    By default glibc maps and unmaps every large activation anew, and the kernel clears each of its pages: that took
    60 % of a forward pass on the machine that this was measured on (LOG.md). Elsewhere than on glibc nothing happens.
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
