"""Inference engine interface: one signature for every way to compute the frozen forward pass."""

from __future__ import annotations

import platform
from contextlib import suppress
from functools import cache as once
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from headstart.engine.onnx_runtime import onnxruntime_version

ENGINE_VERSION = 5
"""Incremented whenever an engine's output would change in any bit; part of every cache key."""

EXACT_ENGINES = ("torch", "folded", "onnxruntime")
"""Engines that compute in float32, the simplest first."""

LOW_PRECISION_ENGINES = ("autocast", "mixed")

Pixels = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]
Identity = dict[str, str]


class Engine(Protocol):
    """Computes a frozen network: (N, H, W, 3) uint8 -> (N, ...) float32.

    Attributes:
        name: the library and its mode, and the device.
        batch_size: number of images per call for the best speed.
        precision: "float32", "autocast bfloat16", or "mixed" and the fingerprint of its calibration.
        identity: everything besides network and pixels that determines the bits of the output; part of cache keys.
    """

    name: str
    batch_size: int
    precision: str
    identity: Identity

    def __call__(self, pixels: Pixels) -> Features:
        """Computes one batch."""


def engine_identity(engine: str, precision: str, device: torch.device) -> Identity:
    """``Engine.identity`` of an engine by name.

    It includes the processor's model and the number of threads, which determine the order in which PyTorch's kernels
    sum. ONNX Runtime computes each image on one thread, so the number of threads does not matter there.
    """
    is_onnx = engine == "onnxruntime"
    return {
        "engine": engine,
        "precision": precision,
        "library": f"onnxruntime {onnxruntime_version()}" if is_onnx else f"torch {torch.__version__}",
        "machine": device_name(device) if is_onnx else summation_order(device),
        "engine version": str(ENGINE_VERSION),
    }


def device_name(device: torch.device) -> str:
    """Device type, model of the GPU or processor, and the instruction set that PyTorch uses on the CPU."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_model()
    return f"{device.type} {name}, {torch.backends.cpu.get_cpu_capability()}"


def summation_order(device: torch.device) -> str:
    """The model of the device and the number of threads, which determine the order in which kernels sum."""
    return f"{device_name(device)}, {torch.get_num_threads()} threads"


@once
def processor_model() -> str:
    """The processor's model if the system states it: several machines may share one cache."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
