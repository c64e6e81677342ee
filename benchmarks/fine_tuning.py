"""An epoch of fine-tuning from kept activations against the same epoch in a plain PyTorch loop.

The plain loop is what a tutorial has: frozen layers under ``no_grad``, the others trained by AdamW, float32, default
layout, every image through the whole network in every epoch. Both get images that are decoded and cropped already,
each in a separate process, alternating.

    python benchmarks/fine_tuning.py FOLDER [--backbones NAME ...] [--parts PART ...] [--images 320] [--rounds 3]

Prints a row for each backbone and part from which on it is trained (three of each, ``PARTS``), and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from headstart.backbone.pixel_net import ActivationNet, FeatureNet, feature_shape, split_backbone
from headstart.backbone.weights import DEFAULT_BACKBONE, Backbone, load_backbone, random_backbone
from headstart.data.dataset import open_data
from headstart.data.pixel_cache import pixel_store
from headstart.data.scan import scan
from headstart.engine.device import keep_freed_memory
from headstart.engine.measure import measure_engines
from headstart.engine.select import SAMPLE_SIZE, choose_engine
from headstart.features.activations import Activations, ImageFiles
from headstart.training.finetune import FineTuneSettings, fine_tune
from headstart.training.heads import linear_head
from headstart.training.ladder import boundary_before
from headstart.training.sampling import Samples

BATCH = 32

PARTS = {
    DEFAULT_BACKBONE: ["blocks.4", "blocks.5", "blocks.6"],
    "mobilenetv2_100": ["blocks.4", "blocks.5", "blocks.6"],
    "resnet18": ["layer2", "layer3", "layer4"],
}
"""Backbone -> the parts from which on it is trained, one after the other."""


def backbone_of(name: str) -> Backbone:
    """With pretrained weights if available, else random ones; the time is the same."""
    return load_backbone(DEFAULT_BACKBONE) if name == DEFAULT_BACKBONE else random_backbone(name)


def plain_epoch(backbone: Backbone, part: str, images: ImageFiles, labels: np.ndarray) -> float:
    """Seconds."""
    module = backbone.module
    split = split_backbone(backbone)
    boundary = boundary_before(part, split).name
    prefix, suffix = split.prefix(boundary), split.suffix(boundary)
    net = FeatureNet(backbone)  # before anything is set to be trained: it freezes the backbone
    head = nn.Linear(feature_shape(net)[0], 5)
    trained = [*(p for _, own in split.parts(boundary) for p in (module.get_parameter(n) for n in own))]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW([*trained, *head.parameters()], lr=1e-4)
    pixels = torch.from_numpy(pixel_store(backbone.preprocessing).read(list(images.keys)))
    order = np.random.default_rng(0).permutation(len(pixels))
    started = time.monotonic()
    for first in range(0, len(order), BATCH):
        places = order[first : first + BATCH]
        x = net.normalised(pixels[places]).contiguous()
        with torch.no_grad():
            x = prefix(x)
        loss = nn.functional.cross_entropy(head(suffix(x)), torch.from_numpy(labels[places]))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return time.monotonic() - started


def cached_epoch(backbone: Backbone, part: str, images: ImageFiles, labels: np.ndarray) -> float:
    """Seconds; making the activations is not counted, reading them is."""
    keep_freed_memory()
    frozen = split_backbone(backbone)
    split = frozen.copied()
    boundary = boundary_before(part, frozen)
    pixels = pixel_store(backbone.preprocessing).read(list(images.keys[:SAMPLE_SIZE]))
    plan = measure_engines(FeatureNet(backbone), pixels, count=10_000)
    net = ActivationNet(backbone, boundary.name, frozen.prefix(boundary.name))
    engine = choose_engine(net, count=10_000, sample=pixels, plan=plan, exact=False)
    made = Activations(net, images, shape=boundary.shape, engine=engine, views=None)
    made.prepare()
    head = linear_head(np.zeros((5, frozen.boundaries[-1].shape[0]), np.float32), np.zeros(5, np.float32))
    samples = Samples(made, labels, images.keys, 0)
    dtype = plan.training_dtype
    fine_tune(split, boundary.name, head, _first(samples, BATCH), None, FineTuneSettings(epochs=1), dtype=dtype)
    started = time.monotonic()
    fine_tune(split, boundary.name, head, samples, None, FineTuneSettings(epochs=1), dtype=dtype)
    return time.monotonic() - started


def _first(samples: Samples, count: int) -> Samples:
    return Samples(samples.activations, samples.labels[:count], samples.keys[:count], 0)


def compared(data: str, backbone: str, part: str, images: int, rounds: int) -> dict[str, Any]:
    """Milliseconds an image of both ways, and the ratio of each round."""
    seconds: dict[str, list[float]] = {"plain": [], "cached": []}
    for _ in range(rounds):
        for side, own in seconds.items():
            command = [sys.executable, str(Path(__file__)), data, "--backbones", backbone]
            command += ["--parts", part, "--images", str(images), "--side", side]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            own.append(float(done.stdout.splitlines()[-1]))
    plain, cached = (round(1e3 * statistics.median(own) / images, 3) for own in seconds.values())
    ratios = [round(p / c, 2) for p, c in zip(*seconds.values(), strict=True)]
    return {"backbone": backbone, "part": part, "plain_ms": plain, "cached_ms": cached, "ratios": ratios}


def main() -> None:
    """Prints a row for each backbone and part, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--backbones", nargs="+", default=list(PARTS))
    parser.add_argument("--parts", nargs="+")
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=["plain", "cached"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        backbone = backbone_of(given.backbones[0])
        files = sorted(open_data(given.data).files())
        files = files[:: max(1, len(files) // given.images)][: given.images]
        seen = scan(files, preprocessing=backbone.preprocessing)
        labels = np.arange(len(files)) % 5
        epoch = plain_epoch if given.side == "plain" else cached_epoch
        print(json.dumps(epoch(backbone, given.parts[0], ImageFiles(files, seen.keys), labels)))
        return
    rows = []
    print("backbone               trained from  plain ms  kept ms  ratio (rounds)")
    for name in given.backbones:
        for part in given.parts or PARTS.get(name, []):
            row = compared(given.data, name, part, given.images, given.rounds)
            rows.append(row)
            spread = f"{statistics.median(row['ratios']):.1f} ({min(row['ratios']):.1f}-{max(row['ratios']):.1f})"
            print(f"{name:22} {part:12} {row['plain_ms']:9.1f} {row['cached_ms']:8.2f}  {spread}", flush=True)
    print(json.dumps({"benchmark": "fine-tuning", "images": given.images, "rows": rows}))


if __name__ == "__main__":
    main()
