"""Running the frozen pass: several engines, one signature, chosen by measurement, compared before they are trusted.

What is learnt from may run in mixed precision where that agrees with plain PyTorch to ``MIXED_TOLERANCE``; what is
reported, predicted or handed out is always float32 (``exact``). Measured on two cores (2026-11, EfficientNet-Lite0, 224
pixels), images a second: with AVX-512 plain 48, folded 165, ONNX Runtime 170, folded in mixed precision 290; with AVX2
plain 50, folded 75, ONNX Runtime 120 to 142 (LOG.md). The latter gets its graph from ``lower`` in a tenth of a second.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, fx, nn

from headstart.backbone.device import as_told, keep_freed_memory, resolve_device
from headstart.backbone.fold import (
    Seen,
    can_fold_for_inference,
    find_units,
    fold_for_inference,
    has_bfloat16,
    watch_inputs,
)
from headstart.backbone.forward import PixelNet
from headstart.backbone.lower import onnx_bytes
from headstart.backbone.split import trace
from headstart.errors import first_line
from headstart.files import write_atomically
from headstart.progress import Progress, SilentProgress
from headstart.store import cache_root, describe_key

ENGINE_VERSION = 4
EXACT = ("torch", "folded", "onnxruntime")
"""Engines in float32, the simplest first."""

LOW_PRECISION = ("autocast", "mixed")

MEASURE_FROM = 32
"""Images from which on the choice of an engine is worth a second or two; below, plain PyTorch."""

HEAVY = 300_000_000
"""Bytes of weights from which on ONNX Runtime is not tried: it holds them several times while it loads them, and where
there are so many they are in matrix products, which PyTorch does about as fast (VGG-16: 5 GB and 8 s for 1.2 times)."""

TOLERANCE = 1e-3
"""Largest difference of an output from plain PyTorch's, over the largest output, that an exact engine may show."""

MIXED_TOLERANCE = 0.02
"""Root-mean-square difference from plain PyTorch's output, over the root mean square of that, allowed to the others."""

UNDER_WAY = 3
"""Batches that a GPU is given ahead of what is read back."""

SAMPLE = 16
"""Images that engines are measured and compared on."""

ROUNDS = 4
"""Runs of each engine when they are measured."""

HOPELESS = 1.5
"""An engine that took so many times as long as the fastest in the first half of these is not run again."""

FASTER_BY = 1.1
"""A simpler engine is kept unless another is so many times as fast."""

GUESSED_RATE = 20.0
"""Images a second that times are estimated by where nothing was measured."""

Pixels = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]


class Engine(Protocol):
    """(N, H, W, 3) uint8 -> (N, ...) float32.

    Attributes:
        name: what runs, and where.
        batch_size: images that are best given at once.
        precision: "float32"; or "mixed" and a fingerprint of what was measured, when outputs are not comparable bit
            for bit.
    """

    name: str
    batch_size: int
    precision: str

    def __call__(self, pixels: Pixels) -> Features:
        """Runs one batch."""


@final
class TorchEngine:
    """PyTorch, channels last; the network's own layers or a folded body.

    Args:
        net: the frozen pass.
        device: where it runs.
        body: takes the place of ``net.body``.
        name: of the engine, without the device.
        precision: see ``Engine``.
        autocast: run in bfloat16 what PyTorch's autocast knows to be safe.

    Attributes:
        gives: dtype of the output; to halve it on a GPU spares the processor that.
    """

    def __init__(
        self,
        net: PixelNet,
        device: torch.device,
        *,
        body: nn.Module | None = None,
        name: str = "torch",
        precision: str = "float32",
        autocast: bool = False,
    ) -> None:
        self.net = net.to(device)
        self.body = (net.body if body is None else body).to(device).to(memory_format=torch.channels_last)
        self.device = device
        self.name = f"{name} ({device})"
        self.precision = precision
        self.batch_size = 16 if device.type == "cpu" else 128
        self.autocast = autocast
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
    """What was measured of a backbone on this machine, and what follows.

    Attributes:
        exact: the engine for what is reported: "torch", "folded" or "onnxruntime".
        fast: the engine for what is learnt from: one of these, "mixed" or "autocast".
        low_precision_from: number of the first convolution that "mixed" runs in bfloat16.
        rates: engine -> images a second, of those that can be used.
        errors: engine -> difference from plain PyTorch's output (see the tolerances).
        means: for each convolution, by its name: (C,) float64, the mean of each input channel over the sample.
    """

    exact: str = "torch"
    fast: str = "torch"
    low_precision_from: int = 0
    rates: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def rate(self) -> float:
        """Images a second of the fast engine; a guess where nothing was measured."""
        return self.rates.get(self.fast, GUESSED_RATE)

    @property
    def training_rate(self) -> float:
        """As ``rate``, of PyTorch's own engines, which alone train."""
        return self._in_torch().rate

    @property
    def training_dtype(self) -> torch.dtype:
        """bfloat16 where that is faster here and harmless, else float32; told among PyTorch's own engines."""
        return torch.bfloat16 if self._in_torch().fast in LOW_PRECISION else torch.float32

    def _in_torch(self) -> EnginePlan:
        return _decide(replace(self, rates={n: rate for n, rate in self.rates.items() if n != "onnxruntime"}))

    def reason(self, *, exact: bool) -> str:
        """A sentence for the user: what was chosen, and what the others did."""
        chosen = self.exact if exact else self.fast
        if not self.rates:
            return f"{chosen}: not measured"
        others = ", ".join(f"{name} {rate:.0f}" for name, rate in self.rates.items() if name != chosen and rate)
        gap = f", {self.errors[chosen]:.1e} from plain float32" if self.errors.get(chosen) else ""
        return f"{chosen}: {self.rates[chosen]:.0f} images/s{gap}" + (f" (measured: {others})" if others else "")

    def precision(self, exact: bool) -> str:
        """``Engine.precision`` of the engine that follows from the plan."""
        return self.precision_of(self.exact if exact else self.fast)

    def precision_of(self, engine: str) -> str:
        """``Engine.precision`` of an engine by its name."""
        if engine == "mixed":
            return f"mixed {self.fingerprint()}"
        return "autocast bfloat16" if engine == "autocast" else "float32"

    def fingerprint(self) -> str:
        """Of all that decides the bits of "mixed"."""
        means = {name: mean.tolist() for name, mean in self.means.items()}
        return describe_key({"from": self.low_precision_from, "means": means, "version": ENGINE_VERSION})


def measure_engines(
    net: PixelNet,
    sample: Pixels,
    *,
    count: int,
    exact: bool = False,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> EnginePlan:
    """Runs a few images through every engine that may pay, once for a backbone and a machine; the result is kept.

    Args:
        net: the whole backbone's frozen pass; what is found holds for its prefixes as well.
        sample: (n, H, W, 3) of the images to come, n >= 1.
        count: images to come; few are not worth the measuring.
        exact: measure the exact engines alone, where nothing is known yet: for a sample that is only made up, which
            tells how fast they are and nothing of what rounding does.
        device: see ``device.resolve_device``.
        cache: where the plan is kept; the default cache where it is not given.
        progress: told of the choice and its reason.

    Raises:
        OptionError: no such device.
    """
    progress = progress or SilentProgress()
    where = resolve_device(device)
    about = _plan_about(net, where)
    file = _plan_file(about, cache)
    plan = kept = read_plan(file)
    if plan is None and exact:
        file = _plan_file(about | {"engines": EXACT}, cache)
        plan = kept = read_plan(file)
    if plan is None and count < MEASURE_FROM:
        return EnginePlan()
    if plan is None:
        plan = _measure(net, sample[:SAMPLE], where, progress, exact)
    if plan is not kept:
        learnt = "" if exact else f"; for what is learnt from: {plan.reason(exact=False)}"
        progress.say(f"Engine for what is reported: {plan.reason(exact=True) if exact else plan.exact}{learnt}.")
    _keep_plan(file, plan, progress, known=plan is kept)
    return plan


def choose_engine(
    net: PixelNet,
    *,
    count: int,
    sample: Pixels,
    plan: EnginePlan | None = None,
    exact: bool = True,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Engine:
    """The fastest engine for so many images whose output agrees with plain PyTorch's.

    Args:
        net: the frozen pass.
        count: images that it will run on.
        sample: (n, H, W, 3) of them, n >= 1, to measure and compare the engines on.
        plan: what was measured; measured here where it is not given.
        exact: whether the output is reported (float32) or only learnt from (mixed precision is welcome).
        device: see ``device.resolve_device``.
        cache: where plans are kept; the default cache where it is not given.
        progress: told of the choice and its reason.

    Raises:
        OptionError: no such device.
    """
    progress = progress or SilentProgress()
    keep_freed_memory()
    where = resolve_device(device)
    if plan is None:
        plan = measure_engines(net, sample, count=count, device=device, cache=cache, progress=progress)
    plain = TorchEngine(net, where)
    if exact and count < MEASURE_FROM:
        return plain
    for name in dict.fromkeys([plan.exact if exact else plan.fast, plan.exact, _best(plan.rates, ["folded"])]):
        if name == "torch":
            break
        try:
            engine = _build(name, plan, net, where)
            _compare(engine, sample[:SAMPLE], plain(sample[:SAMPLE]))
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


def _measure(net: PixelNet, sample: Pixels, where: torch.device, progress: Progress, exact: bool) -> EnginePlan:
    keep_freed_memory()
    plain = TorchEngine(net, where)
    expected = plain(sample)
    candidates = ["folded"] if can_fold_for_inference(where) and _has_units(net) else []
    if has_bfloat16(where):
        candidates += ["mixed"] if candidates else []
        if where.type == "cuda" or any(isinstance(m, nn.Linear) for m in net.body.modules()):
            candidates.append("autocast")
    if where.type == "cpu" and _weight(net) < HEAVY:
        candidates.append("onnxruntime")
    if exact:
        candidates = [name for name in candidates if name in EXACT]
    plan, ready = EnginePlan(), dict[str, Engine](torch=plain)
    for name in candidates:
        try:
            found = _mixed_plan(plan, net, sample, expected, where) if name == "mixed" else plan
            engine = _build(name, found, net, where)
            plan = replace(found, errors=found.errors | {name: _compare(engine, sample, expected)})
        except Exception as error:  # kernels that this processor or this PyTorch lacks: not an engine for here
            progress.say(f"The engine {name!r} is not used: {first_line(error)}.")
        else:
            ready[name] = engine
    return _decide(replace(plan, rates=_rates(ready, sample)))


def _decide(plan: EnginePlan) -> EnginePlan:
    fast = _best(plan.rates, ["torch", "folded", *LOW_PRECISION, "onnxruntime"])  # last: float32 must repay itself
    return replace(plan, exact=_best(plan.rates, EXACT), fast=fast)


def _best(rates: dict[str, float], names: Sequence[str]) -> str:
    chosen = "torch"
    for name in names:
        if rates.get(name, 0.0) > FASTER_BY * rates.get(chosen, 0.0):
            chosen = name
    return chosen


def _mixed_plan(plan: EnginePlan, net: PixelNet, sample: Pixels, expected: Features, where: torch.device) -> EnginePlan:
    """The fewest convolutions in float32, from the first on, with which the rest may run in bfloat16."""
    traced = _traced(net)
    units = find_units(traced)
    seen = watch_inputs(traced, units, net.normalised(torch.from_numpy(sample).to(where)))
    plan = replace(plan, means={name: see.mean.cpu() for name, see in zip(_unit_names(traced), seen, strict=True)})
    for first in [0, *_narrow([see.shape for see in seen])[:4]]:
        body = fold_for_inference(traced, units, seen, low_precision_from=first)
        gap, allowed = _difference(TorchEngine(net, where, body=body)(sample), expected, exact=False)
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
        precision = plan.precision_of(name)
        return TorchEngine(net, where, name="torch, bfloat16 autocast", precision=precision, autocast=True)
    traced = _traced(net)
    units = find_units(traced)
    preprocessing = net.backbone.preprocessing
    blank = torch.zeros((1, preprocessing.height, preprocessing.width, 3), dtype=torch.uint8)
    seen = watch_inputs(traced, units, net.normalised(blank.to(where)))
    if name == "folded":
        return TorchEngine(net, where, body=fold_for_inference(traced, units, seen), name="torch, folded")
    known = [Seen(see.shape, plan.means[unit]) for see, unit in zip(seen, _unit_names(traced), strict=True)]
    body = fold_for_inference(traced, units, known, low_precision_from=plan.low_precision_from)
    return TorchEngine(net, where, body=body, name="torch, folded, bfloat16", precision=plan.precision_of(name))


def _traced(net: PixelNet) -> fx.GraphModule:
    return net.body if isinstance(net.body, fx.GraphModule) else trace(net.body)


def _weight(net: PixelNet) -> int:
    """Bytes of the weights that it uses, about."""
    return sum(tensor.nbytes for tensor in net.body.parameters())


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
    gap, allowed = _difference(engine(sample), expected, exact=engine.precision == "float32")
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
    for turn in range(ROUNDS):
        least = max(rates.values()) / HOPELESS if turn >= ROUNDS // 2 else 0.0
        for name in [name for name, rate in rates.items() if rate >= least]:
            engine = engines[name]
            pixels = np.resize(sample, (engine.batch_size, *sample.shape[1:]))
            started = time.perf_counter()
            engine(pixels)
            rates[name] = max(rates[name], len(pixels) / (time.perf_counter() - started))
    return rates


def _plan_about(net: PixelNet, where: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else _processor()
    return net.describe() | {
        "engine": ENGINE_VERSION,
        "input": [net.backbone.preprocessing.height, net.backbone.preprocessing.width],
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "device": f"{where.type} {name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
    }


def _processor() -> str:
    """The processor's model, where the system tells it: one cache may serve several machines."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _keep_plan(file: Path, plan: EnginePlan, progress: Progress, *, known: bool) -> None:
    try:
        if known:
            os.utime(file)
        else:
            write_atomically(file, _plan_bytes(plan))
    except OSError as error:
        if not known:
            progress.say(f"The choice of an engine cannot be kept in {file.parent} ({error.strerror or error}).")


def write_plan(file: Path, plan: EnginePlan) -> None:
    """Keeps what was measured; ``read_plan`` gives it back."""
    write_atomically(file, _plan_bytes(plan))


def _plan_bytes(plan: EnginePlan) -> bytes:
    document = {name: value for name, value in vars(plan).items() if name != "means"}
    return save({name: mean.contiguous() for name, mean in plan.means.items()}, {"plan": json.dumps(document)})


def read_plan(file: Path) -> EnginePlan | None:
    """None where there is none, or none that can be understood."""
    try:
        with safe_open(file, framework="pt") as opened:
            document = json.loads(opened.metadata()["plan"])
            plan = EnginePlan(**document, means={name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
        sound = (
            plan == _decide(plan) and isinstance(plan.low_precision_from, int) and set(plan.errors) <= set(plan.rates)
        )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError):
        return None
    return plan if sound and plan.rates.get("torch") else None


def _plan_file(about: dict[str, Any], cache: Path | None) -> Path:
    return cache_root(cache) / "engines" / f"{describe_key(about)}.safetensors"
