"""Shards with one flipped bit, read with and without checksums of pages, and what verifying costs.

    python benchmarks/damaged_shards.py [--flips 1000]

Writes a shard of 1,000 images with 1,280 features, flips a random bit of a copy, and reads the copy as
``headstart fit`` does. A third of the flips are in the last 2,000 bytes, which describe the table and have no checksum.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from pyarrow import parquet

from headstart.distributed.shard_tables import feature_table, write_shard
from headstart.distributed.sharded_features import open_sharded_features
from headstart.distributed.shards import ImageRow, Shard, ShardSummary, begin_work, write_manifest
from headstart.errors import DataError

ROWS, LENGTH, FOOTER = 1000, 1280, 2000
DESCRIPTION = {"features": "float16"}


def written(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = tuple(ImageRow(f"s3://bucket/flowers/{i}.jpg", f"class {i % 10}") for i in range(ROWS))
    features = np.maximum(rng.normal(size=(ROWS, LENGTH)), 0).astype(np.float32)
    shard = Shard(0, "shard", rows)
    begin_work(folder, DESCRIPTION)
    write_shard(folder, shard, feature_table(rows, [rng.bytes(16) for _ in rows], features, "float16"), None)
    write_manifest(folder, DESCRIPTION, [ShardSummary("shard", ROWS, 0)])
    return shard.file(folder)


def outcome(folder: Path) -> list[object]:
    try:
        found = open_sharded_features(folder)
        every = np.arange(len(found))
        parts = [found.labels, found.splits, found.keys, found.read(every)]
        return [*(part.tobytes() for part in parts), found.classes, found.groups, found.paths(every)]
    except DataError:
        return []


def flip(folder: Path, file: Path, count: int) -> Counter[str]:
    draw, content, whole, found = random.Random(0), file.read_bytes(), outcome(folder), Counter[str]()
    for number in range(count):
        damaged = bytearray(content)
        place = draw.randrange(len(content) - FOOTER, len(content)) if number % 3 == 0 else draw.randrange(len(content))
        damaged[place] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        read = outcome(folder)
        found["unchanged" if read == whole else "wrong" if read else "named"] += 1
    file.write_bytes(content)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=1000)
    flips = parser.parse_args().flips
    with tempfile.TemporaryDirectory() as place:
        file = written(Path(place))
        print("with checksums:", dict(flip(Path(place), file, flips)))
        for verified in (False, True):
            began = time.process_time()
            for _ in range(100):
                parquet.read_table(file, columns=["features"], use_threads=False, page_checksum_verification=verified)
            print(f"verified {verified}: {10 * (time.process_time() - began):.1f} ms of processor time")
        table = parquet.read_table(file)
        parquet.write_table(table, file, use_dictionary=["path", "key", "label", "split", "group"])
        print("without checksums:", dict(flip(Path(place), file, flips)))


if __name__ == "__main__":
    main()
