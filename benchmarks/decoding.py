"""From files to pixels: an image decoded whole, decoded no larger than needed, and read back from the pixel cache.

    python benchmarks/decoding.py FOLDER [--images 600] [--rounds 3]

Every way gives what the default backbone expects (224 x 224 pixels, uint8), in turns, each with all threads that it
uses: "whole" is Pillow's decoder at full size in one thread, as a tutorial's loader has it; "reduced" lets the JPEG
decoder leave out what the resize would throw away, one thread and several; "first look" is all that a cold command does
with a file (read, hash, decode, perceptual hash, keep); "kept" reads the rows that it left, in another order. How far
"reduced" is from "whole" is the mean absolute difference in grey levels. Prints a row for each and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from headstart.backbone.weights import DEFAULT_BACKBONE, load_backbone
from headstart.concurrency import map_images
from headstart.data.dataset import open_data
from headstart.data.decode import decode
from headstart.data.pixel_cache import pixel_store
from headstart.data.preprocessing import Preprocessing, resize_and_crop
from headstart.data.scan import scan


def whole(path: str, preprocessing: Preprocessing) -> np.ndarray:
    with Image.open(path) as image:
        return resize_and_crop(image.convert("RGB"), preprocessing)


def reduced(path: str, preprocessing: Preprocessing) -> np.ndarray:
    return resize_and_crop(decode(path, min_side=preprocessing.decode_at_least).image, preprocessing)


def ways(files: list[str], preprocessing: Preprocessing, scratch: Path) -> dict[str, Callable[[], object]]:
    """What is timed; "first look" has an empty cache each time."""
    filled = 0

    def first_look() -> object:
        nonlocal filled
        filled += 1
        return scan(files, preprocessing=preprocessing, cache=scratch / str(filled))

    keys = scan(files, preprocessing=preprocessing, cache=scratch / "kept").keys
    mixed = [keys[i] for i in np.random.default_rng(0).permutation(len(keys))]
    store = pixel_store(preprocessing, scratch / "kept")
    return {
        "whole": lambda: [whole(path, preprocessing) for path in files],
        "reduced": lambda: [reduced(path, preprocessing) for path in files],
        "reduced, threads": lambda: list(map_images(lambda path: reduced(path, preprocessing), files)),
        "first look": first_look,
        "kept": lambda: [store.read(mixed[start : start + 64]) for start in range(0, len(mixed), 64)],
    }


def main() -> None:
    """Prints a row for each way and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    preprocessing = load_backbone(DEFAULT_BACKBONE).preprocessing
    files = sorted(open_data(given.data).files())
    files = files[:: max(1, len(files) // given.images)][: given.images]
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        timed = ways(files, preprocessing, Path(scratch))
        for _ in range(given.rounds):
            for name, run in timed.items():
                started = time.perf_counter()
                run()
                rates.setdefault(name, []).append(len(files) / (time.perf_counter() - started))
    pairs = [(whole(path, preprocessing), reduced(path, preprocessing)) for path in files[:100]]
    apart = float(np.mean([np.abs(a.astype(int) - b).mean() for a, b in pairs]))
    print("way               images/s  (rounds)     times whole")
    base = statistics.median(rates["whole"])
    for name, own in rates.items():
        middle = statistics.median(own)
        print(f"{name:16} {middle:9.0f}  {f'{min(own):.0f}-{max(own):.0f}':11}  {middle / base:6.1f}")
    print(f"reduced differs from whole by {apart:.2f} of 255 on average")
    document = {name: [round(rate, 1) for rate in own] for name, own in rates.items()}
    print(json.dumps({"benchmark": "decoding", "images": len(files), "images_per_second": document, "apart": apart}))


if __name__ == "__main__":
    main()
