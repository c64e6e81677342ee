"""``headstart train`` with a warm cache by two versions of Headstart, alternating, and the ratio of their times.

    git worktree add ../before a0e7289
    python benchmarks/warm_train.py ../before . --data flowers [--rounds 5] [--options --effort probe]

Each version first fills a separate cache, which is not timed. Then both run alternately, in separate processes. The
ratio is that of the medians, after to before, for wall-clock time and for CPU time, which depends less on other load.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(version: Path, data: Path, root: Path, options: list[str]) -> tuple[float, float]:
    """(seconds of wall clock, seconds of processor)."""
    out = root / "run"
    shutil.rmtree(out, ignore_errors=True)
    environment = os.environ | {"PYTHONPATH": str(version), "HEADSTART_CACHE": str(root / "cache")}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "headstart", "train", str(data), "--out", str(out), *options]
    done = subprocess.run(command, env=environment, cwd=version, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stderr)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="checkout of the one version")
    parser.add_argument("after", type=Path, help="checkout of the other")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=["--effort", "probe"])
    chosen = parser.parse_args()
    versions = {"before": chosen.before.resolve(), "after": chosen.after.resolve()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in versions}
    with tempfile.TemporaryDirectory(prefix="warm-train-") as folder:
        for turn in range(chosen.rounds + 1):
            for name in sorted(versions, reverse=bool(turn % 2)):
                (Path(folder) / name).mkdir(exist_ok=True)
                found = run(versions[name], chosen.data.resolve(), Path(folder) / name, chosen.options)
                print(
                    f"{name} {'cold' if turn == 0 else turn}: {found[0]:.1f} s, {found[1]:.1f} s of processor",
                    flush=True,
                )
                if turn:
                    times[name].append(found)
    figures = {}
    for place, what in enumerate(("wall", "processor")):
        own = {name: [found[place] for found in all_] for name, all_ in times.items()}
        figures[what] = {name: [round(seconds, 2) for seconds in all_] for name, all_ in own.items()}
        ratio = statistics.median(own["after"]) / statistics.median(own["before"])
        least = min(own["after"]) / min(own["before"])
        figures[what] |= {"ratio of medians": round(ratio, 3), "ratio of the fastest": round(least, 3)}
    print(json.dumps({"benchmark": "warm train", "options": chosen.options} | figures, indent=1))


if __name__ == "__main__":
    main()
