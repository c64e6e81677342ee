"""Damages the cache's files thousands of times, and counts what a run that reads it makes of that.

    python benchmarks/damaged_cache.py [--damages 3000] [--runs 28] [--seed 0]

A damage is one file with a flipped bit, cut short, zeroed, rotated by a row, noise, emptied, removed, replaced by a
folder or by another file of the cache, ... (tests/support/damage.py). After each, all that a run reads is read twice
in this process: facts, pixels, engine plan, features and activations of twelve images; every number must be what it
was. Then whole ``headstart train`` commands run on damaged caches, in processes of their own: each must end with
status 0, without a traceback, and with the same model file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from damage import DAMAGES, files_of
from damaged_reading import Reading, tally
from random_images import write_classes

TIMEOUT = 300


def train(data: Path, out: Path, cache: Path) -> tuple[int, str, bytes]:
    """(status, what was said, the model file)."""
    command = [sys.executable, "-m", "headstart", "train", data, "--out", out, "--backbone", "test_resnet"]
    command += ["--image-size", "32", "--scratch", "--epochs", "1", "--device", "cpu"]
    done = subprocess.run(
        [*map(str, command)],
        env=os.environ | {"HEADSTART_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    model = out / "model.safetensors"
    return done.returncode, done.stderr, model.read_bytes() if model.exists() else b""


def whole_runs(root: Path, count: int, rng: np.random.Generator) -> dict[str, int]:
    data = write_classes(root / "data", {"blue": 30, "red": 30})
    expected = train(data, root / "first", root / "cache")
    assert expected[0] == 0, expected[1]
    names = [file.relative_to(root / "cache") for file in files_of(root / "cache") if file.stat().st_size]
    outcomes: dict[str, int] = {}
    for number in range(count):
        copy, out = root / "copy" / "cache", root / "run"
        shutil.copytree(root / "cache", copy)
        damage = DAMAGES[number % len(DAMAGES)]
        name = names[int(rng.integers(len(names)))]
        damage(copy / name, rng)
        where = f"{damage.__name__} of {name}"
        try:
            status, said, model = train(data, out, copy)
        except subprocess.TimeoutExpired:
            status, said, model = -1, "", b""
        if status == 0 and model == expected[2] and "Traceback" not in said:
            outcome = "the same model"
        else:
            outcome = f"status {status}, {'another model' if model else 'no model'}: {where}: {said[-300:]}"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        shutil.rmtree(root / "copy")
        shutil.rmtree(out, ignore_errors=True)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--damages", type=int, default=3000)
    parser.add_argument("--runs", type=int, default=28)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="damaged-cache-") as folder:
        root = Path(folder)
        images = write_classes(root / "images", {"a": 6, "b": 6})
        reading = Reading(sorted(map(str, images.rglob("*.png"))))
        read = tally(reading, root / "cache", root / "work", options.damages, options.seed)
        runs = whole_runs(root / "runs", options.runs, np.random.default_rng(options.seed))
    seconds = round(time.monotonic() - started)
    print(json.dumps({"benchmark": "damaged cache", "read": read, "runs": runs, "seconds": seconds}, indent=1))


if __name__ == "__main__":
    main()
