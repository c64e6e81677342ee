"""Trees of image files: a local folder, a folder of object storage, or the members of an archive."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol, final

from natsort import natsorted

from headstart.data.image_formats import CAMERA_RAW, SUFFIXES
from headstart.data.natural_order import natural_place
from headstart.data.sources.addresses import is_container
from headstart.errors import DataError

LISTED: Final = 5
"""Names that a message lists."""


class FileTree(Protocol):
    """Visible and hidden files of a folder or an archive. Paths are relative to it; "" is the top."""

    def folders(self, inside: str) -> list[str]:
        """Names of the folders directly in a folder, also hidden ones, in natural order."""
        ...

    def files(self, inside: str) -> list[str]:
        """Names of the visible files directly in a folder."""
        ...

    def files_below(self, inside: str) -> Iterator[str]:
        """Every visible file below a folder, relative to that folder."""
        ...


@final
class LocalTree:
    """A folder of this machine.

    Args:
        root: its path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folders(self, inside: str) -> list[str]:
        """Names of folders; links to folders count.

        Raises:
            DataError: the folder cannot be read.
        """
        try:
            return natsorted(entry.name for entry in os.scandir(self.root / inside) if entry.is_dir())
        except OSError as error:
            raise DataError(f"{self.root / inside}: {error.strerror}.") from error

    def files(self, inside: str) -> list[str]:
        """Names of visible files."""
        entries = os.scandir(self.root / inside)
        return [entry.name for entry in entries if entry.is_file() and not is_hidden(entry.name)]

    def files_below(self, inside: str) -> Iterator[str]:
        """Visible files. Links to folders are followed, loops are not."""
        return walk_files(self.root / inside)


@final
class NameTree:
    """A tree that is known by the names of its files: of an archive, or of object storage.

    Args:
        names: with slashes, relative to the top.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._folders: dict[str, dict[str, None]] = {"": {}}
        self._files: dict[str, list[str]] = {}
        for name in names:
            inside, _, file = name.rpartition("/")
            if file:
                self._files.setdefault(inside, []).append(file)
                self._add_folder(inside)

    def _add_folder(self, path: str) -> None:
        while path not in self._folders:
            self._folders[path] = {}
            parent, _, name = path.rpartition("/")
            self._add_folder(parent)
            self._folders[parent][name] = None

    def folders(self, inside: str) -> list[str]:
        """Names of folders."""
        return natsorted(self._folders.get(inside, ()))

    def files(self, inside: str) -> list[str]:
        """Names of visible files."""
        return [name for name in self._files.get(inside, ()) if not is_hidden(name)]

    def files_below(self, inside: str) -> Iterator[str]:
        """Visible files."""
        yield from self.files(inside)
        for folder in self._folders.get(inside, ()):
            if not is_hidden(folder):
                for file in self.files_below(f"{inside}/{folder}" if inside else folder):
                    yield f"{folder}/{file}"


def walk_files(folder: Path) -> Iterator[str]:
    """Every visible file below a folder, relative to it. Links to folders are followed, loops are not."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [name for name in folders if not is_hidden(name)] if real not in seen else []
        if real in seen:
            continue
        seen.add(real)
        for name in files:
            if not is_hidden(name):
                yield os.path.relpath(os.path.join(place, name), folder)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is ignored."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir")


def images_below(tree: FileTree, inside: str = "") -> tuple[list[str], list[str]]:
    """(image files, other files) below a folder, relative to it, in natural order; without hidden ones."""
    images: list[str] = []
    others: list[str] = []
    for path in tree.files_below(inside):
        (images if is_image_name(path) else others).append(path)
    return natsorted(images), natsorted(others)


def is_image_name(path: str) -> bool:
    """Whether a file counts as an image by the suffix of its name."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def camera_raw(images: Sequence[str], others: Sequence[str]) -> list[str]:
    """Camera raw files without an image of the same name, which many cameras write next to them."""
    stems_of_images = {os.path.splitext(name)[0] for name in images}
    return [name for name in others if is_camera_raw_name(name) and os.path.splitext(name)[0] not in stems_of_images]


def lone_camera_raw(tree: FileTree, names: Iterable[str], inside: str = "") -> list[str]:
    """``camera_raw`` of a tree whose images are not in memory, in natural order.

    Args:
        tree: the files.
        names: the camera raw files below ``inside``, relative to it.
        inside: a folder of the tree.
    """
    by_stem: dict[str, list[str]] = {}
    for name in names:
        by_stem.setdefault(os.path.splitext(name)[0], []).append(name)
    if by_stem:
        for file in tree.files_below(inside):
            if is_image_name(file):
                by_stem.pop(os.path.splitext(file)[0], None)
    return natsorted(name for same in by_stem.values() for name in same)


def is_camera_raw_name(path: str) -> bool:
    """Whether a file counts as a camera raw file by the suffix of its name."""
    return os.path.splitext(path)[1].lower() in CAMERA_RAW


@final
class NamesSeen:
    """Names of files that are not images: how many there are, and the first ones; any number takes the same memory.

    Attributes:
        count: of all but camera raw files.
        camera_raw: those that are camera raw files.
        containers: those of archives and tables.
    """

    def __init__(self) -> None:
        self.count = 0
        self.camera_raw: list[str] = []
        self.containers: list[str] = []
        self._first: list[str] = []

    def add(self, name: str) -> None:
        """Takes a name."""
        if is_camera_raw_name(name):
            self.camera_raw.append(name)
        else:
            self.add_paired([name])

    def add_paired(self, names: Iterable[str]) -> None:
        """Takes names that are counted, whatever their suffix."""
        for name in names:
            self.count += 1
            if is_container(name):
                self.containers.append(name)
            if len(self._first) < LISTED or natural_place(name) < natural_place(self._first[-1]):
                self._first = heapq.nsmallest(LISTED, [*self._first, name], key=natural_place)

    def listed(self) -> str:
        """The first names in natural order, and how many more there are."""
        shown = ", ".join(self._first)
        return shown if self.count <= LISTED else f"{shown} and {self.count - LISTED:,} more"
