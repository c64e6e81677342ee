"""Running the frozen pass: several engines behind one signature.

What is learnt from may run in mixed precision where that agrees with plain PyTorch to ``MIXED_TOLERANCE``; what is
reported, predicted or handed out is always float32 (``exact``).

Which engine runs follows from the processor, the libraries, the network and a sample of the run's own images, never
from a clock: engines differ in the last bits, and measured speeds differ from one minute to the next, so a choice by
speed would give the same command other weights (docs/decisions/engines-by-capability.md). Speeds are measured to say
how long a run will take. Measured on two cores (2026-11, EfficientNet-Lite0, 224 pixels), images a second: with AMX
plain 122, folded 224, ONNX Runtime 258, folded in mixed precision 403; with AVX2 plain 50, folded 75, ONNX Runtime 120
to 142 (LOG.md). ONNX Runtime gets its graph from ``lower`` in a tenth of a second.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache as once
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, fx, nn

from headstart.backbone.pixel_net import PixelNet
from headstart.backbone.split import trace
from headstart.cache.entries import cache_root
from headstart.cache.keys import content_key, describe_key
from headstart.cache.sealed_document import read_document, seal_document
from headstart.engine.conv_bn_fusion import (
    Seen,
    can_fold_for_inference,
    find_units,
    fold_for_inference,
    has_fast_bfloat16,
    watch_inputs,
)
from headstart.engine.device import as_told, resolve_device
from headstart.engine.onnx_lowering import onnx_bytes
from headstart.engine.onnx_runtime import onnxruntime
from headstart.errors import first_line
from headstart.files import write_atomically
from headstart.progress import Progress, SilentProgress

ENGINE_VERSION = 5
"""Counted up whenever an engine would give other bits; part of every cache key."""

EXACT = ("torch", "folded", "onnxruntime")
"""Engines in float32, the simplest first."""

LOW_PRECISION = ("autocast", "mixed")

ENGINES = "engines"
"""Folder of the cache that plans are kept in."""

MEASURE_FROM = 32
"""Images from which on another engine than plain PyTorch is worth the second that it takes to prepare."""

HEAVY = 300_000_000
"""Bytes of weights from which on ONNX Runtime is not tried: it holds them several times while it loads them, and where
there are so many they are in matrix products, which PyTorch does about as fast (VGG-16: 5 GB and 8 s for 1.2 times)."""

TOLERANCE = 1e-3
"""Largest difference of an output from plain PyTorch's, over the largest output, that an exact engine may show."""

MIXED_TOLERANCE = 0.02
"""Root-mean-square difference from plain PyTorch's output, over the root mean square of that, allowed to the others."""

UNDER_WAY = 3
"""Batches that a GPU is given ahead of what is read back."""

SAMPLE = 32
"""Images that engines are calibrated, compared and timed on."""

ROUNDS = 3
"""Runs of each engine when their speeds are measured."""

GUESSED_RATE = 20.0
"""Images a second that times are estimated by where nothing was measured."""

Pixels = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]
Identity = dict[str, str]

_TITLES = {
    "torch": "torch",
    "folded": "torch, folded",
    "mixed": "torch, folded, bfloat16",
    "autocast": "torch, bfloat16 autocast",
}


class Engine(Protocol):
    """(N, H, W, 3) uint8 -> (N, ...) float32.

    Attributes:
        name: what runs, and where.
        batch_size: images that are best given at once.
        precision: "float32", "autocast bfloat16", or "mixed" and the fingerprint of its calibration.
        identity: all that decides the bits of its output, besides the network and the pixels; part of cache keys.
    """

    name: str
    batch_size: int
    precision: str
    identity: Identity

    def __call__(self, pixels: Pixels) -> Features:
        """Runs one batch."""


@final
class TorchEngine:
    """PyTorch, channels last; the network's own layers or a folded body.

    Args:
        net: the frozen pass.
        device: where it runs.
        body: takes the place of ``net.body``.
        kind: "torch", "folded", "mixed" or "autocast".
        precision: see ``Engine``.

    Attributes:
        gives: dtype of the output; to halve it on a GPU spares the processor that.
    """

    def __init__(
        self,
        net: PixelNet,
        device: torch.device,
        *,
        body: nn.Module | None = None,
        kind: str = "torch",
        precision: str = "float32",
    ) -> None:
        self.net = net.to(device)
        self.body = (net.body if body is None else body).to(device).to(memory_format=torch.channels_last)
        self.device = device
        self.name = f"{_TITLES[kind]} ({device})"
        self.precision = precision
        self.identity = engine_identity(kind, precision, device)
        self.batch_size = 16 if device.type == "cpu" else 128
        self.autocast = kind == "autocast"
        self.gives = torch.float32
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, pixels: Pixels) -> Features:
        """Runs one batch."""
        return self.start(pixels)()

    def start(self, pixels: Pixels) -> Callable[[], Features]:
        """Begins a batch; what is returned waits for it.

        On CUDA several may be under way: pictures of the next are copied while one is computed. Elsewhere it is done
        when this returns.
        """
        batch = torch.from_numpy(np.ascontiguousarray(pixels))
        if self._copying is None:
            out: Features = self._run(batch.to(self.device)).cpu().numpy()
            return lambda: out
        source = batch if batch.is_pinned() else batch.pin_memory()
        with torch.cuda.stream(self._copying):
            batch = source.to(self.device, non_blocking=True)
        now = torch.cuda.current_stream(self.device)
        now.wait_stream(self._copying)
        batch.record_stream(now)
        made = self._run(batch)
        back, sound = (
            torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
            for tensor in (made, torch.isfinite(made).all())
        )
        done = now.record_event()

        def wait(_source: Tensor = source) -> Features:  # which must not be freed before it is copied
            done.synchronize()
            if self.gives == torch.float16 and not sound:
                raise OverflowError("a number is too large for half precision")
            features: Features = back.numpy()
            return features

        return wait

    def _run(self, batch: Tensor) -> Tensor:
        low = torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)
        with torch.inference_mode(), as_told(self.device), low:
            return self.net.finish(self.body(self.net.normalised(batch))).to(self.gives)


@final
class OnnxEngine:
    """ONNX Runtime on the CPU, float32: as many images at a time as PyTorch has threads, each on one of them.

    What an image needs then stays in the cache of its core, and no thread waits for another at every layer: 1.0 to 1.6
    times a batch that all threads share, bit for bit the same (measured, LOG.md). Fewer images than threads share them.

    Args:
        net: the frozen pass.

    Raises:
        NotLowered: it does something that ``lower`` does not know.
    """

    name = "onnxruntime (cpu)"
    precision = "float32"

    def __init__(self, net: PixelNet) -> None:
        self.identity = engine_identity("onnxruntime", self.precision, torch.device("cpu"))
        self._graph = onnx_bytes(net)
        self._threads = torch.get_num_threads()
        self._alone = self._session(1)
        self._shared: onnxruntime.InferenceSession | None = None
        self._pool = ThreadPoolExecutor(self._threads)
        self.batch_size = -(-32 // self._threads) * self._threads

    def __call__(self, pixels: Pixels) -> Features:
        """Runs one batch."""
        count = len(pixels)
        if count < self._threads:
            self._shared = self._shared or self._session(self._threads)
            return _run(self._shared, pixels)
        one_by_one = (pixels[place : place + 1] for place in range(count))
        return np.concatenate(list(self._pool.map(partial(_run, self._alone), one_by_one)))

    def _session(self, threads: int) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        return onnxruntime.InferenceSession(self._graph, options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, pixels: Pixels) -> Features:
    out: Features = session.run(None, {"pixels": pixels})[0]
    return out


@dataclass(frozen=True)
class EnginePlan:
    """Which engines run a backbone, on one machine, for one set of training images.

    Attributes:
        exact: the engine for what is reported: "torch", "folded" or "onnxruntime".
        fast: the engine for what is learnt from: one of these, "mixed" or "autocast".
        low_precision_from: number of the first convolution that "mixed" runs in bfloat16.
        rates: engine -> images a second, for estimates of time; nothing else follows from them.
        errors: engine -> difference from plain PyTorch's output on the sample (see the tolerances).
        means: for each convolution, by its name: (C,) float64, the mean of each input channel over the sample.
    """

    exact: str = "torch"
    fast: str = "torch"
    low_precision_from: int = 0
    rates: dict[str, float] = field(default_factory=dict, compare=False)
    errors: dict[str, float] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def rate(self) -> float:
        """Images a second of the fast engine; a guess where nothing was measured."""
        return self.rates.get(self.fast, GUESSED_RATE)

    @property
    def training_rate(self) -> float:
        """Images a second of the fastest of PyTorch's own engines that was measured; they alone train."""
        return max((rate for name, rate in self.rates.items() if name != "onnxruntime"), default=self.rate)

    @property
    def training_dtype(self) -> torch.dtype:
        """bfloat16 where what is learnt from is computed in low precision, else float32."""
        return torch.bfloat16 if self.fast in LOW_PRECISION else torch.float32

    def reason(self, *, exact: bool) -> str:
        """A sentence for the user: the engine, its speed, and how far it is from plain PyTorch."""
        chosen = self.exact if exact else self.fast
        if chosen not in self.rates:
            return f"{chosen}: not measured"
        gap = f", {self.errors[chosen]:.1e} from plain float32" if self.errors.get(chosen) else ""
        return f"{chosen}: {self.rates[chosen]:.0f} images/s{gap}"

    def precision(self, exact: bool) -> str:
        """``Engine.precision`` of the engine that follows from the plan."""
        return self.precision_of(self.exact if exact else self.fast)

    def precision_of(self, engine: str) -> str:
        """``Engine.precision`` of an engine by its name."""
        if engine == "mixed":
            return f"mixed {self.fingerprint()}"
        return "autocast bfloat16" if engine == "autocast" else "float32"

    def identity(self, *, exact: bool, device: str = "auto") -> Identity:
        """``Engine.identity`` of the engine that follows from the plan.

        Raises:
            OptionError: no such device.
        """
        return engine_identity(self.exact if exact else self.fast, self.precision(exact), resolve_device(device))

    def fingerprint(self) -> str:
        """Of all that decides the bits of "mixed"."""
        means = {name: mean.tolist() for name, mean in self.means.items()}
        return describe_key({"from": self.low_precision_from, "means": means, "version": ENGINE_VERSION})


def engine_identity(engine: str, precision: str, where: torch.device) -> Identity:
    """``Engine.identity`` of an engine by its name.

    Threads and the processor's model belong to it: PyTorch's kernels add up in an order that depends on both. ONNX
    Runtime computes each image on one thread.
    """
    by_onnx = engine == "onnxruntime"
    return {
        "engine": engine,
        "precision": precision,
        "library": f"onnxruntime {onnxruntime.__version__}" if by_onnx else f"torch {torch.__version__}",
        "machine": _device_name(where) + ("" if by_onnx else f", {torch.get_num_threads()} threads"),
        "engine version": str(ENGINE_VERSION),
    }


def made_up(height: int, width: int) -> Pixels:
    """(SAMPLE, height, width, 3) smooth coloured noise, always the same: to compare exact engines on and to warm up."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (SAMPLE, 8, 8, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(own).resize((width, height), Image.Resampling.BICUBIC)) for own in small]
    )


def measure_engines(
    net: PixelNet,
    sample: Pixels,
    *,
    count: int,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> EnginePlan:
    """Calibrates mixed precision on a sample of a run's training images and settles which engines run.

    The outcome, all but its rates, is a function of the machine, the network and the sample. It is kept in the cache
    under these three, so that the same run finds it again and no other run does.

    Args:
        net: the whole backbone's frozen pass; what is found holds for its prefixes as well.
        sample: (n, H, W, 3) of the training images, n >= 1, see ``features.extract.pick_sample``.
        count: training images; for few, plain PyTorch runs.
        device: see ``device.resolve_device``.
        cache: where the plan is kept; the default cache where it is not given.
        progress: told of the choice and its reason.

    Raises:
        OptionError: no such device.
    """
    progress = progress or SilentProgress()
    if count < MEASURE_FROM:
        return EnginePlan()
    where = resolve_device(device)
    folder = (cache or cache_root()) / ENGINES
    machine = _plan_about(net, where)
    about = machine | {"sample": content_key(np.ascontiguousarray(sample).tobytes()).hex()}
    file = folder / f"{describe_key(about)}.safetensors"
    plan = kept = read_plan(file, about)
    if plan is None:
        plan = _calibrated(net, sample, where, progress)
    plan = replace(plan, rates=_speeds(net, plan, sample, where, folder, machine, progress))
    if kept is None:
        said = f"for what is learnt from: {plan.reason(exact=False)}"
        progress.say(f"Engine for what is reported: {plan.exact}; {said}.")
    _keep(file, plan, about, progress, known=kept is not None)
    return plan


def preferred_plan(net: PixelNet, *, device: str = "auto") -> EnginePlan:
    """What exact engine is asked for where there is no run whose images could be calibrated on.

    Raises:
        OptionError: no such device.
    """
    return EnginePlan(exact=next(_candidates(net, resolve_device(device), exact=True)))


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
    """The engine of a plan, or the preferred exact one; the next simpler where its output differs from plain PyTorch's.

    Nothing is measured and nothing kept.

    Args:
        net: the frozen pass.
        count: images that it will run on; without a plan, plain PyTorch runs few.
        sample: (n, H, W, 3), n >= 1, to compare the engines on.
        plan: what was found for the run's data; needed unless ``exact``.
        exact: whether the output is reported (float32) or only learnt from (mixed precision is welcome).
        device: see ``device.resolve_device``.
        progress: told where an engine is not used, and why.

    Raises:
        OptionError: no such device.
    """
    progress = progress or SilentProgress()
    where = resolve_device(device)
    plain = TorchEngine(net, where)
    if plan is None and not exact:
        raise ValueError("an engine for what is learnt from needs a plan, see measure_engines")
    if plan is None:
        plan = EnginePlan() if count < MEASURE_FROM else preferred_plan(net, device=device)
    asked = [plan.exact if exact else plan.fast, plan.exact]
    expected: Features | None = None
    tried = set[str]()
    for name in chain(asked, _candidates(net, where, exact=True)):
        if name == "torch":
            break
        if name in tried:
            continue
        tried.add(name)
        expected = run_in_batches(plain, sample) if expected is None else expected
        try:
            engine = _build(name, plan, net, where)
            _compare(engine, sample, expected)
        except Exception as error:  # runtimes and kernels raise their own; another engine can do the work
            progress.say(f"The engine {name!r} is not used: {first_line(error)}.")
        else:
            return engine
    return plain


def run_in_batches(engine: Engine, pixels: Pixels) -> Features:
    """Runs any number of images, at least one.

    Args:
        engine: which one.
        pixels: (N, H, W, 3) uint8.

    Returns:
        (N, ...) float32.
    """
    step = engine.batch_size
    return np.concatenate([engine(pixels[start : start + step]) for start in range(0, len(pixels), step)])


def run_stream(engine: Engine, batches: Iterable[Pixels]) -> Iterator[Features]:
    """Runs batches of images one after the other, each filled up to the engine's batch size.

    Kernels may differ with the size of a batch; filled up, an image's output does not depend on how many came with it.
    """
    size = engine.batch_size
    under_way: deque[tuple[int, Callable[[], Features]]] = deque()
    most = UNDER_WAY if runs_beside(engine) else 1
    for pixels in _read_ahead(batches) if runs_beside(engine) else batches:
        short = -len(pixels) % size
        full = np.concatenate([pixels, np.zeros((short, *pixels.shape[1:]), np.uint8)]) if short else pixels
        under_way.append((len(pixels), _start(engine, full)))
        if len(under_way) == most:
            yield _next(under_way)
    while under_way:
        yield _next(under_way)


def _read_ahead(batches: Iterable[Pixels]) -> Iterator[Pixels]:
    """The same batches, in memory that a GPU reads by itself; threads read and copy the next while one is used."""
    source, pinned = iter(batches), deque[Future[Pixels | None]]()

    def pin(read: Future[Pixels | None]) -> Pixels | None:
        batch = read.result()
        return None if batch is None else torch.from_numpy(np.ascontiguousarray(batch)).pin_memory().numpy()

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as pinner:
        while True:
            while len(pinned) < UNDER_WAY:
                pinned.append(pinner.submit(pin, reader.submit(next, source, None)))
            ready = pinned.popleft().result()
            if ready is None:
                return
            yield ready


def runs_beside(engine: Engine) -> bool:
    """Whether the engine computes elsewhere than on the processor, which can prepare what comes next meanwhile."""
    return isinstance(engine, TorchEngine) and engine.device.type == "cuda"


def _start(engine: Engine, pixels: Pixels) -> Callable[[], Features]:
    if isinstance(engine, TorchEngine) and len(pixels) == engine.batch_size:
        return engine.start(pixels)
    out = run_in_batches(engine, pixels)
    return lambda: out


def _next(under_way: deque[tuple[int, Callable[[], Features]]]) -> Features:
    count, wait = under_way.popleft()
    return wait()[:count]


def _candidates(net: PixelNet, where: torch.device, *, exact: bool) -> Iterator[str]:
    """Engines that may run the network there, the preferred first; plain PyTorch is the last.

    By what the machine and the network are, from the measurements in LOG.md: what has instructions for bfloat16 runs it
    1.3 to 1.8 times as fast as ONNX Runtime, and that is 1.0 to 1.9 times as fast as folding.
    """
    folds = can_fold_for_inference(where)
    if not exact and has_fast_bfloat16(where):
        low = ["mixed"] if folds and _has_units(net) else []
        if where.type == "cuda" or _weight_of(net, nn.Linear):
            low.insert(0 if _weight_of(net, nn.Linear) > _weight_of(net, nn.Conv2d) else len(low), "autocast")
        yield from low
    if where.type == "cpu" and _weight(net) < HEAVY:
        yield "onnxruntime"
    if folds and _has_units(net):
        yield "folded"
    yield "torch"


def _calibrated(net: PixelNet, sample: Pixels, where: torch.device, progress: Progress) -> EnginePlan:
    """For each use the first candidate whose output agrees with plain PyTorch's on the sample."""
    expected = run_in_batches(TorchEngine(net, where), sample)
    plan, refused = EnginePlan(), set[str]()
    for exact in (True, False):
        for name in _candidates(net, where, exact=exact):
            if name in refused:
                continue
            if name != "torch" and name not in plan.errors:
                try:
                    found = _mixed_plan(plan, net, sample, expected, where) if name == "mixed" else plan
                    error = _compare(_build(name, found, net, where), sample, expected)
                    plan = replace(found, errors=found.errors | {name: error})
                except Exception as error:  # kernels that this processor or this PyTorch lacks: no engine for here
                    refused.add(name)
                    progress.say(f"The engine {name!r} is not used: {first_line(error)}.")
                    continue
            plan = replace(plan, exact=name) if exact else replace(plan, fast=name)
            break
    return plan


def _speeds(
    net: PixelNet,
    plan: EnginePlan,
    sample: Pixels,
    where: torch.device,
    folder: Path,
    machine: dict[str, Any],
    progress: Progress,
) -> dict[str, float]:
    """Images a second of the plan's engines and of one that trains; measured once for a backbone and a machine."""
    trains = next(name for name in chain([plan.fast], _candidates(net, where, exact=True)) if name != "onnxruntime")
    names = list(dict.fromkeys([plan.exact, plan.fast, trains]))
    about = machine | {"speeds": "images a second"}
    file = folder / f"{describe_key(about)}.safetensors"
    found = read_plan(file, about)
    rates = {} if found is None else found.rates
    if any(name not in rates for name in names):
        engines = {name: _build(name, plan, net, where) for name in names}
        rates = rates | _rates(engines, sample)
        _keep(file, EnginePlan(rates=rates), about, progress, known=False)
    else:
        _keep(file, EnginePlan(rates=rates), about, progress, known=True)
    return {name: rates[name] for name in names}


def _mixed_plan(plan: EnginePlan, net: PixelNet, sample: Pixels, expected: Features, where: torch.device) -> EnginePlan:
    """The fewest convolutions in float32, from the first on, with which the rest may run in bfloat16."""
    traced = _traced(net)
    units = find_units(traced)
    seen = watch_inputs(traced, units, net.normalised(torch.from_numpy(sample).to(where)))
    plan = replace(plan, means={name: see.mean.cpu() for name, see in zip(_unit_names(traced), seen, strict=True)})
    for first in [0, *_narrow([see.shape for see in seen])[:4]]:
        body = fold_for_inference(traced, units, seen, low_precision_from=first)
        given = run_in_batches(TorchEngine(net, where, body=body), sample)
        gap, allowed = _difference(given, expected, exact=False)
        if gap <= allowed / 2:  # other images may differ by more than the sample
            return replace(plan, low_precision_from=first)
    raise ArithmeticError(f"bfloat16 is too coarse for this backbone (an error of {gap:.1e})")


def _narrow(shapes: list[torch.Size]) -> list[int]:
    """Where an activation is smaller than those before and behind it; vectors, as in squeeze-and-excite, aside."""
    maps = [i for i, shape in enumerate(shapes) if shape[2:].numel() > 1]
    sizes = [shapes[i][1:].numel() for i in maps]
    return [maps[i] for i in range(1, len(maps) - 1) if sizes[i - 1] >= sizes[i] < sizes[i + 1]]


def _build(name: str, plan: EnginePlan, net: PixelNet, where: torch.device) -> Engine:
    if name == "torch":
        return TorchEngine(net, where)
    if name == "onnxruntime":
        return OnnxEngine(net)
    if name == "autocast":
        return TorchEngine(net, where, kind=name, precision=plan.precision_of(name))
    traced = _traced(net)
    units = find_units(traced)
    preprocessing = net.backbone.preprocessing
    blank = torch.zeros((1, preprocessing.height, preprocessing.width, 3), dtype=torch.uint8)
    seen = watch_inputs(traced, units, net.normalised(blank.to(where)))
    if name == "folded":
        return TorchEngine(net, where, body=fold_for_inference(traced, units, seen), kind=name)
    known = [Seen(see.shape, plan.means[unit]) for see, unit in zip(seen, _unit_names(traced), strict=True)]
    body = fold_for_inference(traced, units, known, low_precision_from=plan.low_precision_from)
    return TorchEngine(net, where, body=body, kind=name, precision=plan.precision_of(name))


def _traced(net: PixelNet) -> fx.GraphModule:
    return net.body if isinstance(net.body, fx.GraphModule) else trace(net.body)


def _weight(net: PixelNet) -> int:
    """Bytes of the weights that it uses, about."""
    return sum(tensor.nbytes for tensor in net.body.parameters())


def _weight_of(net: PixelNet, kind: type[nn.Module]) -> int:
    """Bytes of the weights in layers of one kind."""
    layers = (module for module in net.body.modules() if isinstance(module, kind))
    return sum(tensor.nbytes for layer in layers for tensor in layer.parameters(recurse=False))


def _has_units(net: PixelNet) -> bool:
    """Whether folding would save a step anywhere."""
    try:
        return any(unit.norm is not None or unit.activation is not None for unit in find_units(_traced(net)))
    except Exception:  # torch.fx raises whatever the network's own code raises when traced
        return False


def _unit_names(traced: fx.GraphModule) -> list[str]:
    """The convolutions' names in the backbone, whatever is wrapped around it."""
    return [str(unit.nodes[0].target).removeprefix("module.") for unit in find_units(traced)]


def _compare(engine: Engine, sample: Pixels, expected: Features) -> float:
    """How far the output is from what is expected.

    Raises:
        ArithmeticError: too far.
    """
    gap, allowed = _difference(run_in_batches(engine, sample), expected, exact=engine.precision == "float32")
    if gap > allowed:
        raise ArithmeticError(f"its output differs from plain PyTorch's by {gap:.1e}, more than {allowed:.0e}")
    return gap


def _difference(given: Features, expected: Features, *, exact: bool) -> tuple[float, float]:
    """(how far apart, how far they may be)."""
    allowed = TOLERANCE if exact else MIXED_TOLERANCE
    if given.shape != expected.shape or not np.isfinite(given).all() or not np.isfinite(expected).all():
        return float("inf"), allowed
    apart, whole = (np.abs(x, dtype=np.float64).ravel() for x in (given - expected, expected))
    size: Callable[[npt.NDArray[np.float64]], Any] = np.max if exact else np.linalg.norm
    return float(size(apart)) / max(1e-12, float(size(whole))), allowed


def _rates(engines: dict[str, Engine], sample: Pixels) -> dict[str, float]:
    """Images a second: the best run of each, in turns, so that whatever else the machine does slows all alike."""
    rates = dict.fromkeys(engines, 0.0)
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            pixels = np.resize(sample, (engine.batch_size, *sample.shape[1:]))
            started = time.perf_counter()
            engine(pixels)
            rates[name] = max(rates[name], len(pixels) / (time.perf_counter() - started))
    return rates


def _plan_about(net: PixelNet, where: torch.device) -> dict[str, Any]:
    return net.describe() | {
        "engine version": ENGINE_VERSION,
        "input": [net.backbone.preprocessing.height, net.backbone.preprocessing.width],
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "device": f"{_device_name(where)}, {torch.get_num_threads()} threads",
    }


def _device_name(where: torch.device) -> str:
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else _processor()
    return f"{where.type} {name}, {torch.backends.cpu.get_cpu_capability()}"


@once
def _processor() -> str:
    """The processor's model, where the system tells it: one cache may serve several machines."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _keep(file: Path, plan: EnginePlan, about: dict[str, Any], progress: Progress, *, known: bool) -> None:
    try:
        if known:
            os.utime(file)
        else:
            write_plan(file, plan, about)
    except OSError as error:
        if not known:
            progress.say(f"The choice of engines cannot be kept in {file.parent} ({error.strerror or error}).")


def write_plan(file: Path, plan: EnginePlan, about: dict[str, Any] | None = None) -> None:
    """Keeps a plan; ``read_plan`` gives it back.

    Args:
        file: a safetensors file with the means as tensors and the rest as JSON in its metadata.
        plan: the plan.
        about: what it was found for.
    """
    document = {name: value for name, value in vars(plan).items() if name != "means"}
    told = {"about": json.dumps(about or {}, sort_keys=True), "plan": json.dumps(document, sort_keys=True)}
    means = {name: mean.contiguous() for name, mean in plan.means.items()}
    write_atomically(file, save(means, told | {"digest": seal_document(save(means, told))}))


def read_plan(file: Path, about: dict[str, Any] | None = None) -> EnginePlan | None:
    """A plan from its file.

    Args:
        file: as ``write_plan`` writes it.
        about: what it must have been found for.

    Returns:
        None where there is none, where it was found for something else, or where it is damaged.
    """
    told = read_document(file)
    if told.get("about") != json.dumps(about or {}, sort_keys=True):
        return None
    try:
        plan = EnginePlan(**json.loads(told["plan"]), means=load(file.read_bytes()))
        return plan if _is_sound(plan) else None
    except (OSError, SafetensorError, LookupError, ValueError, TypeError, AttributeError, RuntimeError):
        return None


def _is_sound(plan: EnginePlan) -> bool:
    """Whether the values are of the right types: a run's folder may come from anywhere."""
    figures = [*plan.rates.items(), *plan.errors.items()]
    return (
        plan.exact in EXACT
        and plan.fast in (*EXACT, *LOW_PRECISION)
        and type(plan.low_precision_from) is int
        and all(name in (*EXACT, *LOW_PRECISION) and math.isfinite(value) for name, value in figures)
        and all(rate > 0 for rate in plan.rates.values())
        and all(mean.ndim == 1 and mean.dtype == torch.float64 for mean in plan.means.values())
    )
