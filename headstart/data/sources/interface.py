"""What a store of files and a container of images provide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from headstart.data.finding import Finding

FileStamp = tuple[int, ...]
"""Size, and time of the last change in nanoseconds where a store tells it cheaply; files of equal stamps are equal."""


class FileStore(Protocol):
    """A place with files: this machine, or one kind of object storage.

    Every method raises ``SourceError`` if the store cannot be reached, and ``UnreadableImage`` for a missing file.
    """

    def read(self, address: str) -> bytes:
        """The content of a file."""
        ...

    def read_range(self, address: str, offset: int, length: int) -> bytes:
        """At most ``length`` bytes from ``offset``; fewer at the end of the file."""
        ...

    def stamp(self, address: str) -> FileStamp:
        """The stamp of a file."""
        ...

    def open(self, address: str) -> BinaryIO:
        """A seekable file, which the caller closes."""
        ...

    def is_file(self, address: str) -> bool:
        """Whether it is an existing file."""
        ...

    def files_below(self, folder: str) -> list[str]:
        """Every file below a folder, relative to it, with slashes, also hidden ones; none if it does not exist."""
        ...

    def matches(self, pattern: str) -> list[str]:
        """Addresses of the files that match a pattern with ``*``, ``?`` and ``[...]``, in natural order."""
        ...


@dataclass(frozen=True)
class Contents:
    """What is in a container.

    Attributes:
        names: members in the order of the container; of a table, the numbers of its rows.
        texts: content of small text members, which may be labels.
        findings: about the container, such as damage.
    """

    names: Sequence[str]
    texts: Mapping[str, bytes]
    findings: tuple[Finding, ...] = ()


class Container(Protocol):
    """A file that holds images, indexed. Threads may share it; no file stays open."""

    contents: Contents

    def read(self, member: str) -> bytes:
        """The bytes of a member.

        Raises:
            UnreadableImage: there is no such member, or it is damaged.
            SourceError: the store cannot be reached.
        """
        ...

    def position(self, member: str) -> int:
        """Where the member lies: members are read fastest in the order of their positions."""
        ...
