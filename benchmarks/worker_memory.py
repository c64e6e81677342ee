"""Memory of a worker that computes shards of a large archive: does it grow with the archive?

    python benchmarks/worker_memory.py [--images 10000 100000 1000000] [--kinds tars tar parquet]

Writes archives of small JPEG images (equal ones under many names: what counts is their number), and for each starts one
process that computes ten shards of 1,000 images, spread over them, by a small network, after it has opened each archive
once. Prints its peak, and what the indexes take. "tars" are archives of 10,000 images, "tar" and "parquet" a single
one.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

SHARDS = 10
SHARD = 1000
ARCHIVE = 10_000


def jpeg() -> bytes:
    import numpy as np
    from PIL import Image

    data = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data, "JPEG", quality=90)
    return data.getvalue()


def write(file: Path, count: int) -> Path:
    data = jpeg()
    if file.suffix == ".tars":
        file.mkdir()
        first = write(file / "0000.tar", ARCHIVE)
        for number in range(1, count // ARCHIVE):
            os.link(first, file / f"{number:04}.tar")
        return file
    if file.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        schema = pa.schema([("image", pa.binary()), ("label", pa.string())])
        with parquet.ParquetWriter(file, schema) as writer:
            for start in range(0, count, 100):
                labels = [f"class {i % 10}" for i in range(start, start + 100)]
                writer.write_table(pa.table({"image": [data] * 100, "label": labels}, schema), row_group_size=100)
        return file
    with tarfile.open(file, "w") as archive:
        for i in range(count):
            entry = tarfile.TarInfo(f"class {i % 10}/{i:09}.jpg")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
            archive.members = []  # it would keep every member
    return file


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compute(file: str, count: int) -> None:
    """What a worker does, in this process."""
    from headstart.backbone.pixel_net import FeatureNet
    from headstart.backbone.weights import random_backbone
    from headstart.data.sources.containers import open_container
    from headstart.distributed.shards import ImageRow
    from headstart.distributed.work import FeatureWork

    net = FeatureNet(random_backbone("test_resnet", image_size=64))
    computer = FeatureWork.of(net, "float16").computer("cpu")
    before = peak_mib()
    began = time.monotonic()
    archives = sorted(map(str, Path(file).glob("*.tar"))) or [file]
    sizes = [len(open_container(archive).contents.names) for archive in archives]
    indexed, after_index = time.monotonic() - began, peak_mib()
    began = time.monotonic()
    for number in range(SHARDS):
        archive = archives[number * (len(archives) - 1) // (SHARDS - 1)]
        names = open_container(archive).contents.names
        start = number * (sizes[0] - SHARD) // (SHARDS - 1)
        computer([ImageRow(f"{archive}::{names[i]}") for i in range(start, start + SHARD)])
    print(
        f"{Path(file).suffix[1:]}, {count:,} images: index in {indexed:.1f} s and {after_index - before:.0f} MiB; "
        f"{SHARDS} shards at {SHARDS * SHARD / (time.monotonic() - began):.0f} images/s; peak {peak_mib():.0f} MiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="*", default=["tars", "tar", "parquet"])
    parser.add_argument("--compute", help="file that one worker computes")
    given = parser.parse_args()
    if given.compute:
        compute(given.compute, given.images[0])
        return
    with tempfile.TemporaryDirectory() as place:
        for kind in given.kinds:
            for count in given.images:
                file = write(Path(place) / f"{count}.{kind}", count)
                command = [sys.executable, __file__, "--compute", str(file), "--images", str(count)]
                subprocess.run(command, check=True)
                shutil.rmtree(file) if file.is_dir() else file.unlink()


if __name__ == "__main__":
    main()
