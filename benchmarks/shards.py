"""Work in shards: its rate by workers, its memory by number of images, and the probe that is fitted from shards.

    python benchmarks/shards.py rate [--images 60000] [--ray]
    python benchmarks/shards.py memory [--images 10000 100000 1000000]
    python benchmarks/shards.py probe [--images 1000000] [--features 1280]
    python benchmarks/shards.py photographs --data DATA
    python benchmarks/shards.py labels [--images 100000] [--features 1280]
    python benchmarks/shards.py driver [--images 10000 100000 1000000] [--kinds folder csv tar parquet]

``rate`` generates images of 32 x 32 pixels in 10 classes and extracts features at 64 pixels, by one process with all
processors and by one process for each. ``memory`` computes features of a stub, so that what is measured is the
driver's memory, opens the index of the shards, and fits the probe. ``probe`` writes random shards with overlapping
classes and fits the probe to them and, up to 100,000 images, in memory. ``photographs`` extracts a data set
with train and val, and fits the probe both ways. ``labels`` flips 2 % of the labels of
shards and looks for them as ``headstart fit`` does. ``driver`` lists real sources and writes
shards of stub features: a folder of links to a few files, a table of their paths, copies of a tar file of 10,000
samples, and a Parquet file.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np

CLASSES = 10


def write_images(folder: Path, count: int) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(CLASSES):
        (folder / f"class {number}").mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
        image.save(folder / f"class {i % CLASSES}" / f"{i}.jpg", quality=90)
    return folder


def rate(images: int, *, ray: bool) -> None:
    with tempfile.TemporaryDirectory() as place:
        data = write_images(Path(place) / "data", images)
        runs = [["--workers", "1"], ["--workers", str(os.cpu_count() or 1)]]
        runs += [["--ray", "--workers", str(os.cpu_count() or 1)]] if ray else []
        first = 0.0
        for number, options in enumerate(runs):
            command = [sys.executable, "-m", "headstart", "extract", str(data), "--image-size", "64"]
            began = time.monotonic()
            subprocess.run([*command, "--out", f"{place}/out{number}", *options], check=True, capture_output=True)
            seconds = time.monotonic() - began
            first = first or seconds
            print(
                f"{' '.join(options)}: {seconds:.1f} s, {images / seconds:.0f} images/s, {first / seconds:.2f} of the "
                "rate of one process",
                flush=True,
            )


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def stub_rows(count: int) -> Iterator[object]:
    from headstart.distributed.shards import ImageRow

    for i in range(count):
        yield ImageRow(f"bucket/folder/{i:09}.jpg", f"class {i % CLASSES}")


def stub_engine(length: int, spread: float = 0.1) -> object:
    """Random features with overlapping classes, as float16."""
    from headstart.cache.keys import content_key
    from headstart.distributed.shard_tables import feature_table
    from headstart.distributed.work import ShardTables

    centres = np.random.default_rng(1).normal(size=(CLASSES, length)).astype(np.float32)

    def engine(_work: object, shards: Iterator[object]) -> Iterator[object]:
        for shard in shards:
            rng = np.random.default_rng(shard.number)  # type: ignore[attr-defined]
            rows = shard.rows  # type: ignore[attr-defined]
            labels = [int(row.label.rpartition(" ")[2]) for row in rows]
            features = rng.standard_normal((len(rows), length), np.float32) + spread * centres[labels]
            keys = [content_key(row.path.encode()) for row in rows]
            yield shard, ShardTables(feature_table(rows, keys, features, "float16"), None)

    return engine


STUB = SimpleNamespace(description={"features": "float16", "network": {"architecture": "stub"}})


def write_shards(folder: Path, count: int, length: int, spread: float = 0.1) -> float:
    from headstart.distributed.compute import compute_shards
    from headstart.progress import SilentProgress

    began = time.monotonic()
    compute_shards(
        STUB,  # type: ignore[arg-type]
        stub_rows(count),  # type: ignore[arg-type]
        folder,
        stub_engine(length, spread),  # type: ignore[arg-type]
        total=count,
        progress=SilentProgress(),
    )
    return time.monotonic() - began


def fit(folder: Path, *, in_memory: bool) -> None:
    from headstart.data.image_table import SPLITS
    from headstart.distributed.sharded_features import open_sharded_features
    from headstart.progress import SilentProgress
    from headstart.training.losses import log_losses
    from headstart.training.probe import fit_probe
    from headstart.training.streamed_probe import fit_streamed_probe

    began = time.monotonic()
    sharded = open_sharded_features(folder)
    opened, after_open = time.monotonic() - began, peak_mib()
    given = sharded.splits == SPLITS.index("val")
    judged = given if given.any() else np.arange(len(sharded)) // CLASSES % 10 == 9
    learnt = ~judged if not given.any() else sharded.splits == SPLITS.index("train")
    labels, classes = sharded.labels[learnt], len(sharded.classes)
    passes = [0]

    def batches() -> Iterator[np.ndarray]:
        passes[0] += 1
        return sharded.batches(learnt)

    began = time.monotonic()
    found = fit_streamed_probe(batches, labels, classes=classes, progress=SilentProgress())
    seconds, memory = time.monotonic() - began, peak_mib()
    held = np.flatnonzero(judged)[:10_000]
    x, y = sharded.read(held), sharded.labels[held]

    def judge(probe: object) -> str:
        scores = (x @ probe.weight.T + probe.bias).astype(np.float64)  # type: ignore[attr-defined]
        return f"{100 * (scores.argmax(1) == y).mean():.2f} %, log loss {log_losses(scores, y).mean():.5f}"

    print(
        f"{len(sharded):,} images x {sharded.length}: index opened in {opened:.1f} s, peak {after_open:.0f} MiB; probe "
        f"in {seconds:.1f} s, {passes[0]} passes, peak {memory:.0f} MiB; C = {found.c:g}, {judge(found)}",
        flush=True,
    )
    if in_memory:
        began = time.monotonic()
        features = sharded.read(np.flatnonzero(learnt))
        whole = fit_probe(features, labels, classes=classes)
        seconds = time.monotonic() - began
        print(f"  in memory: {seconds:.1f} s, peak {peak_mib():.0f} MiB; C = {whole.c:g}, {judge(whole)}", flush=True)


def photographs(data: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "headstart", "extract", data, "--out", f"{place}/out", "--workers", "2"]
        subprocess.run(command, check=True, capture_output=True)
        fit(Path(place) / "out", in_memory=True)


def labels(count: int, length: int) -> None:
    from dataclasses import replace

    from headstart.distributed.shard_findings import MOST_CHECKED, shard_findings
    from headstart.distributed.sharded_features import open_sharded_features
    from headstart.progress import SilentProgress

    with tempfile.TemporaryDirectory() as place:
        write_shards(Path(place) / "out", count, length, spread=0.12)
        sharded = open_sharded_features(Path(place) / "out")
        rng = np.random.default_rng(0)
        wrong = rng.random(count) < 0.02
        given = np.where(wrong, (sharded.labels + rng.integers(1, CLASSES, count)) % CLASSES, sharded.labels)
        sharded = replace(sharded, labels=given)
        before, began, cpu = peak_mib(), time.monotonic(), time.process_time()
        found = shard_findings(sharded, 30.0, seed=0, most_checked=MOST_CHECKED, progress=SilentProgress())
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        checked = sharded.first_by_content(np.ones(count, dtype=bool), MOST_CHECKED)
        planted = set(sharded.paths(checked[wrong[checked]]))
        named = {path for finding in found if finding.kind == "wrong-label" for (path,) in finding.images}
        print(
            f"{count:,} images x {length}, {len(checked):,} checked: {seconds:.0f} s, {cpu:.0f} s of processors, peak "
            f"{before:.0f} MiB before, {peak_mib():.0f} MiB after; {len(named & planted)} of {len(planted)} wrong "
            f"labels named, {len(named - planted)} others; {[finding.message for finding in found]}",
            flush=True,
        )


def memory(counts: list[int], length: int) -> None:
    for count in counts:
        with tempfile.TemporaryDirectory() as place:
            code = "import sys; sys.path.insert(0, sys.argv[1]); import shards; from pathlib import Path; "
            tail = "print(round(seconds, 1), round(shards.peak_mib()))"
            write = f"seconds = shards.write_shards(Path(sys.argv[2]), {count}, {length}); "
            here = str(Path(__file__).parent)
            done = subprocess.run(
                [sys.executable, "-c", code + write + tail, here, f"{place}/out"],
                check=True,
                capture_output=True,
                text=True,
            )
            seconds, peak = done.stdout.split()
            print(f"{count:,} images: written in {seconds} s, peak of the driver {peak} MiB", flush=True)
            tail = f"shards.fit(Path(sys.argv[2]), in_memory={count <= 100_000})"
            subprocess.run([sys.executable, "-c", code + tail, here, f"{place}/out"], check=True)


def write_source(kind: str, place: Path, count: int) -> Path:
    """A source of that many small images in ten classes; made of few different bytes, quickly."""
    if kind in ("folder", "csv"):
        folder = place / "data"
        for i in range(count):
            target = folder / f"class {i % CLASSES}" / f"{i}.jpg"
            if i < CLASSES:
                target.parent.mkdir(parents=True)
            if i % 30_000 == 0:  # file systems limit the links to a file
                first = place / f"{i}.jpg"
                first.write_bytes(b"stub")
            os.link(first, target)
        if kind == "folder":
            return folder
        table = place / "table.csv"
        with table.open("w") as file:
            file.write("path,label\n")
            file.writelines(f"data/class {i % CLASSES}/{i}.jpg,class {i % CLASSES}\n" for i in range(count))
        return table
    if kind == "tar":
        return write_tars(place, count)
    import pyarrow as pa
    from pyarrow import parquet

    file = place / "data.parquet"
    schema = pa.schema([("image", pa.binary()), ("label", pa.string())])
    with parquet.ParquetWriter(file, schema) as writer:
        for begin in range(0, count, 10_000):
            numbers = range(begin, min(begin + 10_000, count))
            columns = [[b"\x89PNG stub"] * len(numbers), [f"class {i % CLASSES}" for i in numbers]]
            writer.write_table(pa.table(columns, schema=schema))
    return file


def write_tars(place: Path, count: int, samples: int = 10_000) -> Path:
    import io
    import shutil
    import tarfile

    folder = place / "tars"
    folder.mkdir()
    with tarfile.open(place / "first.tar", "w") as archive:
        for i in range(samples):
            for name, data in ((f"{i:06}.jpg", b"stub"), (f"{i:06}.cls", f"class {i % CLASSES}".encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    for number in range(count // samples):
        shutil.copy(place / "first.tar", folder / f"{number:05}.tar")
    return folder


def drive(source: Path, out: Path, length: int) -> None:
    """Lists a source and writes shards of stub features; prints seconds of listing and of all, and the peak."""
    from headstart.data.streamed_dataset import StreamedDataset
    from headstart.distributed.bulk import _rows_of
    from headstart.distributed.compute import compute_shards
    from headstart.progress import SilentProgress

    began = time.monotonic()
    images = StreamedDataset(source)
    listed, after = time.monotonic() - began, peak_mib()
    compute_shards(
        STUB,  # type: ignore[arg-type]
        _rows_of(images),
        out,
        stub_engine(length),  # type: ignore[arg-type]
        total=len(images),
        progress=SilentProgress(),
    )
    seconds, cpu = time.monotonic() - began, time.process_time()
    print(
        f"listed in {listed:.1f} s, peak {after:.0f} MiB; shards after {seconds:.1f} s, {cpu:.1f} s of processors, "
        f"peak {peak_mib():.0f} MiB"
    )


def driver(counts: list[int], kinds: list[str], length: int) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import shards; from pathlib import Path; "
    code += f"shards.drive(Path(sys.argv[2]), Path(sys.argv[3]), {length})"
    for kind in kinds:
        for count in counts:
            with tempfile.TemporaryDirectory() as place:
                source = write_source(kind, Path(place), count)
                command = [sys.executable, "-c", code, str(Path(__file__).parent), str(source), f"{place}/out"]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                print(f"{kind}, {count:,} images: {done.stdout.strip()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["rate", "memory", "probe", "photographs", "labels", "driver"])
    parser.add_argument("--data")
    parser.add_argument("--images", type=int, nargs="*")
    parser.add_argument("--features", type=int)
    parser.add_argument("--kinds", nargs="*", default=["folder", "csv", "tar", "parquet"])
    parser.add_argument("--ray", action="store_true")
    given = parser.parse_args()
    if given.what == "rate":
        rate((given.images or [60_000])[0], ray=given.ray)
    elif given.what == "memory":
        memory(given.images or [10_000, 100_000, 1_000_000], given.features or 64)
    elif given.what == "photographs":
        photographs(given.data)
    elif given.what == "labels":
        labels((given.images or [100_000])[0], given.features or 1280)
    elif given.what == "driver":
        driver(given.images or [10_000, 100_000, 1_000_000], given.kinds, given.features or 64)
    else:
        memory(given.images or [1_000_000], given.features or 1280)


if __name__ == "__main__":
    main()
