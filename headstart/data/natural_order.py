"""Natural order ("2" before "10") of any number of rows: an external merge sort, which keeps rows in a file."""

from __future__ import annotations

import heapq
import json
import os
import re
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, final

from headstart.cache.entries import cache_root
from headstart.errors import CacheError
from headstart.files import not_written

RUN_ROWS: Final = 20_000
"""Rows that are sorted in memory, about 10 MB; more are written to a file in sorted runs of this size."""

BLOCK_ROWS: Final = 200
"""Rows of a run that are read at once when the runs are merged."""

_DIGITS: Final = re.compile("[0-9]+")


def natural_key(text: str) -> str:
    """A text whose order by code points is the natural order of ``text``, as given by the library "natsort"."""
    if text.isascii():
        return _DIGITS.sub(_numeral, text)
    parts: tuple[str | int, ...] = _natsort_key()(text)
    return "".join(_ordered_digits(str(part)) if isinstance(part, int) else part for part in parts)


def _numeral(found: re.Match[str]) -> str:
    return _ordered_digits(found[0].lstrip("0") or "0")


def _ordered_digits(digits: str) -> str:
    """Digits after their number, so that shorter numbers come first, and before any other text."""
    return f"\0{chr(len(digits))}{digits}"


@cache
def _natsort_key() -> Any:
    from natsort import natsort_keygen  # not needed for names in ASCII

    return natsort_keygen()


def natural_place(text: str) -> tuple[str, str]:
    """A key of the natural order in which no two texts are equal, such as "1.jpg" and "01.jpg"."""
    return natural_key(text), text


def natural_place_text(text: str) -> str:
    """A text whose order is that of ``natural_place``, also if another text follows."""
    return f"{natural_key(text)}\0\0{text}\0\0"


@final
class RowSpool:
    """Rows of texts, which are iterated in the order of their keys, and rows with equal keys in the order of adding.

    Beyond ``run_rows`` rows, they are in a temporary file in the cache folder, which the system removes with the
    process. The memory that is needed is that of ``run_rows`` rows and 1 % of the others.

    Args:
        folder: of the file; default: the cache folder.
        run_rows: see above.
    """

    def __init__(self, folder: Path | None = None, *, run_rows: int = RUN_ROWS) -> None:
        self._folder, self._run_rows = folder, run_rows
        self._waiting: list[tuple[str, ...]] = []
        self._runs: list[array[int]] = []  # each: the offsets of its blocks, and its end
        self._file: Any = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, key: str, row: tuple[str, ...]) -> None:
        """Takes a row.

        Raises:
            CacheError: the file cannot be written.
        """
        self._count += 1
        self._waiting.append((key, *row))
        if len(self._waiting) >= self._run_rows:
            self._write_run()

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        """The rows, without their keys; adding rows meanwhile is not allowed."""
        last = sorted(self._waiting, key=itemgetter(0))
        if not self._runs:
            return (row[1:] for row in last)
        runs: list[Iterable[Any]] = [*map(self._read_run, self._runs), last]
        return (tuple(row[1:]) for row in heapq.merge(*runs, key=itemgetter(0)))

    def _write_run(self) -> None:
        folder = self._folder or cache_root()
        self._waiting.sort(key=itemgetter(0))
        try:
            self._append(folder)
        except OSError as error:
            raise CacheError(f"{not_written(folder, error)}, or name another cache folder.") from error
        self._waiting.clear()

    def _append(self, folder: Path) -> None:
        if self._file is None:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, prefix=".rows-")  # noqa: SIM115 (lives as long as the rows)
        offsets = array("q", [self._file.tell()])
        for start in range(0, len(self._waiting), BLOCK_ROWS):
            self._file.write(json.dumps(self._waiting[start : start + BLOCK_ROWS]).encode())
            offsets.append(self._file.tell())
        self._file.flush()
        self._runs.append(offsets)

    def _read_run(self, offsets: array[int]) -> Iterator[list[str]]:
        for begin, end in pairwise(offsets):
            yield from json.loads(os.pread(self._file.fileno(), end - begin, begin))


def in_natural_order(texts: Iterable[str]) -> Iterator[str]:
    """Texts in natural order, see ``RowSpool``."""
    spool = RowSpool()
    for text in texts:
        spool.add(natural_place_text(text), (text,))
    return (row[0] for row in spool)
