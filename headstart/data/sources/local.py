"""Files of this machine."""

from __future__ import annotations

import glob
import os
from typing import BinaryIO, final

from natsort import natsorted

from headstart.data.sources.interface import FileStamp
from headstart.data.sources.local_file import read_local_file, reason_of
from headstart.errors import UnreadableImage


@final
class LocalStore:
    """Files of this machine. Each reading opens and closes the file: none stays open, and forks share nothing."""

    def read(self, address: str) -> bytes:
        """The content of a file."""
        return read_local_file(address)

    def read_range(self, address: str, offset: int, length: int) -> bytes:
        """At most ``length`` bytes from ``offset``."""
        try:
            with open(address, "rb", buffering=0) as file:
                return os.pread(file.fileno(), length, offset)
        except OSError as error:
            raise UnreadableImage(address, reason_of(error)) from error

    def stamp(self, address: str) -> FileStamp:
        """Size and time of the last change."""
        try:
            status = os.stat(address)
        except OSError as error:
            raise UnreadableImage(address, reason_of(error)) from error
        return status.st_size, status.st_mtime_ns

    def open(self, address: str) -> BinaryIO:
        """An open file."""
        try:
            return open(address, "rb")
        except OSError as error:
            raise UnreadableImage(address, reason_of(error)) from error

    def is_file(self, address: str) -> bool:
        """Whether it is an existing file."""
        return os.path.isfile(address)

    def files_below(self, folder: str) -> list[str]:
        """Every file below a folder; links to folders are followed, loops are not."""
        found: list[str] = []
        seen: set[str] = set()
        for place, folders, files in os.walk(folder, followlinks=True):
            real = os.path.realpath(place)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            found += [os.path.relpath(os.path.join(place, name), folder) for name in files]
        return found

    def matches(self, pattern: str) -> list[str]:
        """Files that match a pattern."""
        return natsorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
