"""The light runtime: size of its environment, the start of a process, and agreement with the model.

    python benchmarks/runtime.py RUN FOLDER WHEEL [--rounds 5]

Exports the model of RUN to ONNX, makes a fresh virtual environment with WHEEL (from `make runtime-wheel`) and its
dependencies, and measures in turns `headstart predict` of one image with the model file and with the ONNX file in this
environment, and `headstart-runtime predict` in the fresh one, each as a new process. Then both predict all images of
FOLDER, and the largest differences are printed. Prints rows and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import headstart as hs
from headstart.data.listing import find_images

PREDICT = """
import json, sys
from headstart_runtime import load
assert not {"torch", "headstart", "scipy"} & set(sys.modules)
paths = json.load(sys.stdin)
found = load(sys.argv[1]).predict(paths, top=1000)
print(json.dumps([[p.label, p.answer, p.unsure, p.error, p.outlier, dict(p.top)] for p in found]))
"""


def fresh_environment(folder: Path, wheel: Path) -> tuple[Path, dict[str, float]]:
    """The folder of programs of a new virtual environment, and sizes of its packages in MB, without pip."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-cache-dir", wheel], check=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    sizes = {
        entry.name: sum(file.stat().st_size for file in entry.rglob("*") if file.is_file()) / 1e6
        for entry in packages.iterdir()
        if not entry.name.startswith(("pip", "setuptools", "pkg_resources", "_distutils"))
    }
    return python.parent, sizes


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def compared(model: Any, programs: Path, file: Path, paths: list[str]) -> dict[str, Any]:
    """Predictions of the model against those of the runtime in its environment."""
    command = [str(programs / "python"), "-c", PREDICT, str(file)]
    done = subprocess.run(command, input=json.dumps(paths), capture_output=True, text=True, check=True)
    pairs = list(zip(model.predict(paths, top=1000), json.loads(done.stdout), strict=True))
    names = ("label", "answer", "unsure", "error")
    same = {name: sum(getattr(one, name) == two[i] for one, two in pairs) for i, name in enumerate(names)}
    gaps = [abs(share - two[5][name]) for one, two in pairs for name, share in one.top]
    outliers = [abs(one.outlier - two[4]) for one, two in pairs if one.outlier is not None]
    return {"images": len(pairs), "same": same, "probability": max(gaps), "outlier": max(outliers, default=0.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    paths = find_images(given.folder)
    with tempfile.TemporaryDirectory() as scratch:
        file = hs.export(given.run, "onnx", out=Path(scratch) / "model.onnx").file
        programs, sizes = fresh_environment(Path(scratch) / "venv", given.wheel)
        headstart = [sys.executable, "-m", "headstart", "predict"]
        commands = {
            "headstart predict RUN": [*headstart, str(given.run), paths[0]],
            "headstart predict FILE.onnx": [*headstart, str(file), paths[0]],
            "headstart-runtime predict FILE.onnx": [
                str(programs / "headstart-runtime"),
                "predict",
                str(file),
                paths[0],
            ],
        }
        for command in commands.values():  # compiled modules, files in the cache of the system
            seconds(command)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(given.rounds):
            for name, command in commands.items():
                times[name].append(seconds(command))
        agreement = compared(hs.load(given.run), programs, file, paths)
    for name, found in times.items():
        print(f"{name}: median {statistics.median(found):.2f} s ({min(found):.2f} to {max(found):.2f})")
    print(f"environment: {sum(sizes.values()):.0f} MB without pip")
    for name, size in sorted(sizes.items(), key=lambda entry: -entry[1])[:8]:
        print(f"  {name}: {size:.1f} MB")
    print(agreement)
    times_text = {name: np.round(found, 3).tolist() for name, found in times.items()}
    print(json.dumps({"seconds": times_text, "megabytes": sizes, "agreement": agreement}))


if __name__ == "__main__":
    main()
