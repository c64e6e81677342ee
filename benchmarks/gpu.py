"""GPU benchmark: the frozen pass and an epoch of fine-tuning against the same loops without a cache, and GPU idle time.

    python benchmarks/gpu.py FOLDER [--backbones resnet50 vit_small_patch16_224] [--images 4096] [--epochs 3]

Photographs of the folder are copied, slightly cropped, until there are enough; weights are random (the time
is the same). The plain loops are optimised PyTorch: bfloat16 autocast, channels last, fused AdamW, decoded images in
memory. "waits" is the share of the time in which no kernel ran, measured by the profiler in a separate epoch. Prints a
table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from headstart.backbone.pixel_net import ActivationNet, FeatureNet, split_backbone
from headstart.backbone.weights import Backbone, random_backbone
from headstart.concurrency import map_images
from headstart.data.decode import decode
from headstart.data.listing import find_images
from headstart.data.pixel_cache import pixel_store
from headstart.data.scan import scan
from headstart.engine.measure import measure_engines
from headstart.engine.select import SAMPLE_SIZE, choose_engine
from headstart.engine.streaming import run_stream
from headstart.engine.torch_engine import TorchEngine
from headstart.features.activations import Activations, ImageFiles
from headstart.training.finetune import FineTuneSettings, fine_tune
from headstart.training.head_spec import HeadSpec
from headstart.training.heads import build_head
from headstart.training.ladder import boundary_before
from headstart.training.sampling import Samples
from headstart.training.training_step import TrainingStep

PARTS = {"resnet50": ["layer4", "layer3"], "vit_small_patch16_224": ["blocks.9", "blocks.6"]}
"""Backbone -> the parts from which on it is trained."""

CLASSES = 5
BATCH = 32
FROZEN_BATCH = 128
CUDA = torch.device("cuda")


@dataclass(frozen=True)
class Row:
    """One way to do one thing."""

    backbone: str
    what: str
    way: str
    rate: float
    waits: float


def write_images(folder: Path, out: Path, count: int) -> list[str]:
    files = find_images(folder)

    def write(number: int) -> str:
        image = decode(files[number % len(files)]).image
        cut = 1 + number // len(files)
        path = out / f"{number}.jpg"
        image.crop((cut, cut, image.width - cut, image.height - cut)).save(path, quality=90)
        return str(path)

    return list(map_images(write, range(count)))


def waiting(work: Callable[[], object]) -> float:
    """Share of the time in which no kernel ran."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    spans = sorted(
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in seen.profiler.kineto_results.events()
        if event.device_type() == torch.autograd.DeviceType.CUDA
    )
    busy, end = 0, 0
    for first, last in spans:
        busy += max(0, last - max(first, end))
        end = max(end, last)
    return 1 - busy / 1e9 / seconds


def timed(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def frozen_pass(backbone: Backbone, images: ImageFiles, pixels: np.ndarray) -> list[Row]:
    net = FeatureNet(backbone)
    name, count = backbone.architecture, len(images)
    plan = measure_engines(net, pixels[:SAMPLE_SIZE], count=count, device="cuda")
    print(f"{name}: {plan.reason(exact=False)}; for what is reported: {plan.exact}", flush=True)
    rows = []
    module = net.body.to(CUDA).to(memory_format=torch.channels_last)

    def plain() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            for first in range(0, count, FROZEN_BATCH):
                x = net.normalised(torch.from_numpy(pixels[first : first + FROZEN_BATCH]).to(CUDA))
                module(x.contiguous(memory_format=torch.channels_last)).float().cpu()

    net.to(CUDA)
    plain()
    rows.append(Row(name, "frozen pass", "plain loop, bf16", count / timed(plain), waiting(plain)))
    store = pixel_store(backbone.preprocessing)
    for exact in (False, True):
        engine = choose_engine(net, count=count, sample=pixels[:SAMPLE_SIZE], plan=plan, exact=exact, device="cuda")
        assert isinstance(engine, TorchEngine)
        keys, size = list(images.keys), engine.batch_size

        def stream(engine: TorchEngine = engine, keys: list[bytes] = keys, size: int = size) -> None:
            for _ in run_stream(engine, (store.read(keys[i : i + size]) for i in range(0, len(keys), size))):
                pass

        stream()
        rows.append(Row(name, "frozen pass", f"Headstart, {engine.name}", count / timed(stream), waiting(stream)))
    return rows


def plain_epochs(backbone: Backbone, part: str, pixels: np.ndarray, labels: np.ndarray) -> Row:
    net = FeatureNet(backbone)
    split = split_backbone(backbone).copied()
    boundary = boundary_before(part, split).name
    module = split.module.to(CUDA).to(memory_format=torch.channels_last)
    prefix, suffix = split.prefix(boundary).to(CUDA), split.suffix(boundary).to(CUDA)
    head = build_head(HeadSpec(), split.boundaries[-1].shape, CLASSES).to(CUDA)
    trained = [module.get_parameter(name) for _, own in split.parts(boundary) for name in own]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW([*trained, *head.parameters()], lr=1e-4, fused=True)
    net.to(CUDA)

    def epoch() -> None:
        order = np.random.default_rng(0).permutation(len(pixels))
        for first in range(0, len(order), BATCH):
            places = order[first : first + BATCH]
            x = net.normalised(torch.from_numpy(pixels[places]).pin_memory().to(CUDA, non_blocking=True))
            with torch.autocast("cuda", torch.bfloat16):
                with torch.no_grad():
                    x = prefix(x.contiguous(memory_format=torch.channels_last))
                logits = head(suffix(x))
            loss = nn.functional.cross_entropy(logits.float(), torch.from_numpy(labels[places]).to(CUDA))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()

    epoch()
    rate, waits = len(pixels) / timed(epoch), waiting(epoch)
    return Row(backbone.architecture, f"epoch from {part}", "plain loop, bf16", rate, waits)


def kept_epochs(backbone: Backbone, part: str, images: ImageFiles, labels: np.ndarray, epochs: int) -> list[Row]:
    frozen = split_backbone(backbone)
    boundary = boundary_before(part, frozen)
    pixels = pixel_store(backbone.preprocessing).read(list(images.keys[:SAMPLE_SIZE]))
    plan = measure_engines(FeatureNet(backbone), pixels, count=len(images), device="cuda")
    net = ActivationNet(backbone, boundary.name, frozen.prefix(boundary.name))
    engine = choose_engine(net, count=len(images), sample=pixels, plan=plan, exact=False, device="cuda")
    made = Activations(net, images, shape=boundary.shape, engine=engine, views=None)
    name, count = backbone.architecture, len(images)
    making = timed(made.prepare)
    print(f"{name} before {part}: {made.reason}", flush=True)
    rows = [Row(name, f"activations before {part}", "made and kept on disk", count / making, 0)] if made.keep else []
    head = build_head(HeadSpec(), frozen.boundaries[-1].shape, CLASSES)
    samples = Samples(made, labels, images.keys, 0)
    settings = FineTuneSettings(epochs=epochs, batch_size=BATCH)
    ends: list[float] = []

    def note(done: TrainingStep) -> None:
        if len(done.history) > len(ends):
            ends.append(time.perf_counter())

    def tune(settings: FineTuneSettings = settings) -> None:
        tuned_on = frozen.copied()
        fine_tune(
            tuned_on, boundary.name, head, samples, None, settings, dtype=torch.bfloat16, device=CUDA, on_step=note
        )

    tune(replace(settings, epochs=1))
    ends.clear()
    tune()
    rates = [count / (end - begun) for begun, end in pairwise(ends)]
    waits = waiting(tune)
    rows.append(Row(name, f"epoch from {part}", "Headstart, from the cache", float(np.median(rates)), waits))
    return rows


def main() -> None:
    """Prints a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbones", nargs="+", default=list(PARTS))
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=4)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device on this machine")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        files = write_images(given.data, Path(folder), given.images)
        for name in given.backbones:
            backbone = random_backbone(name)
            keys = scan(files, preprocessing=backbone.preprocessing).keys
            images, labels = ImageFiles(files, keys), np.arange(len(files)) % CLASSES
            pixels = pixel_store(backbone.preprocessing).read(list(keys))
            rows += frozen_pass(backbone, images, pixels)
            for part in PARTS.get(name, []):
                rows.append(plain_epochs(random_backbone(name), part, pixels, labels))
                rows += kept_epochs(backbone, part, images, labels, given.epochs)
            torch.cuda.empty_cache()
    print(f"{torch.cuda.get_device_name()}, {given.images} images, bfloat16")
    for row in rows:
        print(f"{row.backbone:24} {row.what:26} {row.way:42} {row.rate:9.0f} images/s  waits {100 * row.waits:4.0f} %")
    print(json.dumps({"benchmark": "gpu", "device": torch.cuda.get_device_name(), "rows": [vars(r) for r in rows]}))


if __name__ == "__main__":
    main()
