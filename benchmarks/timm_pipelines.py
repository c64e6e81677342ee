"""A folder of ``headstart export RUN --to timm`` in timm and transformers, against the model, on labelled images.

    python benchmarks/timm_pipelines.py RUN FOLDER

RUN is a run with ``model_timm`` beside its model; FOLDER has one folder of images per class. The folder is served by a
stand-in of the Hugging Face hub on this machine; a process without Headstart loads it. transformers must be installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import headstart as hs

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from hub import TOKEN, hub_on_this_machine
from pipelines import PIPELINES


def main() -> None:
    """Prints a line per library."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    paths = sorted(map(str, options.folder.glob("*/*.*")))
    labels = [Path(path).parent.name for path in paths]
    expected = hs.load(options.run).predict(paths)
    print(
        f"model: {sum(one.label == label for one, label in zip(expected, labels, strict=True))} of {len(paths)} right"
    )
    with hub_on_this_machine() as hub, tempfile.TemporaryDirectory() as cache:
        hub.repositories["me/small"] = {file.name: file.read_bytes() for file in (options.run / "model_timm").iterdir()}
        place = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HOME": cache}
        command = [sys.executable, "-I", "-c", PIPELINES, "1", *paths]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | place)
    for library, answers in json.loads(done.stdout.strip().splitlines()[-1]).items():
        right = sum(name == label for (name, _), label in zip(answers, labels, strict=True))
        same = sum(name == one.label for (name, _), one in zip(answers, expected, strict=True))
        gaps = [abs(dict(one.top)[name] - score) for (name, score), one in zip(answers, expected, strict=True)]
        middle, high = np.quantile(gaps, [0.5, 0.95])
        print(f"{library}: {right} right, {same} as the model; difference {middle:.1e}, {high:.1e}, {max(gaps):.1e}")


if __name__ == "__main__":
    main()
