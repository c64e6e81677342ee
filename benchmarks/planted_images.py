"""Planted faults among very many images: are all named, and is nothing else lost?

    python benchmarks/planted_images.py [--images 500000] [--workers 2] [--only extract|check]

Generates JPEG images of 32 x 32 pixels in tar files of 10,000 and a table that names them, with 5 damaged ones, 3 that
do not exist, and 200 duplicates (100 with equal bytes, 100 resized and compressed again). Computes features in shards
with a small network of random weights, and runs ``headstart check --files-only``. Each prints what it named, what it
lost, its time and its peak memory; any difference from what was planted ends with status 1.
"""

from __future__ import annotations

import argparse
import io
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

CLASSES = 10
IN_A_TAR = 10_000
NUM_DAMAGED, NUM_MISSING, NUM_COPIES = 5, 3, 200


@dataclass(frozen=True)
class Planted:
    """What a table has.

    Attributes:
        table: names the images.
        good: paths of readable images, as in the table.
        bad: paths of the others.
        copies: pairs of original and duplicate.
    """

    table: Path
    good: frozenset[str]
    bad: frozenset[str]
    copies: frozenset[tuple[str, str]]


def jpeg(seed: int, side: int = 32, quality: int = 90) -> bytes:
    """An image that is unlike those of other seeds."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.resize((side, side)).save(out, "JPEG", quality=quality)
    return out.getvalue()


def damaged(number: int) -> bytes:
    """Damage of different kinds."""
    return [b"", b"no image", jpeg(0)[:300], b"\x89PNG\r\n\x1a\n" + bytes(50), b"<html>404</html>"][number % 5]


def write_tar(folder: Path, members: list[tuple[str, int, str]], number: int) -> None:
    """Writes one tar file; a member has a name, a seed or number, and a kind."""
    with tarfile.open(folder / f"{number:04}.tar", "w") as archive:
        for name, seed, kind in members[number * IN_A_TAR : (number + 1) * IN_A_TAR]:
            near = kind == "near"
            data = damaged(seed) if kind == "damaged" else jpeg(seed, 40 if near else 32, 85 if near else 90)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def plant(folder: Path, count: int, processes: int = 2, *, write: bool = True) -> Planted:
    """A table with ``count`` rows, and its images; ``write``: False if they are there."""
    rng = np.random.default_rng(0)
    num_unique = count - NUM_COPIES - NUM_DAMAGED - NUM_MISSING
    kinds = [(seed, "image") for seed in range(num_unique)]
    sources = rng.choice(num_unique, NUM_COPIES, replace=False).tolist()
    kinds += [(seed, "near" if place % 2 else "equal") for place, seed in enumerate(sources)]
    kinds += [(number, "damaged") for number in range(NUM_DAMAGED)] + [(0, "missing")] * NUM_MISSING
    order = rng.permutation(count).tolist()
    named = [(f"{place:07}.jpg", *kinds[one]) for place, one in enumerate(order)]
    present = [member for member in named if member[2] != "missing"]
    if write:
        with ProcessPoolExecutor(processes) as pool:
            list(pool.map(partial(write_tar, folder, present), range(-(-len(present) // IN_A_TAR))))
    place_of = {name: place // IN_A_TAR for place, (name, _, _) in enumerate(present)}
    path_of = {name: f"{place_of.get(name, 0):04}.tar::{name}" for name, _, _ in named}
    first = {seed: path_of[name] for name, seed, kind in named if kind == "image"}
    table = folder / "table.csv"
    with table.open("w") as file:
        file.write("path,label\n")
        file.writelines(f"{path_of[name]},class {seed % CLASSES}\n" for name, seed, _ in named)
    bad = frozenset(path_of[name] for name, _, kind in named if kind in ("damaged", "missing"))
    copies = {tuple(sorted((first[s], path_of[name]))) for name, s, kind in named if kind in ("near", "equal")}
    return Planted(table, frozenset(path_of.values()) - bad, bad, frozenset(copies))  # type: ignore[arg-type]


def read_column(files: Iterator[Path], base: str) -> list[str]:
    from pyarrow import parquet

    columns = (parquet.read_table(file, columns=["path"])["path"].to_pylist() for file in files)
    return [path.removeprefix(base) for column in columns for path in column]


def extract(planted: Planted, out: Path, workers: int) -> list[str]:
    """Differences between what was planted and what the shards name."""
    from headstart.backbone.pixel_net import FeatureNet
    from headstart.backbone.weights import random_backbone
    from headstart.data.streamed_dataset import StreamedDataset
    from headstart.distributed.bulk import extract_shards, shard_engine

    net = FeatureNet(random_backbone("test_resnet", image_size=32))
    found = extract_shards(net, StreamedDataset(planted.table), out, engine=shard_engine(workers=workers, device="cpu"))
    base = f"{planted.table.parent}/"
    rows, bad = read_column(out.glob("*.parquet"), base), read_column(out.glob("unreadable/*.parquet"), base)
    print(f"{found.num_rows:,} rows, {found.num_unreadable} unreadable: {', '.join(sorted(bad))}")
    return [
        *(f"lost or made up: {path}" for path in planted.good ^ set(rows)),
        *(f"not named, or wrongly: {path}" for path in planted.bad ^ set(bad)),
        *(["rows occur twice"] if len(set(rows)) < len(rows) else []),
    ]


def check(planted: Planted) -> list[str]:
    """Differences between what was planted and what the data check names."""
    import headstart as hs

    looked = hs.check(planted.table, files_only=True)
    found = {finding.kind: finding for finding in looked.findings}
    bad = {path for paths in found["unreadable"].images for path in paths}
    pairs = {tuple(sorted(paths)) for paths in found["duplicate"].images}
    print(*(f"{finding.severity}: {finding.message}" for finding in looked.findings), sep="\n")
    return [
        *(f"not named, or wrongly: {path}" for path in planted.bad ^ bad),
        *(f"duplicate not found, or wrongly: {pair}" for pair in planted.copies ^ pairs),
    ]


def measured(what: str, place: Path, images: int, workers: int) -> int:
    """Runs one part in a new process; returns its exit status."""
    command = [sys.executable, __file__, "--images", str(images), "--workers", str(workers), "--at", str(place)]
    return subprocess.run([*command, "--only", what], check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=["extract", "check"])
    parser.add_argument("--at", type=Path, help="folder of earlier images")
    given = parser.parse_args()
    if given.at is None:
        with tempfile.TemporaryDirectory() as place:
            began = time.monotonic()
            plant(Path(place), given.images)
            print(f"{given.images:,} images written in {time.monotonic() - began:.0f} s", flush=True)
            parts = [given.only] if given.only else ["extract", "check"]
            sys.exit(max([measured(part, Path(place), given.images, given.workers) for part in parts]))
    planted, began = plant(given.at, given.images, write=False), time.monotonic()
    faults = extract(planted, given.at / "features", given.workers) if given.only == "extract" else check(planted)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(
        f"{given.only}: {time.monotonic() - began:.0f} s, peak {own:.0f} MiB, of a worker {workers:.0f} MiB; ", end=""
    )
    print(f"{len(faults)} differences from what was planted", *faults[:20], sep="\n", flush=True)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
