"""The same labelled images in each kind of source: folder, zip, tar, WebDataset, Parquet, Arrow."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

IMAGE_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def images_of(folder: Path) -> dict[str, bytes]:
    """Path below a folder -> content of each image, class by class and in natural order."""
    files = sorted(folder.rglob("*.png"), key=lambda file: (file.parent.name, int(file.stem)))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def write_zip(file: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file


def write_tar(file: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(file, "w") as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file


def webdataset_members(images: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
    """Members of a WebDataset shard: an image and its label for each sample."""
    members = []
    for number, (path, data) in enumerate(images.items()):
        members += [(f"{number:06}.png", data), (f"{number:06}.cls", Path(path).parent.name.encode())]
    return members


def image_table(images: Mapping[str, bytes]) -> pa.Table:
    """A table as the library "datasets" writes it: struct of bytes and path, ClassLabel in the metadata."""
    names = list(dict.fromkeys(Path(path).parent.name for path in images))
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    table = pa.table(
        {
            "image": pa.array([{"bytes": data, "path": path} for path, data in images.items()], IMAGE_STRUCT),
            "label": pa.array([names.index(Path(path).parent.name) for path in images], pa.int64()),
        }
    )
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_parquet(file: Path, images: Mapping[str, bytes], row_group_size: int = 7) -> Path:
    parquet.write_table(image_table(images), file, row_group_size=row_group_size)
    return file


def write_arrow(file: Path, images: Mapping[str, bytes], *, is_stream: bool) -> Path:
    """Arrow's stream format, as ``save_to_disk`` of "datasets" writes it, or its file format."""
    table = image_table(images)
    new = pa.ipc.new_stream if is_stream else pa.ipc.new_file
    with new(str(file), table.schema) as writer:
        for batch in table.to_batches(max_chunksize=5):
            writer.write_batch(batch)
    return file


def write_every_source(place: Path, folder: Path) -> dict[str, Path]:
    """Kind of source -> a file with the images of a folder."""
    images = images_of(folder)
    return {
        "zip": write_zip(place / "d.zip", images),
        "tar": write_tar(place / "d.tar", images.items()),
        "webdataset": write_tar(place / "w.tar", webdataset_members(images)),
        "parquet": write_parquet(place / "d.parquet", images),
        "arrow stream": write_arrow(place / "s.arrow", images, is_stream=True),
        "arrow file": write_arrow(place / "f.arrow", images, is_stream=False),
    }
