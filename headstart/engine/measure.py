"""Measured engine plan: calibrates low precision on a sample, chooses the engines, and measures their speed."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart.backbone.pixel_net import PixelNet
from headstart.cache.entries import ENGINE_PLANS, cache_root
from headstart.cache.keys import content_key, describe_key
from headstart.engine.agreement import require_agreement
from headstart.engine.candidates import build_engine, calibrate_mixed, candidates
from headstart.engine.device import resolve_device
from headstart.engine.interface import ENGINE_VERSION, Engine, Pixels, device_name
from headstart.engine.onnx_runtime import onnxruntime_version
from headstart.engine.plan import EnginePlan, read_plan, write_plan
from headstart.engine.streaming import run_in_batches
from headstart.engine.torch_engine import TorchEngine
from headstart.errors import first_line
from headstart.progress import Progress, SilentProgress

MEASURE_FROM = 32
"""Number of images from which on preparing another engine than plain PyTorch (about a second) pays off."""

ENGINE_SECONDS = 1.5
"""Time to build an engine and to compare it with plain PyTorch, whatever the number of images."""

ROUNDS = 3
"""Runs of each engine when speed is measured."""


def measure_engines(
    net: PixelNet,
    sample: Pixels,
    *,
    count: int,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> EnginePlan:
    """Calibrates low precision on a sample of a run's training images and chooses the engines.

    Except for its rates, the plan is a function of machine, network and sample. It is cached under these three, so the
    same run finds it again and no other run does.

    Args:
        net: the frozen pass of the whole backbone; the plan is also valid for its prefixes.
        sample: (n, H, W, 3) of the training images, n >= 1, see ``features.extract.pick_sample``.
        count: number of training images; below ``MEASURE_FROM`` the plan is plain PyTorch.
        device: see ``device.resolve_device``.
        cache: the cache folder; default ``cache_root()``.
        progress: receives messages about the choice.

    Raises:
        OptionError: no such device.
    """
    progress = progress or SilentProgress()
    if count < MEASURE_FROM:
        return EnginePlan()
    target = resolve_device(device)
    folder = (cache or cache_root()) / ENGINE_PLANS
    machine = _machine_and_network(net, target)
    about = machine | {"sample": content_key(np.ascontiguousarray(sample).tobytes()).hex()}
    file = folder / f"{describe_key(about)}.safetensors"
    cached = read_plan(file, about)
    plan = _choose(net, sample, target, progress) if cached is None else cached
    plan = replace(plan, rates=_speeds(net, plan, sample, target, folder, machine, progress))
    if cached is None:
        progress.say(f"Engine for reported results: {plan.exact}; for training: {plan.reason(exact=False)}.")
    _store(file, plan, about, progress, is_cached=cached is not None)
    return plan


def _choose(net: PixelNet, sample: Pixels, device: torch.device, progress: Progress) -> EnginePlan:
    """For reported results and for training, the first candidate that agrees with plain PyTorch on the sample."""
    expected = run_in_batches(TorchEngine(net, device), sample)
    plan, rejected = EnginePlan(), set[str]()
    for exact in (True, False):
        for name in candidates(net, device, exact=exact):
            if name in rejected:
                continue
            if name != "torch" and name not in plan.errors:
                try:
                    tried = calibrate_mixed(plan, net, sample, expected, device) if name == "mixed" else plan
                    error = require_agreement(build_engine(name, tried, net, device), sample, expected)
                    plan = replace(tried, errors=tried.errors | {name: error})
                except Exception as error:  # for example a kernel that this processor or PyTorch lacks
                    rejected.add(name)
                    progress.say(f"Engine {name!r} is not used: {first_line(error)}.")
                    continue
            plan = replace(plan, exact=name) if exact else replace(plan, fast=name)
            break
    return plan


def _speeds(
    net: PixelNet,
    plan: EnginePlan,
    sample: Pixels,
    device: torch.device,
    folder: Path,
    machine: dict[str, Any],
    progress: Progress,
) -> dict[str, float]:
    """Images per second of the plan's engines and of one that trains; measured once per backbone and machine."""
    trains = next(name for name in chain([plan.fast], candidates(net, device, exact=True)) if name != "onnxruntime")
    names = list(dict.fromkeys([plan.exact, plan.fast, trains]))
    about = machine | {"speeds": "images a second"}
    file = folder / f"{describe_key(about)}.safetensors"
    cached = read_plan(file, about)
    rates = {} if cached is None else cached.rates
    is_cached = all(name in rates for name in names)
    if not is_cached:
        rates = rates | measure_rates({name: build_engine(name, plan, net, device) for name in names}, sample)
    _store(file, EnginePlan(rates=rates), about, progress, is_cached=is_cached)
    return {name: rates[name] for name in names}


def measure_rates(engines: dict[str, Engine], sample: Pixels) -> dict[str, float]:
    """Images per second: the best run of each engine, interleaved so that other load slows every engine equally."""
    rates = dict.fromkeys(engines, 0.0)
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            pixels = np.resize(sample, (engine.batch_size, *sample.shape[1:]))
            started = time.perf_counter()
            engine(pixels)
            rates[name] = max(rates[name], len(pixels) / (time.perf_counter() - started))
    return rates


def _machine_and_network(net: PixelNet, device: torch.device) -> dict[str, Any]:
    return net.describe() | {
        "engine version": ENGINE_VERSION,
        "input": [net.backbone.preprocessing.height, net.backbone.preprocessing.width],
        "torch": torch.__version__,
        "onnxruntime": onnxruntime_version(),
        "device": f"{device_name(device)}, {torch.get_num_threads()} threads",
    }


def _store(file: Path, plan: EnginePlan, about: dict[str, Any], progress: Progress, *, is_cached: bool) -> None:
    """Writes a plan, or updates the time of last use of one that is cached."""
    try:
        if is_cached:
            os.utime(file)
        else:
            write_plan(file, plan, about)
    except OSError as error:
        if not is_cached:
            progress.say(f"The engine plan cannot be stored in {file.parent} ({error.strerror or error}).")
