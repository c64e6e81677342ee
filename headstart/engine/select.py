"""Engine selection: which inference engine computes the frozen forward pass.

Reported results, predictions and exports are always computed in float32 (``exact``). Training features may be computed
in low precision if that agrees with plain PyTorch to ``agreement.MIXED_TOLERANCE``.

The choice depends on the processor, the libraries, the network and a sample of the run's images, but never on measured
speed: engines differ in the last bits, and speed varies from minute to minute, so a choice by speed would give the same
command different weights (docs/decisions/engines-by-capability.md). Speed is measured to estimate the time of a run.
Measured on two cores (2026-11, EfficientNet-Lite0, 224 pixels), in images per second: with AMX plain 122, folded 224,
ONNX Runtime 258, folded in mixed precision 403; with AVX2 plain 50, folded 75, ONNX Runtime 120 to 142 (docs/results).
"""

from __future__ import annotations

from itertools import chain

import numpy as np
from PIL import Image

from headstart.backbone.pixel_net import PixelNet
from headstart.engine.agreement import require_agreement
from headstart.engine.candidates import build_engine, candidates
from headstart.engine.device import resolve_device
from headstart.engine.interface import Engine, Features, Pixels
from headstart.engine.measure import MEASURE_FROM
from headstart.engine.plan import EnginePlan
from headstart.engine.streaming import run_in_batches
from headstart.engine.torch_engine import TorchEngine
from headstart.errors import first_line
from headstart.progress import Progress, SilentProgress

SAMPLE_SIZE = 32
"""Images that engines are calibrated, compared and timed on."""


def synthetic_sample(height: int, width: int) -> Pixels:
    """(SAMPLE_SIZE, height, width, 3) smooth coloured noise, always the same, to compare engines on and to warm up."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (SAMPLE_SIZE, 8, 8, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)) for noise in small]
    )


def default_plan(net: PixelNet, count: int, *, device: str = "auto") -> EnginePlan:
    """The plan without training images to calibrate on: plain PyTorch for few images, else the preferred exact engine.

    Raises:
        OptionError: no such device.
    """
    if count < MEASURE_FROM:
        return EnginePlan()
    return EnginePlan(exact=next(candidates(net, resolve_device(device), exact=True)))


def choose_engine(
    net: PixelNet,
    *,
    count: int,
    sample: Pixels,
    plan: EnginePlan | None = None,
    exact: bool = True,
    device: str = "auto",
    progress: Progress | None = None,
) -> Engine:
    """The engine of a plan, or the preferred exact one; a simpler one if its output differs from plain PyTorch's.

    Nothing is measured or stored.

    Args:
        net: the frozen network.
        count: number of images to compute; without a plan, small numbers are computed by plain PyTorch.
        sample: (n, H, W, 3), n >= 1, to compare the engines on.
        plan: of the run; required unless ``exact``.
        exact: True for reported results (float32), False for training features (low precision is allowed).
        device: see ``device.resolve_device``.
        progress: receives a message if an engine is not used.

    Raises:
        OptionError: no such device.
    """
    progress = progress or SilentProgress()
    target = resolve_device(device)
    plain = TorchEngine(net, target)
    if plan is None and not exact:
        raise ValueError("an engine for training features needs a plan, see measure_engines")
    if plan is None:
        plan = default_plan(net, count, device=device)
    preferred = [plan.exact if exact else plan.fast, plan.exact]
    expected: Features | None = None
    tried = set[str]()
    for name in chain(preferred, candidates(net, target, exact=True)):
        if name == "torch":
            break
        if name in tried:
            continue
        tried.add(name)
        expected = run_in_batches(plain, sample) if expected is None else expected
        try:
            engine = build_engine(name, plan, net, target)
            require_agreement(engine, sample, expected)
        except Exception as error:  # runtimes and kernels raise exceptions of their own; another engine can be used
            progress.say(f"Engine {name!r} is not used: {first_line(error)}.")
        else:
            return engine
    return plain
