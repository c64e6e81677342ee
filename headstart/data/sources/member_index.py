"""The index of an archive in memory: names and numbers of members in a few arrays, about 60 bytes for each member.

Dictionaries of Python take five times as much, and a worker keeps the indexes of many archives.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, final, overload

import numpy as np

from headstart.data.finding import Finding

_CODING: Final = ("utf-8", "surrogatepass")
"""Names in archives need not be valid text."""


def member_name(name: str) -> str:
    """The name of a member without "." and "..", and without a leading "/": names are never used as paths.

    Returns:
        The name; it starts with ".." if it leads out of the archive.
    """
    plain = name.startswith(("./", "/")) or "/./" in name or "//" in name or ".." in name
    return posixpath.normpath(name).lstrip("/") if plain else name


def is_outside(name: str) -> bool:
    """Whether a name of ``member_name`` leads out of the archive."""
    return name == ".." or name.startswith("../")


def outside_finding(archive: str, outside: Sequence[str]) -> Iterator[Finding]:
    """The finding for members that lead out of the archive, if there are any.

    Args:
        archive: name of the archive, for the message.
        outside: names of such members.
    """
    if outside:
        message = f"{archive}: {len(outside):,} file(s) have names that lead out of the archive (..); they are left out"
        yield Finding("member-outside", "warning", message, tuple(outside))


@final
class MemberNames(Sequence[str]):
    """Names in the order of the archive.

    Args:
        names: the names.
    """

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [name.encode(*_CODING) for name in names]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        end = self._ends[place]
        start = self._ends[place - 1] if place % len(self) else 0
        return self._text[start:end].decode(*_CODING)


@final
class MemberIndex(Mapping[str, tuple[int, ...]]):
    """Whole numbers of each member by its name, in the order of the archive.

    Args:
        members: name -> numbers, equally many for each; the mapping is not kept.
    """

    def __init__(self, members: Mapping[str, Sequence[int]]) -> None:
        self.names = MemberNames(list(members))
        self._numbers = np.array(list(members.values()), dtype=np.int64)
        hashes = np.array([_hash(name) for name in members], dtype=np.uint64)
        self._order = np.argsort(hashes, kind="stable").astype(np.int32)
        self._hashes = hashes[self._order]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, name: str) -> tuple[int, ...]:
        wanted = np.uint64(_hash(name))
        place = int(np.searchsorted(self._hashes, wanted))
        while place < len(self) and self._hashes[place] == wanted:
            member = int(self._order[place])
            if self.names[member] == name:
                return tuple(self._numbers[member].tolist())
            place += 1
        raise KeyError(name)


@final
class MemberTexts(Mapping[str, bytes]):
    """The content of small members by name.

    Args:
        texts: name -> content; the mapping is not kept.
    """

    def __init__(self, texts: Mapping[str, bytes]) -> None:
        self._text = b"".join(texts.values())
        ends = np.cumsum([len(text) for text in texts.values()], dtype=np.int64).tolist()
        starts = [0, *ends[:-1]]
        self._index = MemberIndex(dict(zip(texts, zip(starts, ends, strict=False), strict=True)))

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __getitem__(self, name: str) -> bytes:
        start, end = self._index[name]
        return self._text[start:end]


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(*_CODING), digest_size=8).digest())
