"""Nine heads at once against one: what several learning rates and penalties cost on the same features.

    python benchmarks/heads.py FOLDER [--heads linear 512-0.5 1024-512-0.2] [--epochs 10] [--rounds 5]

Features of the training images come from the cache (or are made first, not timed). Both ways train in turns in one
process; the ratio is the median of the rounds. A table, and one JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace

import numpy as np
import torch

from headstart.backbone.pixel_net import FeatureNet
from headstart.backbone.weights import load_backbone
from headstart.data.dataset import open_data
from headstart.data.scan import scan
from headstart.engine.device import keep_freed_memory
from headstart.features.extract import compute_features
from headstart.training.fit_head import in_memory
from headstart.training.head_search import HeadSearchSettings, train_heads
from headstart.training.head_spec import HeadSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--heads", nargs="+", default=["linear", "512-0.5", "1024-512-0.2"])
    parser.add_argument("--epochs", type=int, default=HeadSearchSettings.epochs)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    keep_freed_memory()
    backbone = load_backbone()
    dataset = open_data(given.data)
    scanned = scan(dataset.files(), preprocessing=backbone.preprocessing)
    used = np.flatnonzero(scanned.usable)
    keys = [scanned.keys[i] for i in used]
    features = compute_features(FeatureNet(backbone), keys).read(keys)
    order = np.random.default_rng(0).permutation(len(used))
    learn, judge = order[: int(0.8 * len(order))], order[int(0.8 * len(order)) :]
    labels = dataset.labels[used]
    train, val = in_memory(features[learn], labels[learn]), in_memory(features[judge], labels[judge])
    nine = replace(HeadSearchSettings(), epochs=given.epochs)
    one = replace(nine, rates=nine.rates[1:2], penalties=nine.penalties[1:2])
    rows = []
    print(f"{len(learn):,} images to learn from, {features.shape[1]:,} features, {given.epochs} epochs")
    print(f"{'head':<16}{'one, s':>10}{'nine, s':>10}{'ratio':>8}  range")
    for name in given.heads:
        seconds: dict[str, list[float]] = {"one": [], "nine": []}
        for _ in range(given.rounds):
            for which, settings in (("one", one), ("nine", nine)):
                started = time.perf_counter()
                train_heads(
                    [HeadSpec.parse(name)], train, val, settings, classes=len(dataset.classes), dtype=torch.bfloat16
                )
                seconds[which].append(time.perf_counter() - started)
        ratios = [nine_s / one_s for nine_s, one_s in zip(seconds["nine"], seconds["one"], strict=True)]
        row = {
            "head": name,
            "one": statistics.median(seconds["one"]),
            "nine": statistics.median(seconds["nine"]),
            "ratio": statistics.median(ratios),
            "range": [min(ratios), max(ratios)],
        }
        rows.append(row)
        figures = f"{row['one']:>10.2f}{row['nine']:>10.2f}{row['ratio']:>8.2f}"
        print(f"{name:<16}{figures}  {min(ratios):.2f}-{max(ratios):.2f}")
    print(json.dumps({"benchmark": "heads", "data": given.data, "epochs": given.epochs, "rows": rows}))


if __name__ == "__main__":
    main()
