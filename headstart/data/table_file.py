"""Table files: CSV in any common encoding and dialect, TSV, Parquet and Arrow, read as rows of text."""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Final, TextIO

from headstart.data.class_labels import ClassLabels, read_class_labels
from headstart.data.finding import Finding
from headstart.data.label_cells import SEPARATOR
from headstart.data.sources.addresses import is_url, join_member, name_of, suffix_of
from headstart.data.sources.parquet_file import find_image_column, is_image_type, opened_table, table_batches
from headstart.data.sources.stores import store_of
from headstart.errors import DataError, UnreadableImage
from headstart.files import original

COLUMN_FILES: Final = (".parquet", ".arrow")
"""Suffixes of tables that may hold the images themselves."""

TABLE_SUFFIXES: Final = (".csv", ".tsv", ".txt", *COLUMN_FILES)

CELL_SEPARATORS: Final = ",;\t|"
"""Separators of cells: the one that occurs most often in the header is used."""

BLOCK_BYTES: Final = 1 << 20
"""Bytes of a text file that are looked at at once."""

_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)
"""(mark, codec, name); UTF-32 first, because its little-endian mark starts with that of UTF-16."""

_SEPARATOR_LINE: Final = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
"""First line that names the separator for Excel."""

_REMEDY: Final = 'Save it as "CSV UTF-8"'


@dataclass(frozen=True)
class TableFile:
    """The text of a table, which is read row by row.

    Attributes:
        names: of the columns, in Unicode's composed form (NFC).
        rows: starts a pass over the rows; each has a cell for every column, without surrounding blanks.
        first_row: line number of the first row below the header.
        findings: about the encoding.
        image_column: column of the images that the table holds, in which the cells are addresses; "" without one.
        label_column: the only column that the file declares as one of class labels; "" without one.
        list_columns: columns whose cells are lists in the file.
    """

    names: tuple[str, ...]
    rows: Callable[[], Iterator[Sequence[str]]]
    first_row: int = 2
    findings: tuple[Finding, ...] = ()
    image_column: str = ""
    label_column: str = ""
    list_columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Encoding:
    """How the bytes of a text file are read.

    Attributes:
        codec: name for Python.
        mark: number of bytes of the byte order mark.
        findings: about it.
    """

    codec: str = "utf-8"
    mark: int = 0
    findings: tuple[Finding, ...] = ()


def read_table_file(file: str) -> TableFile:
    """Opens a CSV, TSV, Parquet or Arrow file at a path or URL.

    Text is UTF-8, UTF-16 or UTF-32 with a byte order mark, UTF-8 without one, or else cp1252 (Windows), which a finding
    reports.

    Raises:
        DataError: the file cannot be read as a table; the message names the place and the remedy. A pass over the rows
            raises it for a row that cannot be read.
    """
    if suffix_of(file) in COLUMN_FILES:
        return _column_file(file)
    try:
        opener = _opener(file)
        encoding = _encoding(file, opener)
    except UnreadableImage as error:
        raise DataError(f"{file}: cannot be read as a table: {error.reason}.") from error
    with _text(opener, encoding) as text:
        line = text.readline()
    named = _SEPARATOR_LINE.fullmatch(line.rstrip("\r\n"))
    header_line = re.sub('"[^"]*"', "", line)
    separator = "\t" if suffix_of(file) == ".tsv" else max(CELL_SEPARATORS, key=header_line.count)
    separator, first_row = (named[1], 3) if named else (separator, 2)

    def lines() -> Iterator[list[str]]:
        with _text(opener, encoding) as text:
            if named:
                text.readline()
            yield from _cells(file, text, separator)

    names = _names(file, next(lines(), []))
    return TableFile(names, lambda: _rows(file, lines(), len(names), first_row), first_row, encoding.findings)


def _opener(file: str) -> Callable[[], BinaryIO]:
    """Opens the file from its start; one from a remote store stays in memory."""
    if is_url(file):
        return partial(io.BytesIO, store_of(file).read(file))
    return partial(store_of(file).open, file)


def _encoding(file: str, opener: Callable[[], BinaryIO]) -> _Encoding:
    """The encoding; UTF-8 is recognised in blocks, any other by the whole file."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with opener() as opened:
        try:
            block = opened.read(BLOCK_BYTES)
            is_marked = block.startswith(codecs.BOM_UTF8)
            while block:
                if b"\0" in block and not is_marked:
                    raise UnicodeError
                decoder.decode(block)
                block = opened.read(BLOCK_BYTES)
            decoder.decode(b"", final=True)
        except UnicodeError:
            opened.seek(0)
            return _encoding_of(file, opened.read())
    return _Encoding("utf-8", len(codecs.BOM_UTF8) if is_marked else 0)


def _encoding_of(file: str, data: bytes) -> _Encoding:
    for mark, codec, name in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            try:
                data[len(mark) :].decode(codec)
            except UnicodeDecodeError as error:
                place = f"byte {len(mark) + error.start:,}"
                raise DataError(f"{file}: starts as {name} and is damaged at {place}. {_REMEDY}.") from error
            usual = name == "UTF-8"
            note = Finding("encoding", "note", f"{name_of(file)}: read as {name}")
            return _Encoding(codec, len(mark), () if usual else (note,))
    if b"\0" in data:
        place = _place(data, data.index(b"\0"))
        raise DataError(
            f"{file}: contains zero bytes ({place}): UTF-16 without a byte order mark, or not a text file. {_REMEDY}."
        )
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _windows(file, data, error)
    return _Encoding()


def _windows(file: str, data: bytes, error: UnicodeDecodeError) -> _Encoding:
    """cp1252, for text that is not UTF-8."""
    fault = f"byte 0x{data[error.start]:02x} at {_place(data, error.start)}"
    replaced = data.decode("utf-8", errors="replace")
    broken = replaced.count("\ufffd")
    if sum(c > "\x7f" for c in replaced) > 2 * broken:
        raise DataError(f"{file}: is UTF-8 except for {broken:,} place(s), the first {fault}. {_REMEDY}.") from error
    try:
        data.decode("cp1252")
    except UnicodeDecodeError as other:
        second = f"byte 0x{data[other.start]:02x} at {_place(data, other.start)}"
        raise DataError(
            f"{file}: unknown encoding: neither UTF-8 ({fault}) nor cp1252, which Excel writes on Windows "
            f"({second}). {_REMEDY}."
        ) from error
    message = f"{name_of(file)}: read as cp1252 (Windows), since it is not UTF-8. {_REMEDY} if names look wrong"
    return _Encoding("cp1252", 0, (Finding("encoding", "warning", message, (f"{name_of(file)}: {fault}",)),))


def _place(data: bytes, offset: int) -> str:
    line = data.count(b"\n", 0, offset) + 1
    return f"offset {offset:,}, line {line:,}"


def _text(opener: Callable[[], BinaryIO], encoding: _Encoding) -> TextIO:
    opened = opener()
    opened.seek(encoding.mark)
    return io.TextIOWrapper(opened, encoding.codec, newline="")


def _cells(file: str, text: TextIO, separator: str) -> Iterator[list[str]]:
    """The cells of each line."""
    try:
        for row in csv.reader(text, delimiter=separator):
            yield [original(cell.strip()) for cell in row]
    except csv.Error as error:
        raise DataError(f"{file}: cannot be read as a table: {error}.") from error


def _names(file: str, header: list[str]) -> tuple[str, ...]:
    """Names of the columns."""
    if not header:
        raise DataError(f"{file}: empty. Expected a header with the columns path and label.")
    names = [unicodedata.normalize("NFC", cell) for cell in header]
    while names and not names[-1]:  # spreadsheets add empty columns at the end
        names.pop()
    return _distinct(file, names)


def _distinct(file: str, names: list[str]) -> tuple[str, ...]:
    """Names of columns, none of which occurs twice."""
    if twice := next((name for name in names if name and names.count(name) > 1), ""):
        raise DataError(f"{file}: two columns are named {twice!r}. Rename one of them.")
    return tuple(names)


def _rows(file: str, lines: Iterator[list[str]], width: int, first_row: int) -> Iterator[Sequence[str]]:
    """The rows below the header."""
    next(lines, None)
    for number, row in enumerate(lines, start=first_row):
        while len(row) > width and not row[-1]:
            row.pop()
        if row and len(row) != width:
            raise DataError(f"{file}, row {number}: {len(row)} cells where the header has {width}.")
        yield row or [""] * width


def _column_file(file: str) -> TableFile:
    """All columns, where the cells of those of images are addresses."""
    with opened_table(file) as table:
        schema = table.schema_arrow if hasattr(table, "schema_arrow") else table.schema
        names = _distinct(file, [unicodedata.normalize("NFC", name) for name in schema.names])
        image_column, labels = find_image_column(table, schema), read_class_labels(schema)
        images = [column.name for column in schema if image_column and is_image_type(column.type)]
    read = [name for name in schema.names if name not in images]

    def rows() -> Iterator[Sequence[str]]:
        count = 0
        with opened_table(file) as again:
            for batch in table_batches(again, read):
                numbers = range(count, count + batch.num_rows)
                cells = {
                    name: [_cell(value, labels.get(name)) for value in batch.column(name).to_pylist()] for name in read
                }
                for name in images:  # a table may have more than one, such as an image and its mask
                    member = "" if name == image_column else f"{name}/"
                    cells[name] = [join_member(name_of(file), f"{member}{row}") for row in numbers]
                yield from zip(*(cells[name] for name in schema.names), strict=True)
                count += batch.num_rows

    single = [name for name, classes in labels.items() if not classes.is_list]
    return TableFile(
        names,
        rows,
        first_row=0 if image_column else 2,
        image_column=unicodedata.normalize("NFC", image_column),
        label_column=single[0] if len(single) == 1 else "",
        list_columns=tuple(column.name for column in schema if "list<" in str(column.type).partition(" ")[0]),
    )


def _cell(value: object, labels: ClassLabels | None) -> str:
    if labels is not None:
        return labels.cell(value)
    if isinstance(value, list):
        return SEPARATOR.join(map(str, value)) + SEPARATOR
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value.decode("utf-8", errors="backslashreplace") if isinstance(value, bytes) else str(value)
