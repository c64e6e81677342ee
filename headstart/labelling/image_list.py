"""Images of a session: listed in the background, each with a number that never changes, and their thumbnails."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, final

from PIL import Image

from headstart.data.decode import decode, jpeg_bytes
from headstart.data.listing import is_source, iter_images
from headstart.data.sources.addresses import (
    absolute,
    is_glob,
    is_url,
    name_of,
    parent_of,
    relative_to,
    split_address,
    user_address,
)
from headstart.errors import DataError, OptionError
from headstart.files import UserPath

ImageSources = UserPath | Iterable[UserPath]
"""A folder, archive, table, pattern or URL; or a list of sources and of images."""

THUMBNAIL_BYTES: Final = 64 << 20
"""Memory for thumbnails that were made."""

SIZES: Final = (64, 1024)
"""Smallest and largest side of a thumbnail in pixels."""

QUALITY: Final = 82
"""Of the JPEG files of thumbnails."""


def require_source(source: ImageSources) -> None:
    """Refuses a path of this machine that does not exist, such as a mistyped one.

    Raises:
        DataError: there is no such file or folder.
    """
    entries: Iterable[UserPath] = [source] if isinstance(source, (str, os.PathLike)) else source
    for entry in entries:
        if isinstance(entry, (str, os.PathLike)):
            address = user_address(entry)
            file = split_address(address)[0]
            if not is_url(address) and not is_glob(address) and not os.path.lexists(file):
                raise DataError(f"{entry}: no such file or folder.")


def addresses_of(source: ImageSources) -> Iterator[str]:
    """Absolute addresses of the images of a source, each once.

    Raises:
        DataError: it has no images.
        SourceError: its storage cannot be reached.
    """
    seen: set[str] = set()
    entries: Iterable[UserPath] = [source] if isinstance(source, (str, os.PathLike)) else source
    for entry in entries:
        if not isinstance(entry, (str, os.PathLike)):
            raise OptionError(f"{type(entry).__name__} cannot be labelled: its label would belong to no file.")
        for address in iter_images(entry) if is_source(entry) else [user_address(entry)]:
            whole = absolute(address)
            if whole not in seen:
                seen.add(whole)
                yield whole


@final
class ImageList:
    """The images of a session in natural order; thread-safe. It grows while the source is listed.

    Args:
        table: file of the labels, to whose folder the paths in it are relative.
    """

    def __init__(self, table: Path) -> None:
        self._base = parent_of(str(table))
        self.addresses: list[str] = []
        self.paths: list[str] = []
        self._number: dict[str, int] = {}

    def extend(self, addresses: Iterable[str]) -> Iterator[int]:
        """Takes images; yields the number of images after each."""
        for address in addresses:
            path = relative_to(address, self._base)
            self._number[path] = len(self.paths)
            self.addresses.append(address)
            self.paths.append(path)  # last: its length is the number of images
            yield len(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def number_of(self, path: str) -> int | None:
        """The number of the image with this path in the table; None if it is not in the source."""
        return self._number.get(path)

    def number_at(self, address: str) -> int | None:
        """The number of the image with an absolute address; None without one."""
        return self._number.get(relative_to(address, self._base))

    def name(self, image: int) -> str:
        """The name of an image's file, or of the member of an archive."""
        container, member = split_address(self.addresses[image])
        return name_of(member or container)

    def check(self, images: object) -> list[int]:
        """The numbers of an action, each once.

        Raises:
            OptionError: not a list of numbers of images.
        """
        if not isinstance(images, (list, tuple)) or not all(type(image) is int for image in images):
            raise OptionError("images: expected a list of integers.")
        for image in images:
            if not 0 <= image < len(self):
                raise OptionError(f"images: {image} is not the number of an image (0 to {len(self) - 1:,}).")
        return list(dict.fromkeys(images))


@final
class Thumbnails:
    """JPEG thumbnails, made when they are asked for; the latest stay in memory. Thread-safe.

    Args:
        limit: bytes of the thumbnails in memory, at most.
    """

    def __init__(self, limit: int = THUMBNAIL_BYTES) -> None:
        self._limit, self._bytes = limit, 0
        self._made: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, address: str, size: int) -> bytes:
        """A JPEG file whose longer side has at most ``size`` pixels; smaller images are not enlarged.

        Raises:
            OptionError: the size is out of range.
            UnreadableImage: the image cannot be read.
            SourceError: its storage cannot be reached.
        """
        if not SIZES[0] <= size <= SIZES[1]:
            raise OptionError(f"size {size}: expected {SIZES[0]} to {SIZES[1]} pixels.")
        with self._lock:
            if (found := self._made.get((address, size))) is not None:
                self._made.move_to_end((address, size))
                return found
        image = decode(address, min_side=size).image
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
        made = jpeg_bytes(image, quality=QUALITY)
        with self._lock:
            if (address, size) not in self._made:
                self._made[address, size] = made
                self._bytes += len(made)
            while self._bytes > self._limit and len(self._made) > 1:
                self._bytes -= len(self._made.popitem(last=False)[1])
        return made
