"""Parquet and Arrow tables with an image column: bytes, or Hugging Face's struct of bytes and path, read by batch."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, final

from headstart.concurrency import ProcessLock
from headstart.data.finding import Finding
from headstart.data.sources.addresses import is_url, join, join_member, name_of, parent_of, suffix_of
from headstart.data.sources.interface import Contents
from headstart.data.sources.row_cache import RowCache
from headstart.data.sources.stores import store_of
from headstart.errors import DataError, HeadstartError, UnreadableImage, first_line
from headstart.extras import importing_extra

IMAGE_COLUMNS: Final = ("image", "img", "images", "picture", "photo", "image_bytes", "jpg", "jpeg", "png", "webp")
"""Usual names of image columns, in order of preference."""

BATCH_ROWS: Final = 32
"""Rows of a batch that is read at once: a few MB of photographs."""

SMALL_ROWS: Final = 4096
"""Rows of a batch of columns without images."""

LARGE_GROUP_BYTES: Final = 512 << 20
"""Size of a row group from which a finding says that images out of order are slow to read."""

MAX_PATH_BYTES: Final = 4096
"""A binary cell is a path rather than an image if it is UTF-8 text of at most this size."""

MAX_ROW_DIGITS: Final = 18
"""Digits of the number of a row; Python refuses to convert more than some thousands."""

_NUMBERS = itertools.count()


@dataclass
class _Cursor:
    """Where reading goes on without starting over."""

    group: int = -1
    batch: int = 0
    batches: Iterator[Any] = field(default_factory=lambda: iter(()))


@final
class TableContainer:
    """A table whose rows hold images. A member is the number of a row, or ``COLUMN/ROW`` for a chosen column.

    Args:
        address: path or URL of the file.

    Raises:
        DataError: not a Parquet or Arrow file.
        MissingExtra: pyarrow is not installed.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._number = next(_NUMBERS)
        self._lock = ProcessLock()
        self._cursors: dict[str, _Cursor] = {}
        self._damaged: dict[tuple[str, int], tuple[int, str]] = {}  # by column and group: first such batch, and why
        with opened_table(address) as table:
            self.schema = table.schema_arrow if hasattr(table, "schema_arrow") else table.schema
            self._starts, findings = _group_starts(table, address)
            self.image_column = find_image_column(table, self.schema)
        num_rows = self._starts[-1] if self.image_column else 0
        self.contents = Contents(_Numbers(num_rows), {}, tuple(findings))

    def __del__(self) -> None:
        """Its batches leave the cache with it."""
        _CACHE.drop(self._number)

    def read(self, member: str) -> bytes:
        """The bytes of the image in a row."""
        address = join_member(self.address, member)
        column, _, row = member.rpartition("/")
        column = column or self.image_column
        if not row.isdecimal() or len(row) > MAX_ROW_DIGITS or int(row) >= self._starts[-1]:
            raise UnreadableImage(address, f"no such row; the table has {self._starts[-1]:,}")
        if column not in self.schema.names:
            raise UnreadableImage(address, f"no column {column!r}" if column else "the table has no image column")
        number = int(row)
        group = bisect_right(self._starts, number) - 1
        batch, place = divmod(number - self._starts[group], BATCH_ROWS)
        try:
            cells = self._batch(column, group, batch)
            data = self._content(cells[place].as_py())
        except HeadstartError:
            raise
        except Exception as error:  # pyarrow raises many types for damaged cells
            raise UnreadableImage(address, f"damaged: {first_line(error)}") from error
        if data is None:
            raise UnreadableImage(address, "no image in this row")
        return data

    def position(self, member: str) -> int:
        """Number of the row."""
        row = member.rpartition("/")[2]
        return int(row) if row.isdecimal() and len(row) <= MAX_ROW_DIGITS else 0

    def _content(self, cell: Any) -> bytes | None:
        """The bytes of a cell: its bytes, or those of the file whose path it has instead of bytes."""
        if not isinstance(cell, dict):
            return bytes(cell) if cell else None
        data, path = cell.get("bytes"), cell.get("path")
        if data or not path:
            return bytes(data) if data else None
        file = join(parent_of(self.address), path)
        return store_of(file).read(file)

    def _batch(self, column: str, group: int, batch: int) -> Any:
        """An Arrow array of ``BATCH_ROWS`` cells; batches on the way to it are kept too.

        Raises:
            DataError: the row group is damaged from this batch on, or before it; it is not read again.
        """
        key = (self._number, column, group, batch)
        with self._lock:
            if (held := _CACHE.get(key)) is not None:
                return held
            first, reason = self._damaged.get((column, group), (batch + 1, ""))
            if batch >= first:
                raise DataError(reason)
            cursor = self._cursors.setdefault(column, _Cursor())
            if cursor.group != group or cursor.batch > batch:
                cursor = self._cursors[column] = _Cursor(group, 0, self._batches(column, group))
            while True:
                cells = self._next(cursor, column, group)
                _CACHE.put((self._number, column, group, cursor.batch), cells)
                cursor.batch += 1
                if cursor.batch > batch:
                    return cells

    def _next(self, cursor: _Cursor, column: str, group: int) -> Any:
        """The next batch; after an error, reading starts again at the beginning of a group."""
        try:
            return next(cursor.batches)
        except Exception as error:
            del self._cursors[column]
            if isinstance(error, HeadstartError) and not isinstance(error, DataError):  # the store cannot be reached
                raise
            reason = str(error) if isinstance(error, DataError) else damaged_group(group, len(self._starts) - 1, error)
            self._damaged[column, group] = (cursor.batch, reason)
            raise DataError(reason) from error

    def _batches(self, column: str, group: int) -> Iterator[Any]:
        """The cells of a row group, in batches; the file is open until the last one."""
        with opened_table(self.address) as table:
            for batch in record_batches(table, group, [column]):
                yield batch.column(0)


_CACHE = RowCache()


@final
class _Numbers(Sequence[str]):
    """The texts "0", "1", ... without holding them."""

    def __init__(self, count: int) -> None:
        self._range = range(count)

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, place: Any) -> Any:
        found = self._range[place]
        return str(found) if isinstance(found, int) else [str(number) for number in found]


@contextmanager
def opened_table(address: str) -> Iterator[Any]:
    """A ``ParquetFile``, or a reader of Arrow's file or stream format.

    Raises:
        DataError: the file is missing or of another format.
        MissingExtra: pyarrow is not installed.
    """
    with importing_extra("parquet", f"reading {address}"):
        import pyarrow as pa
        from pyarrow import parquet

    try:
        with store_of(address).open(address) as file:
            source = pa.PythonFile(file, mode="r") if is_url(address) else pa.OSFile(address)
            if suffix_of(address) == ".parquet":
                table = parquet.ParquetFile(source, pre_buffer=False, page_checksum_verification=True)
            elif _starts_with(source, b"ARROW1"):
                table = pa.ipc.open_file(source)
            else:
                table = pa.ipc.open_stream(source)
            yield table
    except UnreadableImage as error:
        raise DataError(f"{address}: cannot be read as a table: {error.reason}.") from error
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        kind = "Parquet" if suffix_of(address) == ".parquet" else "Arrow"
        raise DataError(
            f"{address}: cannot be read as {kind}: {first_line(error).rstrip('.')}. Copy the file again."
        ) from error


def _starts_with(source: Any, mark: bytes) -> bool:
    start = source.read(len(mark))
    source.seek(0)
    return bool(start == mark)


def record_batches(table: Any, group: int, columns: Sequence[str]) -> Iterator[Any]:
    """Record batches of ``BATCH_ROWS`` rows of one row group of Parquet, or of a whole Arrow file, with some columns.

    Reads in the calling thread alone: pyarrow's threads would compete with those that decode, and do not exist in a
    forked child.
    """
    if hasattr(table, "iter_batches"):
        with _group_named(group, table.num_row_groups):
            yield from table.iter_batches(BATCH_ROWS, row_groups=[group], columns=list(columns), use_threads=False)
        return
    import pyarrow as pa

    waiting: list[Any] = []
    for batch in arrow_batches(table):
        waiting.append(_selected(batch, columns))
        count = sum(part.num_rows for part in waiting)
        whole = count - count % BATCH_ROWS
        if whole:
            joined = pa.Table.from_batches(waiting).combine_chunks()
            yield from (part for start in range(0, whole, BATCH_ROWS) for part in _rows(joined, start, BATCH_ROWS))
            waiting = joined.slice(whole).to_batches()
    if waiting and (joined := pa.Table.from_batches(waiting).combine_chunks()).num_rows:
        yield from _rows(joined, 0, BATCH_ROWS)


def table_batches(table: Any, columns: Sequence[str]) -> Iterator[Any]:
    """Record batches of a whole table with some columns, for columns that are small.

    Raises:
        OSError: a row group is damaged; the message names it.
    """
    if not hasattr(table, "iter_batches"):
        for batch in arrow_batches(table):
            yield _selected(batch, columns)
        return
    try:
        yield from table.iter_batches(SMALL_ROWS, columns=list(columns), use_threads=False)
    except OSError:  # a batch may have many row groups: the first one that cannot be read alone is named
        for group in range(table.num_row_groups):
            for _ in record_batches(table, group, columns):
                pass
        raise


@contextmanager
def _group_named(group: int, count: int) -> Iterator[None]:
    """Names the row group in an error while it is read."""
    try:
        yield
    except HeadstartError:  # the store cannot be reached
        raise
    except Exception as error:  # pyarrow raises many types
        raise OSError(damaged_group(group, count, error)) from error


def damaged_group(group: int, count: int, error: Exception) -> str:
    """Which row group of a table is damaged, and why."""
    return f"row group {group + 1} of {count} is damaged ({first_line(error).rstrip('.')})"


def _selected(batch: Any, columns: Sequence[str]) -> Any:
    """Some columns of a batch of an Arrow file, checked: damaged offsets would lead out of the file's memory."""
    selected = batch.select(list(columns))
    selected.validate(full=True)
    return selected


def _rows(table: Any, start: int, count: int) -> list[Any]:
    """One record batch of some rows; a copy, so that it does not keep the others in memory."""
    indices = range(start, min(start + count, table.num_rows))
    return list(table.take(list(indices)).combine_chunks().to_batches())


def arrow_batches(reader: Any) -> Iterator[Any]:
    """Every record batch of an Arrow reader."""
    if hasattr(reader, "num_record_batches"):
        return (reader.get_batch(i) for i in range(reader.num_record_batches))
    return iter(reader)


def _group_starts(table: Any, address: str) -> tuple[list[int], list[Finding]]:
    """Number of the first row of each group, and the number of all rows; an Arrow file counts as one group."""
    if not hasattr(table, "iter_batches"):
        return [0, sum(batch.num_rows for batch in arrow_batches(table))], []
    groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
    starts = [0, *itertools.accumulate(group.num_rows for group in groups)]
    findings = []
    if largest := max((group.total_byte_size for group in groups), default=0) // LARGE_GROUP_BYTES:
        message = (
            f"{name_of(address)}: row groups of {largest * LARGE_GROUP_BYTES / 1e9:.1f} GB or more; fine-tuning, which "
            "reads images out of order, is slow. Write the table with row groups of about 100 rows"
        )
        findings.append(Finding("large-row-group", "warning", message))
    return starts, findings


def find_image_column(table: Any, schema: Any) -> str:
    """The column with images of an opened table, by type and by the names in ``IMAGE_COLUMNS``; "" without one.

    A struct with a binary field "bytes" is one, and so is a binary column of a usual name whose cells are not text. If
    no column has a usual name, the only such column counts.
    """
    candidates = [column.name for column in schema if is_image_type(column.type)]
    if not candidates:
        return ""
    usual = [name for known in IMAGE_COLUMNS for name in candidates if name.lower() == known]
    structs = [name for name in candidates if not _is_binary(schema.field(name).type)]
    for name in dict.fromkeys([*usual, *(structs if len(structs) == 1 else ()), *candidates[: len(candidates) == 1]]):
        if name in structs or not _holds_text(table, name):
            return str(name)
    return ""


def is_image_type(kind: Any) -> bool:
    """Whether an Arrow type may hold image files: binary, or a struct with a binary field "bytes"."""
    if _is_binary(kind):
        return True
    import pyarrow as pa

    return bool(pa.types.is_struct(kind)) and any(f.name == "bytes" and _is_binary(f.type) for f in kind)


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_text(table: Any, column: str) -> bool:
    """Whether the first cells of a binary column are UTF-8 text, such as paths that a program wrote as bytes."""
    if not getattr(table, "num_row_groups", 1):
        return False
    for batch in itertools.islice(record_batches(table, 0, [column]), 1):
        cells = [cell for cell in batch.column(0).to_pylist() if cell]
        return bool(cells) and all(_is_text(cell) for cell in cells)
    return False


def _is_text(cell: bytes) -> bool:
    try:
        return len(cell) <= MAX_PATH_BYTES and cell.decode().isprintable()
    except UnicodeDecodeError:
        return False
