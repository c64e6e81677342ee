"""Archives and tables that are read as containers of images; the last ones stay indexed in memory."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from headstart.concurrency import ProcessLock
from headstart.data.sources.addresses import COMPRESSED_SUFFIXES, CONTAINER_SUFFIXES, is_url, name_of, suffix_of
from headstart.data.sources.interface import Container, FileStamp
from headstart.data.sources.parquet_file import TableContainer
from headstart.data.sources.stores import store_of
from headstart.data.sources.tar_file import TarContainer
from headstart.data.sources.zip_file import ZipContainer
from headstart.errors import DataError

CONTAINERS: Final[dict[str, Callable[[str], Container]]] = {
    ".tar": TarContainer,
    ".zip": ZipContainer,
    ".parquet": TableContainer,
    ".arrow": TableContainer,
}
"""Registry: suffix of a container, one of ``addresses.CONTAINER_SUFFIXES`` -> how it is opened."""

MAX_OPEN: Final = 64
"""Containers that stay indexed. An index takes about 300 bytes for each member; no file stays open."""

_OPEN: OrderedDict[tuple[int, str], tuple[FileStamp, Container]] = OrderedDict()
_LOCK = ProcessLock()
_OPENING: dict[str, ProcessLock] = {}


def open_container(address: str) -> Container:
    """The container at a path or URL, indexed again if the file has changed.

    Raises:
        DataError: it is compressed as a whole, or damaged from the start.
        UnreadableImage: there is no such file.
        SourceError: its store cannot be reached.
    """
    if suffix_of(address) not in CONTAINER_SUFFIXES:
        raise DataError(f"{address}: neither an archive nor a table that can hold images.")
    stamp, key = _known_stamp(address), (os.getpid(), address)
    with _LOCK:
        held = _OPEN.get(key)
        if held is not None and stamp in (held[0], ()):
            _OPEN.move_to_end(key)
            return held[1]
        opening = _OPENING.setdefault(address, ProcessLock())
    with opening:  # other containers are opened meanwhile
        with _LOCK:
            held = _OPEN.get(key)
        if held is not None and stamp in (held[0], ()):
            return held[1]
        container = CONTAINERS[suffix_of(address)](address)
        with _LOCK:
            _OPEN[key] = stamp, container
            while len(_OPEN) > MAX_OPEN:
                _OPEN.popitem(last=False)
            _OPENING.pop(address, None)
    return container


def close_container(address: str) -> None:
    """Drops the index of one container, which is large for many members."""
    with _LOCK:
        _OPEN.pop((os.getpid(), address), None)


def close_containers() -> None:
    """Drops all indexes."""
    with _LOCK:
        _OPEN.clear()


def refuse_compressed(address: str) -> None:
    """Raises an error for a compressed tar file, in which no single image can be found.

    Raises:
        DataError: it is one.
    """
    name = name_of(address).lower()
    if suffix := next((suffix for suffix in COMPRESSED_SUFFIXES if name.endswith(suffix)), ""):
        raise DataError(
            f"{address}: a compressed archive ({suffix}), in which single images cannot be found. Decompress it to a "
            f".tar file first."
        )


def _known_stamp(address: str) -> FileStamp:
    """The stamp of a local file; () for a remote one, which is taken as unchanged while the process runs."""
    return () if is_url(address) else store_of(address).stamp(address)
