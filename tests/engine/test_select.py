"""Which engine runs, and that what it gives can be relied on."""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from headstart.backbone.feature_spec import FeatureSpec
from headstart.backbone.pixel_net import ActivationNet, FeatureNet, PixelNet, TappedNet
from headstart.backbone.split import SplittableBackbone
from headstart.backbone.weights import Backbone, random_backbone
from headstart.cache.sealed_document import seal_document
from headstart.engine import agreement, candidates, interface, measure, onnx_engine, onnx_lowering
from headstart.engine.agreement import difference
from headstart.engine.conv_bn_fusion import can_fold_for_inference
from headstart.engine.device import give_back_freed_memory, keep_freed_memory
from headstart.engine.interface import engine_identity
from headstart.engine.measure import measure_engines
from headstart.engine.onnx_engine import OnnxEngine
from headstart.engine.onnx_graph import NotLowered
from headstart.engine.plan import DEFAULT_RATE, EnginePlan, read_plan, write_plan
from headstart.engine.select import SAMPLE_SIZE, choose_engine, synthetic_sample
from headstart.engine.streaming import run_in_batches, run_stream
from headstart.engine.torch_engine import TorchEngine
from headstart.progress import SilentProgress

SIDE = 32
NAMES = {
    "torch (cpu)": "torch",
    "torch, folded (cpu)": "folded",
    "torch, folded, bfloat16 (cpu)": "mixed",
    "torch, bfloat16 autocast (cpu)": "autocast",
    "onnxruntime (cpu)": "onnxruntime",
}

folding = pytest.mark.skipif(not can_fold_for_inference(torch.device("cpu")), reason="this PyTorch has no oneDNN")


pytestmark = pytest.mark.usefixtures("all_engines")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As fast on images of this size, and fast on a machine that does something else as well."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Listener:
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def task(self, name: str, total: int, unit: str = "images") -> AbstractContextManager[Callable[[int], None]]:
        return SilentProgress().task(name, total, unit)


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """Its statistics are those of the images, so that activations are neither large nor nothing."""
    made = random_backbone("resnet10t", image_size=SIDE)
    for module in made.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    net = FeatureNet(made)
    made.module.train()
    with torch.no_grad():
        for _ in range(3):
            made.module(net.normalised(torch.from_numpy(pixels(8, seed=99))))
    made.module.eval()
    return made


@pytest.fixture
def net(backbone: Backbone) -> FeatureNet:
    return FeatureNet(backbone)


class Rates:
    """Takes the place of the clock, and notes what was measured."""

    def __init__(self, **rates: float) -> None:
        self.rates = rates
        self.measured: list[str] = []

    def __call__(self, measured: dict[str, Any], sample: np.ndarray) -> dict[str, float]:
        names = {name: NAMES[engine.name] for name, engine in measured.items()}
        self.measured += names.values()
        return {name: self.rates[kind] for name, kind in names.items()}


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Rates:
    clock = Rates(torch=50.0, folded=150.0, mixed=300.0, autocast=10.0, onnxruntime=155.0)
    monkeypatch.setattr(measure, "measure_rates", clock)
    monkeypatch.setattr(candidates, "has_fast_bfloat16", lambda device: True)  # however slow it is here
    monkeypatch.setattr(candidates, "ONNX_WEIGHT_LIMIT", 0)  # without ONNX Runtime, for the test's sake
    return clock


@pytest.fixture
def onnx(rates: Rates, monkeypatch: pytest.MonkeyPatch) -> Rates:
    """ONNX Runtime may run as well, and there is no bfloat16."""
    monkeypatch.setattr(candidates, "ONNX_WEIGHT_LIMIT", 10**9)
    monkeypatch.setattr(candidates, "has_fast_bfloat16", lambda device: False)
    return rates


def measure_plan(
    net: PixelNet, cache: Path, count: int = 1000, progress: Listener | None = None, seed: int = 0
) -> EnginePlan:
    return measure_engines(net, pixels(8, seed), count=count, device="cpu", cache=cache, progress=progress)


def choose(net: PixelNet, count: int = 1000, **options: Any) -> Any:
    return choose_engine(net, count=count, sample=pixels(8), device="cpu", **options)


@pytest.mark.slow
@folding
def test_a_plan_is_kept_for_its_sample_and_speeds_for_the_backbone(
    net: FeatureNet, rates: Rates, tmp_path: Path
) -> None:
    heard = Listener()
    plan = measure_plan(net, tmp_path, progress=heard)
    assert (plan.exact, plan.fast) == ("folded", "mixed")
    assert plan.rates == {"folded": 150.0, "mixed": 300.0}
    assert plan.errors["folded"] < 1e-5 < plan.errors["mixed"] < 0.02
    assert heard.said[-1].startswith("Engine for reported results: folded; for training: mixed (300 images/s, ")
    again = measure_plan(net, tmp_path, progress=heard)
    assert again == plan
    assert again.fingerprint() == plan.fingerprint()
    assert len(heard.said) == 1
    other = measure_plan(net, tmp_path, seed=1)
    assert other.fingerprint() != plan.fingerprint()
    assert rates.measured == ["folded", "mixed"]
    measure_plan(FeatureNet(random_backbone("test_resnet", image_size=SIDE)), tmp_path)
    assert rates.measured[2:] == ["folded", "mixed"]


@pytest.mark.slow
@folding
def test_a_plan_depends_only_on_its_sample_and_not_on_the_cache(net: FeatureNet, rates: Rates, tmp_path: Path) -> None:
    """Law 11: one data set changes no other's result."""
    alone = measure_plan(net, tmp_path / "alone", seed=1)
    measure_plan(net, tmp_path / "shared", seed=0)
    choose(net, count=1000)(pixels(4))
    shared = measure_plan(net, tmp_path / "shared", seed=1)
    assert shared == alone
    assert shared.fingerprint() == alone.fingerprint()
    assert all(torch.equal(alone.means[name], mean) for name, mean in shared.means.items())


@pytest.mark.slow
@folding
def test_speeds_decide_nothing(net: FeatureNet, rates: Rates, tmp_path: Path) -> None:
    usual = measure_plan(net, tmp_path / "usual")
    rates.rates = dict.fromkeys(rates.rates, 100.0) | {"torch": 9999.0, "mixed": 1.0}
    unusual = measure_plan(net, tmp_path / "unusual")
    assert unusual.rates != usual.rates
    assert unusual == usual
    assert unusual.training_dtype == usual.training_dtype == torch.bfloat16
    assert unusual.identity(exact=False, device="cpu") == usual.identity(exact=False, device="cpu")


@pytest.mark.parametrize(
    ("architecture", "weights", "bfloat16", "exact", "fast"),
    [
        ("resnet10t", 10**9, True, "onnxruntime", "mixed"),
        ("resnet10t", 10**9, False, "onnxruntime", "onnxruntime"),
        ("resnet10t", 0, False, "folded", "folded"),
        ("test_vit", 10**9, True, "onnxruntime", "autocast"),
        ("test_vit", 0, True, "torch", "autocast"),
        ("test_vit", 0, False, "torch", "torch"),
    ],
)
def test_the_preferred_engine_follows_from_the_processor_and_the_network(
    architecture: str, weights: int, bfloat16: bool, exact: str, fast: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "has_fast_bfloat16", lambda device: bfloat16)
    monkeypatch.setattr(candidates, "can_fold_for_inference", lambda device: True)
    monkeypatch.setattr(candidates, "ONNX_WEIGHT_LIMIT", weights)
    net, cpu = FeatureNet(random_backbone(architecture, image_size=SIDE)), torch.device("cpu")
    assert next(candidates.candidates(net, cpu, exact=True)) == exact
    assert next(candidates.candidates(net, cpu, exact=False)) == fast


@pytest.mark.slow
@folding
def test_another_machine_calibrates_and_measures_for_itself(
    net: FeatureNet, rates: Rates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = measure_plan(net, tmp_path).identity(exact=True, device="cpu")
    monkeypatch.setattr(interface, "processor_model", lambda: "another")
    there = measure_plan(net, tmp_path).identity(exact=True, device="cpu")
    assert len(rates.measured) == 4
    assert here != there


def test_an_identity_names_the_engine_its_precision_the_library_the_processor_and_the_threads(
    net: FeatureNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    plain = engine_identity("torch", "float32", cpu)
    assert plain == TorchEngine(net, cpu).identity
    others = [engine_identity("folded", "float32", cpu), engine_identity("torch", "mixed ab", cpu)]
    onnx = engine_identity("onnxruntime", "float32", cpu)
    assert onnx == OnnxEngine(net).identity
    torch.set_num_threads(2)
    others.append(engine_identity("torch", "float32", cpu))
    assert engine_identity("onnxruntime", "float32", cpu) == onnx, "ONNX Runtime: an image, a thread"
    monkeypatch.setattr(interface, "processor_model", lambda: "another")
    others.append(engine_identity("torch", "float32", cpu))
    monkeypatch.setattr(torch, "__version__", "0.0")
    others.append(engine_identity("torch", "float32", cpu))
    assert len({str(identity) for identity in [plain, onnx, *others]}) == 7


@pytest.mark.slow
@folding
def test_the_engine_is_the_plans_and_says_its_precision(net: FeatureNet, rates: Rates, tmp_path: Path) -> None:
    plan = measure_plan(net, tmp_path)
    exact, fast = (choose(net, plan=plan, exact=exact) for exact in (True, False))
    assert [NAMES[exact.name], NAMES[fast.name]] == ["folded", "mixed"]
    assert (exact.precision, fast.precision) == (plan.precision(True), plan.precision(False))
    assert [exact.identity, fast.identity] == [plan.identity(exact=exact, device="cpu") for exact in (True, False)]
    assert plan.precision(True) == "float32"
    assert plan.precision(False) == f"mixed {plan.fingerprint()}"
    assert replace(plan, fast="autocast").precision(False) == "autocast bfloat16"
    assert replace(plan, low_precision_from=plan.low_precision_from + 1).precision(False) != plan.precision(False)
    expected = TorchEngine(net, torch.device("cpu"))(pixels(20, seed=5))
    size = np.abs(expected).max()
    assert np.abs(exact(pixels(20, seed=5)) - expected).max() / size < 1e-5
    assert 1e-4 < np.abs(fast(pixels(20, seed=5)) - expected).max() / size < 0.05


@pytest.mark.slow
@folding
def test_what_was_measured_holds_for_other_poolings_and_for_prefixes(
    backbone: Backbone, net: FeatureNet, rates: Rates, tmp_path: Path
) -> None:
    plan = measure_plan(net, tmp_path)
    rates.measured.clear()
    split = SplittableBackbone(backbone.module, height=SIDE, width=SIDE)
    names = [boundary.name for boundary in split.boundaries[1::2]]
    nets: list[PixelNet] = [ActivationNet(backbone, name, split.prefix(name)) for name in names]
    nets += [FeatureNet(backbone, FeatureSpec("avgmax")), FeatureNet(backbone, FeatureSpec(cut="layer2"))]
    for other in nets:
        fast = choose(other, plan=plan, exact=False)
        assert fast.precision == plan.precision(False)
        expected = TorchEngine(other, torch.device("cpu"))(pixels(4, seed=3))
        given = fast(pixels(4, seed=3))
        assert given.dtype == np.float32
        assert np.linalg.norm(given - expected) / np.linalg.norm(expected) < 0.02
    assert rates.measured == []


def test_few_images_run_by_plain_pytorch(net: FeatureNet, rates: Rates, tmp_path: Path) -> None:
    assert measure_plan(net, tmp_path, count=31) == EnginePlan()
    assert NAMES[choose(net, count=31).name] == "torch"
    assert NAMES[choose(net, count=1000, plan=EnginePlan(), exact=False).name] == "torch"
    assert rates.measured == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@folding
def test_a_plan_is_kept_to_however_few_images_are_left_to_run(net: FeatureNet, rates: Rates, tmp_path: Path) -> None:
    plan = measure_plan(net, tmp_path)
    for exact in (True, False):
        assert choose(net, count=1, plan=plan, exact=exact).precision == plan.precision(exact)
        assert NAMES[choose(net, count=1, plan=plan, exact=exact).name] == (plan.exact if exact else plan.fast)


def test_what_is_made_up_is_the_same_each_time() -> None:
    sample = synthetic_sample(20, 30)
    assert sample.shape == (SAMPLE_SIZE, 20, 30, 3)
    assert np.array_equal(sample, synthetic_sample(20, 30))
    assert sample.std() > 30


def test_what_is_learnt_from_needs_a_plan(net: FeatureNet) -> None:
    with pytest.raises(ValueError, match="needs a plan"):
        choose(net, exact=False)


def wrong(*_: Any, **__: Any) -> nn.Module:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 512), 9.0)

    return Wrong()


@pytest.mark.slow
@folding
def test_an_engine_that_disagrees_is_not_trusted_and_that_is_said(
    net: FeatureNet, rates: Rates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = measure_plan(net, tmp_path / "sound")
    monkeypatch.setattr(candidates, "fold_for_inference", wrong)
    heard = Listener()
    doubtful = measure_plan(net, tmp_path / "wrong", progress=heard)
    assert (doubtful.exact, doubtful.fast) == ("torch", "torch")
    assert "'folded' is not used: its output differs from plain PyTorch's by" in heard.said[0]
    assert "'mixed' is not used: bfloat16 is not precise enough" in heard.said[1]
    assert doubtful.training_dtype == torch.float32
    assert NAMES[choose(net, plan=plan, progress=heard).name] == "torch"
    assert "'folded' is not used: its output differs" in heard.said[-1]


@pytest.mark.slow
@folding
def test_where_mixed_precision_disagrees_the_exact_engine_takes_over(
    net: FeatureNet, rates: Rates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = measure_plan(net, tmp_path)
    monkeypatch.setattr(agreement, "MIXED_TOLERANCE", 1e-6)
    heard = Listener()
    assert NAMES[choose(net, plan=plan, exact=False, progress=heard).name] == "folded"
    assert "'mixed' is not used" in heard.said[0]


@pytest.mark.parametrize("output", [np.nan, np.inf])
def test_output_that_is_no_number_is_not_trusted(output: float) -> None:
    sound = np.ones((2, 3), np.float32)
    broken = np.full((2, 3), output, np.float32)
    for given, expected in ((broken, sound), (sound, broken), (broken, broken), (sound[:, :1], sound)):
        for exact in (True, False):
            gap, allowed = difference(given, expected, exact=exact)
            assert gap > allowed


def test_differences_are_measured_against_the_output_however_small_it_is() -> None:
    expected = np.array([[1e-3, -2e-3, 0]], np.float32)
    gap, allowed = difference(expected + np.float32(1e-5), expected, exact=True)
    assert gap == pytest.approx(5e-3, rel=0.01)
    assert gap > allowed
    gap, _ = difference(1.01 * expected, expected, exact=False)
    assert gap == pytest.approx(0.01, rel=0.01)


@pytest.mark.slow
def test_onnx_runtime_runs_every_part_of_the_network(
    backbone: Backbone, net: FeatureNet, onnx: Rates, tmp_path: Path
) -> None:
    heard = Listener()
    plan = measure_plan(net, tmp_path, progress=heard)
    assert (plan.exact, plan.fast) == ("onnxruntime", "onnxruntime")
    assert plan.errors["onnxruntime"] < 1e-5
    assert heard.said[-1].startswith("Engine for reported results: onnxruntime; for training: onnxruntime (155")
    split = SplittableBackbone(backbone.module, height=SIDE, width=SIDE)
    inner = split.boundaries[len(split.boundaries) // 2].name
    nets = [
        net,
        FeatureNet(backbone, FeatureSpec("avgmax", "layer2")),
        ActivationNet(backbone, inner, split.prefix(inner)),
        TappedNet(backbone, inner, split.tapped(inner)),
    ]
    for which in nets:
        for exact in (True, False):
            engine = choose(which, plan=plan, exact=exact)
            assert (NAMES[engine.name], engine.precision) == ("onnxruntime", "float32")
        expected = TorchEngine(which, torch.device("cpu"))(pixels(7, seed=3))
        assert np.abs(engine(pixels(7, seed=3)) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_onnx_runtime_gives_an_image_the_same_bits_in_any_batch(net: FeatureNet, threads: int) -> None:
    torch.set_num_threads(threads)
    engine = OnnxEngine(net)
    assert engine.batch_size >= 32
    assert engine.batch_size % threads == 0
    images = pixels(7)
    together = engine(images)
    assert np.abs(together - TorchEngine(net, torch.device("cpu"))(images)).max() < 1e-4
    for size in (1, 2, 3):
        assert np.array_equal(engine(images[:size]), together[:size])


def test_onnx_runtime_runs_one_image_per_thread_or_a_small_batch_on_every_thread(
    net: FeatureNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(3)
    asked: list[tuple[int, int]] = []
    run = onnx_engine.run_session

    def listening(session: Any, images: np.ndarray) -> np.ndarray:
        asked.append((session.get_session_options().intra_op_num_threads, len(images)))
        return run(session, images)

    monkeypatch.setattr(onnx_engine, "run_session", listening)
    engine = OnnxEngine(net)
    for count, expected in (7, [(1, 1)] * 7), (3, [(1, 1)] * 3), (2, [(3, 2)]):
        asked.clear()
        engine(pixels(count))
        assert asked == expected


@pytest.mark.slow
@folding
def test_a_network_that_cannot_be_lowered_runs_by_another_engine_and_that_is_said(
    net: FeatureNet, onnx: Rates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = measure_plan(net, tmp_path / "sound")

    def lacking(_: PixelNet) -> bytes:
        raise NotLowered("fft_rfft is not known")

    monkeypatch.setattr(onnx_lowering, "onnx_bytes", lacking)
    heard = Listener()
    without = measure_plan(net, tmp_path / "lacking", progress=heard)
    assert (without.exact, without.fast) == ("folded", "folded")
    assert heard.said[0] == "Engine 'onnxruntime' is not used: fft_rfft is not known."
    assert NAMES[choose(net, plan=plan, progress=heard).name] == "folded"
    assert "'onnxruntime' is not used" in heard.said[-1]


@folding
def test_onnx_runtime_is_not_trusted_where_it_disagrees(
    net: FeatureNet, onnx: Rates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxEngine, "__call__", lambda _self, batch: np.full((len(batch), 512), 9, np.float32))
    heard = Listener()
    plan = measure_plan(net, tmp_path, progress=heard)
    assert (plan.exact, plan.fast) == ("folded", "folded")
    assert "'onnxruntime' is not used: its output differs" in heard.said[0]


def test_onnx_runtime_is_not_tried_on_a_heavy_network(
    net: FeatureNet, onnx: Rates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "ONNX_WEIGHT_LIMIT", sum(p.nbytes for p in net.parameters()))
    assert measure_plan(net, tmp_path).exact != "onnxruntime"


@pytest.mark.slow
@folding
def test_a_plan_that_is_damaged_or_of_something_else_is_made_again(
    net: FeatureNet, rates: Rates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = measure_plan(net, tmp_path)
    calibrated: list[object] = []
    monkeypatch.setattr(measure, "_choose", lambda *given: calibrated.append(given) or plan)
    (file,) = (file for file in (tmp_path / "engines").iterdir() if read_plan(file, about_of(file)).means)
    good, about = file.read_bytes(), about_of(file)
    flipped = bytearray(good)
    flipped[-3] ^= 1
    other = measure_plan(net, tmp_path / "other", seed=1)
    (foreign,) = (f for f in (tmp_path / "other" / "engines").iterdir() if read_plan(f, about_of(f)).means)
    calibrated.clear()
    damaged = [good[: len(good) // 2], bytes(range(256)) * 9, b"", save(dict(plan.means)), bytes(flipped)]
    damaged += [foreign.read_bytes(), b"\x10" + bytes(7) + b'{"__metadata__":{'[:16]]
    for data in damaged:
        file.write_bytes(data)
        assert read_plan(file, about) is None
        assert measure_plan(net, tmp_path).fingerprint() == plan.fingerprint()
        assert read_plan(file, about) == plan
    assert other == plan
    assert len(calibrated) == len(damaged)
    kept = measure_plan(net, tmp_path)
    assert (kept, kept.fingerprint()) == (plan, plan.fingerprint())
    assert len(calibrated) == len(damaged)


def about_of(file: Path) -> dict[str, Any]:
    with safe_open(file, framework="pt") as opened:
        return dict(json.loads(opened.metadata()["about"]))


@pytest.mark.parametrize(
    "changes",
    [
        {"exact": "teapot"},
        {"exact": "mixed"},
        {"fast": "teapot"},
        {"rates": {"torch": "quick"}},
        {"rates": {"torch": -1.0}},
        {"rates": {"torch": float("nan")}},
        {"errors": {"teapot": 1.0}},
        {"errors": [1.0]},
        {"low_precision_from": True},
        {"low_precision_from": "0"},
        {"colour": "red"},
    ],
)
def test_a_plan_of_a_run_with_values_that_make_no_sense_is_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Its digest is right: a run's folder may come from anywhere."""
    file = tmp_path / "plan.safetensors"
    sound = EnginePlan("folded", "mixed", 2, {"torch": 50.0}, {"mixed": 0.01}, {"a": torch.ones(3).double()})
    write_plan(file, sound)
    assert read_plan(file) == sound
    told = {"about": "{}", "plan": json.dumps({"exact": "folded", "fast": "mixed"} | changes)}
    file.write_bytes(save(dict(sound.means), told | {"digest": seal_document(save(dict(sound.means), told))}))
    assert read_plan(file) is None
    told["plan"] = "[" * 100_000
    file.write_bytes(save(dict(sound.means), told | {"digest": seal_document(save(dict(sound.means), told))}))
    assert read_plan(file) is None


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_costs_the_measuring_and_nothing_else(
    net: FeatureNet, rates: Rates, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    heard = Listener()
    plan = measure_plan(net, tmp_path / "file", progress=heard)
    assert plan.exact in ("torch", "folded")
    assert "cannot be stored" in heard.said[-1]


def test_without_onednns_own_kernels_plain_pytorch_runs(
    net: FeatureNet, rates: Rates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "can_fold_for_inference", lambda device: False)
    heard = Listener()
    plan = measure_plan(net, tmp_path, progress=heard)
    assert (plan.rates, plan.exact, plan.fast) == ({"torch": 50.0}, "torch", "torch")
    assert len(heard.said) == 1


def test_a_kernel_that_fails_is_no_engine_for_here(
    net: FeatureNet, rates: Rates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: Any, **__: Any) -> nn.Module:
        raise RuntimeError("bf16 path needs the cpu support avx512\nat somewhere.cpp")

    monkeypatch.setattr(candidates, "can_fold_for_inference", lambda device: True)
    monkeypatch.setattr(candidates, "fold_for_inference", lacking)
    heard = Listener()
    assert measure_plan(net, tmp_path, progress=heard).fast == "torch"
    assert heard.said[0] == "Engine 'folded' is not used: bf16 path needs the cpu support avx512."


def test_a_network_that_cannot_be_traced_runs_plain(rates: Rates, backbone: Backbone, tmp_path: Path) -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return (x if x.mean() > 0 else -x).mean((2, 3))

    net = PixelNet(backbone, Moody())
    assert measure_plan(net, tmp_path).rates == {"torch": 50.0}
    assert choose(net)(pixels(3)).shape == (3, 8)


def test_transformers_may_run_in_autocast(rates: Rates, tmp_path: Path) -> None:
    net = FeatureNet(random_backbone("test_vit", image_size=SIDE))
    plan = measure_plan(net, tmp_path)
    assert (plan.exact, plan.fast) == ("torch", "autocast")
    fast = choose(net, plan=plan, exact=False)
    assert fast.precision == plan.precision(False) == "autocast bfloat16"
    expected = choose(net)(pixels(5))
    assert 1e-5 < np.linalg.norm(fast(pixels(5)) - expected) / np.linalg.norm(expected) < 0.02


def test_speeds_are_measured_in_turns_on_whole_batches_even_from_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "ROUNDS", 3)
    turns: list[tuple[str, int]] = []

    class Slow:
        precision = "float32"

        def __init__(self, name: str, batch_size: int, seconds: list[float]) -> None:
            self.name, self.batch_size, self.seconds = name, batch_size, seconds

        def __call__(self, batch: np.ndarray) -> np.ndarray:
            turns.append((self.name, len(batch)))
            time.sleep(self.seconds.pop())
            return np.zeros((len(batch), 1), np.float32)

    steady, disturbed = Slow("a", 96, [0.04] * 3), Slow("b", 128, [0.2, 0.04, 0.2])  # the first turn, and the last
    rates = measure.measure_rates({"a": steady, "b": disturbed}, pixels(1))
    assert turns == 3 * [("a", 96), ("b", 128)]
    assert 1.1 < rates["b"] / rates["a"] < 1.6


def test_training_is_estimated_by_an_engine_that_trains(net: FeatureNet, onnx: Rates, tmp_path: Path) -> None:
    plan = measure_plan(net, tmp_path)
    assert plan.fast == "onnxruntime"
    assert plan.rate == 155.0
    assert plan.training_rate in (50.0, 150.0)
    assert (EnginePlan().rate, EnginePlan().training_rate) == (DEFAULT_RATE, DEFAULT_RATE)


@pytest.mark.slow
@folding
def test_a_plan_from_a_single_image_is_as_good(net: FeatureNet, rates: Rates, tmp_path: Path) -> None:
    plan = measure_engines(net, pixels(1), count=100, device="cpu", cache=tmp_path)
    assert (plan.exact, plan.fast) == ("folded", "mixed")


@pytest.mark.exhaustive
@folding
@pytest.mark.parametrize("kind", ["torch", "folded", "mixed", "onnxruntime"])
def test_in_a_stream_an_images_output_does_not_depend_on_its_company(
    net: FeatureNet, rates: Rates, tmp_path: Path, kind: str
) -> None:
    torch.set_num_threads(2)
    plan = replace(measure_plan(net, tmp_path), exact=kind, fast=kind)
    engine = choose(net, plan=plan, exact=kind != "mixed")
    assert NAMES[engine.name] == kind
    images = pixels(40)
    together = np.concatenate(list(run_stream(engine, [images[:16], images[16:32], images[32:]])))
    for pieces in ([1, 2, 13, 20, 4], [39, 1]):
        ends = np.cumsum(pieces)
        parts = list(run_stream(engine, [images[end - size : end] for size, end in zip(pieces, ends, strict=True)]))
        assert [len(part) for part in parts] == pieces
        assert np.array_equal(np.concatenate(parts), together)
    order = np.random.default_rng(0).permutation(40)
    assert np.array_equal(np.concatenate(list(run_stream(engine, [images[order]]))), together[order])


def test_batches_are_of_the_engines_size() -> None:
    sizes: list[int] = []

    class Counted:
        name, batch_size, precision = "counted", 16, "float32"

        def __call__(self, batch: np.ndarray) -> np.ndarray:
            sizes.append(len(batch))
            return batch[:, :1, 0, 0].astype(np.float32)

    images = pixels(37)
    assert np.array_equal(run_in_batches(Counted(), images), images[:, :1, 0, 0])
    assert sizes == [16, 16, 5]
    sizes.clear()
    (out,) = run_stream(Counted(), [images])
    assert np.array_equal(out, images[:, :1, 0, 0])
    assert sizes == [16, 16, 16]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_kept_for_the_next_activation_until_it_is_asked_for() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    keep_freed_memory()
    keep_freed_memory()
    activation = torch.empty(10_000_000).fill_(1)
    before = resident()
    del activation
    assert before - resident() < 4_000_000
    give_back_freed_memory()
    assert before - resident() > 30_000_000


@pytest.mark.slow
def test_engines_change_no_weight_and_no_statistic(backbone: Backbone, rates: Rates, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in backbone.module.state_dict().items()}
    net = FeatureNet(backbone)
    plan = measure_plan(net, tmp_path)
    for exact in (True, False):
        choose(net, plan=plan, exact=exact)(pixels(4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.module.state_dict().items())
