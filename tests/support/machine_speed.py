"""How slow this machine is, beside the one on which the times that commands may take were set.

The limits in seconds hold for two cores with AVX2 at 50 images/s of plain PyTorch (docs/results/2026-11-22-engines.md)
that import PyTorch within 2.4 s (docs/results/2026-11-29-warm-train.md). On a slower machine they are longer by the
same factor; on a faster one they stay as they are.
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import cache

IMPORT_SECONDS = 2.4
"""Of PyTorch in a new process, where the limits were set."""

IMAGES_PER_SECOND = 50.0
"""Of EfficientNet-Lite0 in plain PyTorch with channels last, where the limits were set."""

ROUNDS = 2
IMAGES = 64

_FORWARD = f"""
import time, timm, torch
network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval().to(memory_format=torch.channels_last)
images = torch.rand(16, 3, 224, 224).contiguous(memory_format=torch.channels_last)
with torch.inference_mode():
    network(images)
    started = time.perf_counter()
    for _ in range({IMAGES // 16}):
        network(images)
print({IMAGES} / (time.perf_counter() - started))
"""


@cache
def slowness() -> float:
    """How many times as long as there a command takes here; at least 1."""
    return slowness_of(min(_import_seconds() for _ in range(ROUNDS)), max(_images_per_second() for _ in range(ROUNDS)))


def slowness_of(import_seconds: float, images_per_second: float) -> float:
    """The mean of the factors of interpreter and arithmetic, of which a command takes about equal parts; at least 1."""
    return max(1.0, (import_seconds / IMPORT_SECONDS + IMAGES_PER_SECOND / images_per_second) / 2)


def _import_seconds() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - started


def _images_per_second() -> float:
    done = subprocess.run([sys.executable, "-c", _FORWARD], check=True, capture_output=True, text=True)
    return float(done.stdout)
