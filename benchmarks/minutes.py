"""Whether ``headstart train --minutes`` keeps its time, and what it gains over a fixed effort.

    python benchmarks/minutes.py DATA... [--minutes 1 3] [--effort standard]

Each command runs in a new process with an empty cache. Printed are its wall clock, start of Python included, in
percent of the time that it was given, and the accuracy on the held-out images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(data: Path, *options: str) -> tuple[float, str, str]:
    """Seconds, the main score, and what was chosen."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "headstart", "train", str(data), "--out", str(out), "--json", *options]
        began = time.monotonic()
        done = subprocess.run(
            command,
            env=os.environ | {"HEADSTART_CACHE": f"{folder}/cache"},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - began
        if done.returncode:
            return seconds, "failed", done.stderr.strip().splitlines()[-1]
        scores = list(json.loads(done.stdout)["scores"].values())[-1]
        recipe = json.loads((out / "recipe.json").read_text())
        chosen = ", ".join(
            str(recipe.get(name)) for name in ("backbone", "image_size", "fit", "effort", "epochs", "views")
        )
        return seconds, f"{scores['correct']}/{scores['count']}", chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--minutes", type=float, nargs="*", default=[1, 3])
    parser.add_argument("--effort", nargs="*", default=[])
    given = parser.parse_args()
    for data in given.data:
        for effort in given.effort:
            seconds, score, _ = run(data, "--effort", effort)
            print(f"{data.name}: effort {effort}, {seconds:.1f} s; {score} right", flush=True)
        for minutes in given.minutes:
            seconds, score, chosen = run(data, "--minutes", f"{minutes:g}")
            share = 100 * seconds / (60 * minutes)
            print(f"{data.name}: {minutes:g} min, {seconds:.1f} s ({share:.0f} %); {score} right; {chosen}", flush=True)


if __name__ == "__main__":
    main()
