"""Tar files, among them WebDataset shards: an index of members, which are read at their offsets."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, Final, final

from headstart.data.finding import Finding
from headstart.data.sources.addresses import join_member, name_of
from headstart.data.sources.interface import Contents
from headstart.data.sources.member_index import MemberIndex, MemberTexts, is_outside, member_name, outside_finding
from headstart.data.sources.stores import store_of
from headstart.errors import DataError, UnreadableImage, first_line

TEXT_SUFFIXES: Final = (".cls", ".txt", ".json")
"""Suffixes of members that may hold a label; their content is read while the index is made."""

MAX_TEXT_BYTES: Final = 1 << 16
"""Larger text members are no labels."""


@final
class TarContainer:
    """An indexed tar file. Of members of one name the last counts, as for ``tar`` itself.

    Args:
        address: path or URL of the file.

    Raises:
        DataError: not an uncompressed tar file.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._store = store_of(address)
        found = _Members()
        with self._store.open(address) as file:
            found.read_index(address, file)
        self._damage, self._spans = found.damage, MemberIndex(found.spans)
        self.contents = Contents(self._spans.names, MemberTexts(found.texts), tuple(found.findings(address)))

    def read(self, member: str) -> bytes:
        """The bytes of a member."""
        span = self._spans.get(member)
        if span is None:
            why = f"the archive is damaged ({self._damage})" if self._damage else "no such file in the archive"
            raise UnreadableImage(join_member(self.address, member), why)
        offset, size = span
        data = self._store.read_range(self.address, offset, size)
        if len(data) != size:
            raise UnreadableImage(join_member(self.address, member), "the archive ends before the end of this file")
        return data

    def position(self, member: str) -> int:
        """Offset of the member."""
        return self._spans.get(member, (0, 0))[0]


class _Members:
    """What is found while the archive is read from its beginning to its end.

    Attributes:
        spans: member -> offset and size of its content.
        texts: small text members -> content.
        damage: why the rest of the archive cannot be read; "" if it can.
    """

    def __init__(self) -> None:
        self.spans: dict[str, tuple[int, int]] = {}
        self.texts: dict[str, bytes] = {}
        self.damage = ""
        self._repeated: list[str] = []
        self._outside: list[str] = []

    def read_index(self, address: str, file: BinaryIO) -> None:
        """Reads all headers.

        Raises:
            DataError: not an uncompressed tar file.
        """
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in self._members(archive):
                    self._add(file, member)
                self.damage = self.damage or _rest_is_damaged(file, archive.offset)
        except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
            if isinstance(error, tarfile.ReadError) and "empty" in str(error):
                raise DataError(f"{address}: empty (0 bytes). Copy the file again.") from error
            raise DataError(
                f"{address}: not a tar file ({first_line(error)}). Copy it again; decompress a compressed one."
            ) from error

    def _members(self, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        """The members before the end or the first damage."""
        if (first := archive.next()) is not None:
            yield first
        while True:
            try:
                member = archive.next()
            except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
                self.damage = f"{first_line(error)} after {len(self.spans):,} files"
                return
            archive.members = []  # type: ignore[attr-defined]  # it would keep every member
            if member is None:
                return
            yield member

    def _add(self, file: BinaryIO, member: tarfile.TarInfo) -> None:
        name = member_name(member.name)
        if member.islnk():
            if (target := member_name(member.linkname)) in self.spans:
                self.spans[name] = self.spans[target]
            return
        if not member.isreg() or member.issparse() or not name:
            return
        if is_outside(name):
            self._outside.append(name)
            return
        if name in self.spans:
            self._repeated.append(name)
            del self.spans[name]  # the last one counts, at its place
        self.spans[name] = member.offset_data, member.size
        if name.lower().endswith(TEXT_SUFFIXES) and member.size <= MAX_TEXT_BYTES:
            file.seek(member.offset_data)
            self.texts[name] = file.read(member.size)

    def findings(self, address: str) -> Iterator[Finding]:
        """What is wrong with the archive."""
        name = name_of(address)
        if self.damage:
            message = f"{name}: the archive is damaged: {self.damage}. The files before the damage are used"
            yield Finding("damaged-archive", "serious", message)
        if self._repeated:
            message = f"{name}: {len(self._repeated):,} file(s) occur more than once; the last one of each name is used"
            yield Finding("repeated-member", "warning", message, tuple(dict.fromkeys(self._repeated)))
        yield from outside_finding(name, self._outside)


def _rest_is_damaged(file: BinaryIO, offset: int) -> str:
    """What follows the last member, if it is neither the end nor zeros; "" if nothing is wrong."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if not block.strip(b"\0"):
        return ""
    return f"no valid header at byte {offset:,}"
