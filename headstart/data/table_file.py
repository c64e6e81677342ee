"""Table files: CSV in any common encoding and dialect, TSV and Parquet, read as columns of text."""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headstart.data.finding import Finding
from headstart.errors import DataError
from headstart.extras import importing_extra
from headstart.files import original

TABLE_SUFFIXES: Final = (".csv", ".tsv", ".txt", ".parquet")

LIST_SEPARATOR: Final = "|"
"""Separator of the entries of a Parquet list, in a cell of text."""

CELL_SEPARATORS: Final = ",;\t|"
"""Separators of cells: the one that occurs most often in the header is used."""

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
    """The text of a table.

    Attributes:
        columns: name in Unicode's composed form (NFC) -> cells without surrounding blanks.
        first_row: line number of the first row below the header.
        findings: about the encoding.
    """

    columns: dict[str, list[str]]
    first_row: int = 2
    findings: tuple[Finding, ...] = ()


def read_table_file(file: Path) -> TableFile:
    """Reads a CSV, TSV or Parquet file.

    Text is UTF-8, UTF-16 or UTF-32 with a byte order mark, UTF-8 without one, or else cp1252 (Windows), which a finding
    reports.

    Raises:
        DataError: the file cannot be read as a table; the message names the place and the remedy.
    """
    if file.suffix.lower() == ".parquet":
        return TableFile(_read_parquet(file))
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read as a table: {error.strerror or error}.") from error
    text, findings = _decoded(file, data)
    first_line = text.partition("\n")[0]
    named = _SEPARATOR_LINE.fullmatch(first_line.rstrip("\r"))
    if named:
        text = text[len(first_line) + 1 :]
    first_row = 3 if named else 2
    return TableFile(_read_text(file, text, named[1] if named else "", first_row), first_row, findings)


def _decoded(file: Path, data: bytes) -> tuple[str, tuple[Finding, ...]]:
    for mark, codec, name in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            try:
                text = data[len(mark) :].decode(codec)
            except UnicodeDecodeError as error:
                place = f"byte {len(mark) + error.start:,}"
                raise DataError(f"{file}: starts as {name} and is damaged at {place}. {_REMEDY}.") from error
            usual = name == "UTF-8"
            return text, () if usual else (Finding("encoding", "note", f"{file.name}: read as {name}"),)
    if b"\0" in data:
        place = _place(data, data.index(b"\0"))
        raise DataError(
            f"{file}: contains zero bytes ({place}): UTF-16 without a byte order mark, or not a text file. {_REMEDY}."
        )
    try:
        return data.decode("utf-8"), ()
    except UnicodeDecodeError as error:
        fault = f"byte 0x{data[error.start]:02x} at {_place(data, error.start)}"
        replaced = data.decode("utf-8", errors="replace")
        broken = replaced.count("\ufffd")
        if sum(c > "\x7f" for c in replaced) > 2 * broken:
            raise DataError(
                f"{file}: is UTF-8 except for {broken:,} place(s), the first {fault}. {_REMEDY}."
            ) from error
        try:
            text = data.decode("cp1252")
        except UnicodeDecodeError as other:
            second = f"byte 0x{data[other.start]:02x} at {_place(data, other.start)}"
            raise DataError(
                f"{file}: unknown encoding: neither UTF-8 ({fault}) nor cp1252, which Excel writes on Windows "
                f"({second}). {_REMEDY}."
            ) from error
    message = f"{file.name}: read as cp1252 (Windows), since it is not UTF-8. {_REMEDY} if names look wrong"
    return text, (Finding("encoding", "warning", message, (f"{file.name}: {fault}",)),)


def _place(data: bytes, offset: int) -> str:
    line = data.count(b"\n", 0, offset) + 1
    return f"offset {offset:,}, line {line:,}"


def _read_text(file: Path, text: str, separator: str, first_row: int) -> dict[str, list[str]]:
    if not separator:
        header_line = re.sub('"[^"]*"', "", text.partition("\n")[0])
        separator = "\t" if file.suffix.lower() == ".tsv" else max(CELL_SEPARATORS, key=header_line.count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise DataError(f"{file}: cannot be read as a table: {error}.") from error
    if not rows or not rows[0]:
        raise DataError(f"{file}: empty. Expected a header with the columns path and label.")
    rows = [[original(cell.strip()) for cell in row] for row in rows]
    header = [unicodedata.normalize("NFC", cell) for cell in rows[0]]
    while header and not header[-1]:  # spreadsheets add empty columns at the end
        header.pop()
    for number, row in enumerate(rows[1:], start=first_row):
        while len(row) > len(header) and not row[-1]:
            row.pop()
        if row and len(row) != len(header):
            raise DataError(f"{file}, row {number}: {len(row)} cells where the header has {len(header)}.")
    if twice := next((name for name in header if name and header.count(name) > 1), ""):
        raise DataError(f"{file}: two columns are named {twice!r}. Rename one of them.")
    return {name: [row[i] if row else "" for row in rows[1:]] for i, name in enumerate(header)}


def _read_parquet(file: Path) -> dict[str, list[str]]:
    with importing_extra("parquet", f"reading {file}"):
        import pyarrow as pa
        from pyarrow import parquet

    try:
        table = parquet.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as Parquet: {error}.") from error
    return {
        unicodedata.normalize("NFC", name): [_cell(value) for value in table.column(name).to_pylist()]
        for name in table.column_names
    }


def _cell(value: object) -> str:
    if isinstance(value, list):
        return LIST_SEPARATOR.join(map(str, value)) + LIST_SEPARATOR
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value.decode("utf-8", errors="backslashreplace") if isinstance(value, bytes) else str(value)
