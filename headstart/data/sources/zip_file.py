"""Zip files: an index of members, which are read at their offsets."""

from __future__ import annotations

import bz2
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple, final

from headstart.data.finding import Finding
from headstart.data.sources.addresses import join_member, name_of
from headstart.data.sources.interface import Contents
from headstart.data.sources.member_index import MemberIndex, MemberTexts, is_outside, member_name, outside_finding
from headstart.data.sources.stores import store_of
from headstart.data.sources.tar_file import MAX_TEXT_BYTES, TEXT_SUFFIXES
from headstart.errors import DataError, UnreadableImage, first_line

MAX_MEMBER_BYTES: Final = 1 << 30
"""Larger members are refused: a small archive can decompress to any size."""

_HEADER: Final = struct.Struct("<4s22sHH")
"""Local header of a member: signature, fields that the index has too, lengths of the name and of the extra field."""

_EXTRA_BYTES: Final = 256
"""Bytes that are read beyond a member, so that its header and its content take a single request."""

METHODS: Final = {9: "Deflate64", 14: "LZMA", 93: "Zstandard", 95: "XZ", 97: "WavPack", 98: "PPMd", 99: "AES"}
"""Compression methods that are not supported."""

_ENCRYPTED: Final = 0x1


class _Entry(NamedTuple):
    """What is needed to read a member: see ``zipfile.ZipInfo``."""

    header_offset: int
    compress_size: int
    file_size: int
    checksum: int
    compress_type: int
    flag_bits: int
    name_bytes: int


def _numbers(entry: zipfile.ZipInfo) -> _Entry:
    name_bytes = len(entry.orig_filename.encode(errors="surrogateescape"))
    sizes = entry.compress_size, entry.file_size
    return _Entry(entry.header_offset, *sizes, entry.CRC, entry.compress_type, entry.flag_bits, name_bytes)


def _named(entries: list[zipfile.ZipInfo]) -> list[tuple[str, zipfile.ZipInfo]]:
    """The entries with their names; some programs on Windows write backslashes, and then no slashes."""
    is_windows = not any("/" in entry.filename for entry in entries)
    names = [entry.filename.replace("\\", "/") if is_windows else entry.filename for entry in entries]
    return [
        (name if name.endswith("/") else member_name(name), entry) for name, entry in zip(names, entries, strict=True)
    ]


@final
class ZipContainer:
    """An indexed zip file. Of members of one name the last counts.

    Args:
        address: path or URL of the file.

    Raises:
        DataError: not a zip file, or every member needs a password.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._store = store_of(address)
        try:
            with self._store.open(address) as file, zipfile.ZipFile(file) as archive:
                named = [(name, entry) for name, entry in _named(archive.infolist()) if not name.endswith("/")]
        except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, struct.error) as error:
            raise DataError(f"{address}: not a zip file ({first_line(error)}). Copy the file again.") from error
        if named and all(entry.flag_bits & _ENCRYPTED for _, entry in named):
            raise DataError(f"{address}: needs a password. Unpack it, and give the folder.")
        self._outside = [name for name, _ in named if is_outside(name)]
        self._entries = MemberIndex({name: _numbers(entry) for name, entry in named if not is_outside(name)})
        self._num_repeated = len(named) - len(self._outside) - len(self._entries)
        texts = MemberTexts(dict(self._read_texts()))
        self.contents = Contents(self._entries.names, texts, tuple(self._findings()))

    def read(self, member: str) -> bytes:
        """The bytes of a member."""
        address, numbers = join_member(self.address, member), self._entries.get(member)
        if numbers is None:
            raise UnreadableImage(address, "no such file in the archive")
        entry = _Entry(*numbers)
        if entry.flag_bits & _ENCRYPTED:
            raise UnreadableImage(address, "needs a password; unpack the archive first")
        if entry.file_size > MAX_MEMBER_BYTES:
            raise UnreadableImage(address, f"{entry.file_size:,} bytes are more than the limit of 1 GiB")
        data = _decompress(address, entry, self._compressed(address, entry))
        if len(data) != entry.file_size or zlib.crc32(data) != entry.checksum:
            raise UnreadableImage(address, "damaged in the archive: the checksum differs")
        return data

    def position(self, member: str) -> int:
        """Offset of the member."""
        numbers = self._entries.get(member)
        return _Entry(*numbers).header_offset if numbers else 0

    def _compressed(self, address: str, entry: _Entry) -> bytes:
        """The content of a member as it is stored, after its local header."""
        length = _HEADER.size + entry.name_bytes + entry.compress_size
        data = self._store.read_range(self.address, entry.header_offset, length + _EXTRA_BYTES)
        if len(data) < _HEADER.size or not data.startswith(b"PK\3\4"):
            raise UnreadableImage(address, "damaged in the archive: no header")
        _, _, name_bytes, extra_bytes = _HEADER.unpack_from(data)
        start = _HEADER.size + name_bytes + extra_bytes
        end = start + entry.compress_size
        if len(data) < end:
            data = self._store.read_range(self.address, entry.header_offset, end)
        if len(data) < end:
            raise UnreadableImage(address, "the archive ends before the end of this file")
        return data[start:end]

    def _read_texts(self) -> Iterator[tuple[str, bytes]]:
        """Small members with a suffix of labels next to which there is another file, as in WebDataset."""
        for name in self._entries:
            if name.lower().endswith(TEXT_SUFFIXES) and _Entry(*self._entries[name]).file_size <= MAX_TEXT_BYTES:
                try:
                    yield name, self.read(name)
                except UnreadableImage:
                    continue

    def _findings(self) -> Iterator[Finding]:
        name = name_of(self.address)
        if self._num_repeated:
            message = f"{name}: {self._num_repeated:,} file(s) occur more than once; the last one of each name is used"
            yield Finding("repeated-member", "warning", message)
        yield from outside_finding(name, self._outside)
        nested = tuple(member for member in self._entries if member.lower().endswith((".zip", ".tar", ".tar.gz")))
        if nested:
            message = f"{name}: {len(nested):,} archive(s) in the archive are not read; unpack them"
            yield Finding("nested-archive", "warning", message, nested)


def _decompress(address: str, entry: _Entry, data: bytes) -> bytes:
    """The content of a member; at most one byte more than the index says."""
    limit = entry.file_size + 1
    try:
        if entry.compress_type == zipfile.ZIP_STORED:
            return data
        if entry.compress_type == zipfile.ZIP_DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, limit)
        if entry.compress_type == zipfile.ZIP_BZIP2:
            return bz2.BZ2Decompressor().decompress(data, limit)
    except (zlib.error, OSError) as error:
        raise UnreadableImage(address, f"damaged in the archive: {first_line(error)}") from error
    method = METHODS.get(entry.compress_type, f"method {entry.compress_type}")
    raise UnreadableImage(address, f"compressed by {method}, which is not supported; unpack the archive first")
