"""Shards: work over many images cut into parts, each with one output file, and a manifest that is written last.

A shard's file is named by a hash of its images and of everything that determines its content. Work that was stopped is
resumed by computing the shards whose files are missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from headstart.cache.keys import describe_key
from headstart.data.class_folders import listed
from headstart.errors import OptionError, OutputError
from headstart.files import json_text, not_written, remove_partials, write_atomically

MANIFEST_FILE: Final = "manifest.json"
MANIFEST_VERSION: Final = 1

WORK_FILE: Final = "work.json"
"""What the shards of a folder are made by; written first."""

SHARD_SIZE: Final = 1000
"""Default number of images of a shard: a few megabytes of features, and seconds to minutes of work to lose."""

UNREADABLE: Final = "unreadable"
"""Folder of the tables of images that cannot be read."""


@dataclass(frozen=True)
class ImageRow:
    """An image of the work.

    Attributes:
        path: where its bytes are: a path, a URL, or ``archive::member``.
        label: name of its class; several are separated by "|"; "" if it has none.
        split: "train", "val" or "test"; "" if the data have none.
        group: name of its group; "" if it has none.
        version: of the file, such as its size and time of change; "" if it is not known without reading it.
    """

    path: str
    label: str = ""
    split: str = ""
    group: str = ""
    version: str = ""


@dataclass(frozen=True)
class Shard:
    """A part of the work.

    Attributes:
        number: its place in the work, from 0 on.
        name: hash of its images and of what is computed from them; the name of its file.
        rows: its images.
    """

    number: int
    name: str
    rows: tuple[ImageRow, ...]

    def file(self, folder: Path) -> Path:
        """Its output file."""
        return folder / f"{self.name}.parquet"

    def unreadable_file(self, folder: Path) -> Path:
        """The table of its images that cannot be read; exists only if there are any."""
        return folder / UNREADABLE / f"{self.name}.parquet"


@dataclass(frozen=True)
class ShardSummary:
    """What a finished shard has.

    Attributes:
        name: of the shard.
        num_rows: rows of its file.
        num_unreadable: images that cannot be read.
    """

    name: str
    num_rows: int
    num_unreadable: int


def cut_into_shards(rows: Iterable[ImageRow], size: int, description: dict[str, Any]) -> Iterator[Shard]:
    """Cuts work into shards, one at a time, so that any number of images takes the same memory.

    Args:
        rows: the images, in order.
        size: images of a shard, at least 1; the last one may have fewer.
        description: everything besides the images that determines the output; a JSON document.
    """
    made_by = describe_key(description)
    iterator, number = iter(rows), 0
    while part := tuple(islice(iterator, size)):
        content = [[row.path, row.label, row.split, row.group, row.version] for row in part]
        yield Shard(number, describe_key({"images": content, "made by": made_by}), part)
        number += 1


def begin_work(folder: Path, description: dict[str, Any], *, images: Sequence[str] = (), shard_size: int = 0) -> None:
    """Creates a folder for work, or checks that it is one of the same work.

    Args:
        folder: of the output.
        description: see ``cut_into_shards``.
        images: absolute addresses of the folders, archives and tables that the images are in: those of others would
            replace them.
        shard_size: images of a shard: with another number everything would be computed again.

    Raises:
        OptionError: the shards of the folder have another size.
        OutputError: it has files of something else, or cannot be written.
    """
    document = description | {"images": list(images), "shard_size": shard_size}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
        if names and WORK_FILE not in names:
            raise OutputError(f"{folder}: is not empty ({names[0]}). Name a new folder, or an empty one.")
        file = folder / WORK_FILE
        if not names:
            write_atomically(file, json_text(document, indent=1).encode())
        else:
            _check_same_work(folder, json.loads(file.read_text(encoding="utf-8")), json.loads(json_text(document)))
    except OSError as error:
        raise OutputError(f"{not_written(folder, error)}, or name another folder.") from error
    except ValueError as error:
        raise OutputError(f"{folder / WORK_FILE}: damaged. Name a new folder.") from error


def _check_same_work(folder: Path, begun: dict[str, Any], asked: dict[str, Any]) -> None:
    """Checks work against that of a folder, see ``begin_work``."""
    if not isinstance(begun, dict):
        raise ValueError(f"{WORK_FILE}: {type(begun).__name__}")
    different = {name for name in begun.keys() | asked.keys() if begun.get(name) != asked.get(name)}
    if different == {"shard_size"}:
        raise OptionError(
            f"shard_size {asked['shard_size']}: {folder} has shards of {begun['shard_size']} images. Give that number, "
            "or name a new folder."
        )
    what = "another network, model or option"
    if different == {"images"}:
        what = f"other images ({listed(begun.get('images') or ['unknown'])})"
    if different:
        raise OutputError(f"{folder}: has the output of {what}. Name a new folder, or remove this one.")


def write_manifest(folder: Path, description: dict[str, Any], shards: Sequence[ShardSummary]) -> dict[str, Any]:
    """Writes the list of all shards, which says that the work is finished.

    Args:
        folder: of the output.
        description: see ``cut_into_shards``.
        shards: every shard, in the order of the images.

    Returns:
        The manifest.

    Raises:
        OSError: it cannot be written.
    """
    document = {
        "version": MANIFEST_VERSION,
        "work": description,
        "rows": sum(shard.num_rows for shard in shards),
        "unreadable": sum(shard.num_unreadable for shard in shards),
        "shards": [
            {"file": f"{shard.name}.parquet", "rows": shard.num_rows, "unreadable": shard.num_unreadable}
            for shard in shards
        ],
    }
    write_atomically(folder / MANIFEST_FILE, json_text(document, indent=1).encode())
    return document


def remove_others(folder: Path, manifest: dict[str, Any]) -> None:
    """Removes shards that are not in the manifest, of images that have changed or are gone since, and partial files.

    Raises:
        OSError: one cannot be removed.
    """
    listed = {shard["file"] for shard in manifest["shards"]}
    remove_partials(folder)
    for part in (folder, folder / UNREADABLE):
        for file in part.glob("*.parquet"):
            if file.name not in listed:
                file.unlink()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of finished work.

    Raises:
        OutputError: there is none, or it is damaged.
    """
    file = folder / MANIFEST_FILE
    try:
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if missing := {"shards", "rows", "unreadable"} - set(document):
            raise LookupError(missing)
    except FileNotFoundError as error:
        raise OutputError(f"{folder}: has no {MANIFEST_FILE}, so the work is not finished.") from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise OutputError(f"{file}: damaged. Run the command that wrote the folder again.") from error
    return document
