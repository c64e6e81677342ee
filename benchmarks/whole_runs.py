"""Whole runs at each effort, and the plain PyTorch loop: right answers, seconds of the command, peak memory.

    python benchmarks/whole_runs.py FOLDER [--efforts probe quick standard thorough] [--warm] [--plain-epochs 5]

Every command is a separate process that starts with an empty cache; with ``--warm`` each effort runs again with the
filled cache. The plain loop is the usual recipe with the same weights, the same augmentation and the same split: a new
head, everything unfrozen, the whole network forward and back in every epoch, AdamW with warm-up and cosine, label
smoothing, float32, default layout. Its accuracy is that of its best epoch, its seconds those until that epoch was
scored. The last column is how many times sooner Headstart's command ended, where it did at least as well. One JSON line
at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from headstart.backbone.pixel_net import FeatureNet, feature_shape
from headstart.backbone.weights import DEFAULT_BACKBONE, load_backbone
from headstart.cache.keys import content_key
from headstart.data.augment import Augmentation, views
from headstart.data.dataset import open_data
from headstart.data.decode import decode
from headstart.data.inspection import inspect
from headstart.data.preprocessing import resize_and_crop
from headstart.training.ladder import EFFORTS

PLAIN = "plain loop"
BATCH = 32
WARM_UP = 0.1


@dataclass(frozen=True)
class Row:
    """A finished command.

    Attributes:
        name: the effort, or ``PLAIN``.
        correct: images of val that it got right.
        count: images of val.
        seconds: from the start of the process.
        megabytes: of memory, at most; of the largest command so far where one was larger.
    """

    name: str
    correct: int
    count: int
    seconds: float
    megabytes: int


class Shown(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Images as the plain loop sees them: another view of each in every epoch, or the image as it is."""

    def __init__(self, files: list[str], labels: np.ndarray, preprocessing: Any, epoch: int | None) -> None:
        self.files, self.labels, self.preprocessing, self.epoch = files, labels, preprocessing, epoch

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        data = Path(self.files[place]).read_bytes()
        if self.epoch is None:
            pixels = resize_and_crop(
                decode(data, min_side=self.preprocessing.decode_at_least).image, self.preprocessing
            )
        else:
            key, own = content_key(data), Augmentation()
            pixels = views(data, key, [self.epoch], seed=0, augmentation=own, preprocessing=self.preprocessing)[0]
        return torch.from_numpy(np.array(pixels)), int(self.labels[place])


def plain_loop(data: str, epochs: int, lr: float) -> None:
    """Prints one JSON line after each epoch: images right, and of how many."""
    backbone = load_backbone(DEFAULT_BACKBONE)
    look = inspect(open_data(data), preprocessing=backbone.preprocessing)
    files, net = look.dataset.files(), FeatureNet(backbone)
    own = {name: look.split.positions(name) for name in ("train", "val")}

    def loader(name: str, epoch: int | None) -> torch.utils.data.DataLoader[tuple[torch.Tensor, int]]:
        shown = Shown([files[i] for i in own[name]], look.dataset.labels[own[name]], backbone.preprocessing, epoch)
        return torch.utils.data.DataLoader(shown, BATCH, shuffle=epoch is not None, drop_last=epoch is not None)

    torch.manual_seed(0)
    model = nn.Sequential(backbone.module, nn.Linear(feature_shape(net)[0], len(look.dataset.classes)))
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    steps = epochs * (len(own["train"]) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=WARM_UP)
    for epoch in range(1, epochs + 1):
        model.train()
        for pixels, labels in loader("train", epoch):
            logits = model(net.normalised(pixels).contiguous())
            loss = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        model.eval()
        correct = 0
        with torch.no_grad():
            for pixels, labels in loader("val", None):
                correct += int((model(net.normalised(pixels).contiguous()).argmax(1) == labels).sum())
        print(json.dumps({"epoch": epoch, "correct": correct, "count": len(own["val"])}), flush=True)


def best_of_plain(data: str, epochs: int, lr: float, cache: Path) -> Row:
    """The epoch that did best, and when it was scored."""
    options = ["--side", "plain", "--plain-epochs", str(epochs), "--lr", str(lr)]
    started, rows = time.monotonic(), []
    with subprocess.Popen(
        [sys.executable, __file__, data, *options],
        env=os.environ | {"HEADSTART_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout or ():
            found, seconds = json.loads(line), time.monotonic() - started
            print(f"{PLAIN}, epoch {found['epoch']}: {found['correct']} right, {seconds:.0f} s", file=sys.stderr)
            rows.append(Row(PLAIN, found["correct"], found["count"], seconds, _peak()))
    if process.returncode:
        raise SystemExit(f"the plain loop ended with {process.returncode}")
    best = max(rows, key=lambda row: row.correct)
    return Row(best.name, best.correct, best.count, best.seconds, _peak())


def run(data: str, effort: str, cache: Path, out: Path, name: str) -> Row:
    """One command of Headstart's."""
    command = [sys.executable, "-m", "headstart", "train", data, "--effort", effort, "--out", str(out), "--json"]
    started = time.monotonic()
    done = subprocess.run(
        command, env=os.environ | {"HEADSTART_CACHE": str(cache)}, capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    scores = json.loads(done.stdout)["scores"]
    val = scores.get("val") or next(iter(scores.values()))
    row = Row(name, int(val["correct"]), int(val["count"]), seconds, _peak())
    print(f"{name}: {row.correct} right, {seconds:.0f} s", file=sys.stderr)
    return row


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024


def main() -> None:
    """Prints a row for each command and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--efforts", nargs="*", choices=list(EFFORTS), default=list(EFFORTS))
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--plain-epochs", type=int, default=0)
    parser.add_argument("--lr", type=float, default=3e-4, help="of the plain loop")
    parser.add_argument("--side", choices=["plain"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        plain_loop(given.data, given.plain_epochs, given.lr)
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for effort in given.efforts:
            rows.append(run(given.data, effort, root / effort, root / "runs" / effort, effort))
            if given.warm:
                rows.append(run(given.data, effort, root / effort, root / "runs" / f"{effort}-warm", f"{effort}, warm"))
        plain = best_of_plain(given.data, given.plain_epochs, given.lr, root / "plain") if given.plain_epochs else None
    for row in rows + ([plain] if plain else []):
        text = f"{row.name:16} {row.correct:5} of {row.count}  {100 * row.correct / row.count:5.1f} %"
        text += f"  {row.seconds:7.1f} s  {row.megabytes:6} MB"
        if plain and row is not plain and row.correct >= plain.correct:
            text += f"  {plain.seconds / row.seconds:5.1f} times sooner than the plain loop"
        print(text)
    print(
        json.dumps(
            {"benchmark": "whole runs", "data": given.data, "rows": [vars(row) for row in [*rows, plain] if row]}
        )
    )


if __name__ == "__main__":
    main()
