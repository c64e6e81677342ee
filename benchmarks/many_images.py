"""Peak memory of indexing a folder of many small images and extracting their features.

    python benchmarks/many_images.py [--counts 15000 60000] [--image-size 32]

Generates the folder once (2 classes, 32x32 PNG, random patches), then runs `headstart extract` on it in a
separate process, from a cold cache. Prints a row for each count and one JSON line. Expected on two cores: under 2 GB at
60,000, and growth from 15,000 to 60,000 of no more than the index (paths, hashes, facts: about 1.5 kB an image).
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
from pathlib import Path

import numpy as np
from PIL import Image


def generate(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / ("a", "b")[i % 2] / f"{i // 1000:03d}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        patches = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        patches.resize((32, 32), Image.Resampling.NEAREST).save(path, compress_level=1)


def measure(folder: Path, image_size: int) -> tuple[float, float]:
    """(peak resident memory in MB, seconds) of the whole command."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "headstart", "extract", str(folder), "--out", f"{cache}/f.npz"]
        command += ["--image-size", str(image_size)]
        started = time.perf_counter()
        child = subprocess.Popen(command, env=os.environ | {"HEADSTART_CACHE": cache})
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
        scale = 1e6 if sys.platform == "darwin" else 1e3
        return _peak(usage) / scale, time.perf_counter() - started


def _peak(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[15_000, 60_000])
    parser.add_argument("--image-size", type=int, default=32)
    options = parser.parse_args()
    rows = []
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            generate(Path(folder), count)
            peak, seconds = measure(Path(folder), options.image_size)
        rows.append({"images": count, "peak_mb": round(peak), "seconds": round(seconds, 1)})
        print(f"{count:>8,} images  peak {peak:>6.0f} MB  {seconds:>6.1f} s", flush=True)
    print(json.dumps({"benchmark": "many_images", "image_size": options.image_size, "rows": rows}))


if __name__ == "__main__":
    main()
