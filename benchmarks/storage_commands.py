"""Whole commands on a folder of images and on the same images in object storage: are the results equal?

    python benchmarks/storage_commands.py DATA [--effort probe] [--keep FOLDER]

Starts moto's S3 server on a free port of 127.0.0.1, stores the images there as a folder, a tar file and a Parquet
file, and runs check, train, extract (one process, and two workers into a folder of shards) and predict (printed, and
two workers into a folder of shards) on each, with a separate cache. Prints seconds and a hash of every result.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from natsort import natsorted

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from model_files import content_without_name
from object_storage import S3Server, s3_server
from source_files import write_parquet, write_tar


def store(server: S3Server, data: Path, place: Path) -> list[str]:
    """Stores the images in each form; returns the addresses."""
    images = {str(f.relative_to(data)): f.read_bytes() for f in natsorted(data.rglob("*"), str) if f.is_file()}
    for name, content in images.items():
        server.put(f"d/{name}", content)
    server.put("d.tar", write_tar(place / "d.tar", images.items()).read_bytes())
    splits = {name.split("/")[0] for name in images} & {"train", "val", "test"}
    for split in splits or {""}:
        some = {name: content for name, content in images.items() if name.startswith(split)}
        table = write_parquet(place / "one.parquet", some, row_group_size=100)
        server.put(f"tables/{split or 'all'}.parquet", table.read_bytes())
    return ["s3://flowers/d", "s3://flowers/d.tar", "s3://flowers/tables"]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def shards(folder: Path, column: str) -> str:
    """Hash of a column of every shard, by content key: the order of images may differ."""
    from pyarrow import parquet

    rows = {}
    for file in folder.glob("*.parquet"):
        table = parquet.read_table(file, columns=["key", column])
        values = np.stack(table[column].to_numpy()) if column == "features" else table[column].to_numpy()
        rows |= dict(zip(table["key"].to_pylist(), values, strict=True))
    return digest(b"".join(np.asarray(rows[key]).tobytes() for key in sorted(rows)))


def run(source: str, place: Path, effort: str) -> dict[str, tuple[float, str]]:
    """Command -> seconds and a hash of what it gives."""
    found: dict[str, tuple[float, str]] = {}

    def headstart(*words: str) -> tuple[float, str]:
        began = time.monotonic()
        environment = os.environ | {"HEADSTART_CACHE": str(place / "cache")}
        command = [sys.executable, "-m", "headstart", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return time.monotonic() - began, done.stdout

    seconds, text = headstart("check", source, "--json")
    document = json.loads(text)
    found["check"] = seconds, digest(json.dumps([[f["kind"], len(f["images"])] for f in document["findings"]]).encode())
    seconds, _ = headstart("train", source, "--effort", effort, "--out", f"{place}/run")
    found["train"] = seconds, digest(content_without_name(place / "run" / "model.safetensors"))
    seconds, _ = headstart("extract", source, "--out", f"{place}/features.npz")
    with np.load(place / "features.npz") as arrays:
        found["extract"] = seconds, digest(b"".join(sorted(row.tobytes() for row in arrays["features"])))
    seconds, _ = headstart("extract", source, "--out", f"{place}/features", "--workers", "2", "--shard-size", "100")
    found["extract --workers 2"] = seconds, shards(place / "features", "features")
    seconds, text = headstart("predict", f"{place}/run", source, "--json")
    tops = sorted((one["label"], one["probability"]) for one in json.loads(text))
    found["predict"] = seconds, digest(json.dumps(tops).encode())
    words = ("--out", f"{place}/predictions", "--workers", "2", "--shard-size", "100")
    seconds, _ = headstart("predict", f"{place}/run", source, *words)
    found["predict --workers 2"] = seconds, shards(place / "predictions", "probability")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--effort", default="probe")
    parser.add_argument("--keep", type=Path, help="folder for everything that is written")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, s3_server() as server:
        place = given.keep or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        sources = [str(given.data), *store(server, given.data, place)]
        expected: dict[str, tuple[float, str]] = {}
        for number, source in enumerate(sources):
            found = run(source, place / str(number), given.effort)
            expected = expected or found
            for name, (seconds, value) in found.items():
                verdict = "equal" if value == expected[name][1] else "DIFFERS"
                print(f"{source}\t{name}\t{seconds:.1f} s\t{value}\t{verdict}", flush=True)


if __name__ == "__main__":
    main()
