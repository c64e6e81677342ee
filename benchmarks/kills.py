"""Kills a run at random moments, goes on with it, and compares the model with that of a run that never was stopped.

    python benchmarks/kills.py FOLDER [--kills 20] [--effort quick] [--seed 0]

Every run begins with an empty cache but for the measured choice of an engine, which decides the bits. Exits 1 where a
model or a prediction differs in a single byte.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILES = ("model.safetensors", "predictions.csv")


def start(arguments: list[str], cache: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "headstart", "train", *arguments],
        env=os.environ | {"HEADSTART_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def finish(arguments: list[str], cache: Path) -> None:
    if code := start(arguments, cache).wait():
        raise SystemExit(f"headstart train {' '.join(arguments)} ended with {code}")


def main() -> None:
    """Prints a line for each kill, their count, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--effort", default="quick")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        options = [given.data, "--effort", given.effort]
        finish([*options, "--out", str(root / "warm-up")], root / "engines")
        before = {entry.name for entry in (root / "engines").iterdir()} & {"engines"}
        whole = root / "whole"
        began = time.monotonic()
        fresh(root, root / "cache", before)
        finish([*options, "--out", str(whole)], root / "cache")
        seconds = time.monotonic() - began
        killed = same = 0
        while killed < given.kills:
            fresh(root, root / "cache", before)
            run, moment = root / "run", chance.uniform(0, seconds)
            process = start([*options, "--out", str(run)], root / "cache")
            time.sleep(moment)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                begun = (run / "start.json").exists()
                finish(["--resume", str(run)] if begun else [*options, "--out", str(run)], root / "cache")
                equal = all((run / name).read_bytes() == (whole / name).read_bytes() for name in FILES)
                killed, same = killed + 1, same + equal
                how = "the same bytes" if equal else "DIFFERENT"
                print(f"{killed}: killed after {moment:.1f} of {seconds:.1f} s: {how}", flush=True)
            shutil.rmtree(run, ignore_errors=True)
    print(f"{same} of {killed} the same")
    print(
        json.dumps({"benchmark": "kills", "data": given.data, "effort": given.effort, "killed": killed, "same": same})
    )
    sys.exit(same != killed)


def fresh(root: Path, cache: Path, kept: set[str]) -> None:
    """An empty cache but for the engines."""
    shutil.rmtree(cache, ignore_errors=True)
    for name in kept:
        shutil.copytree(root / "engines" / name, cache / name)


if __name__ == "__main__":
    main()
