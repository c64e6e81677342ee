"""Rows that are kept in several stores and read as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headstart.cache.joined_rows import JoinedRows
from headstart.cache.row_store import RowStore

KEYS = [bytes([i] * 16) for i in range(1, 5)]
ROWS = np.arange(20, dtype=np.float32).reshape(4, 5)


def stores(root: Path) -> list[RowStore]:
    return [
        RowStore("features", {"part": part}, dtype=np.float32, shape=(width,), root=root)
        for part, width in (("last", 3), ("early", 2))
    ]


def test_rows_are_divided_between_the_stores_and_read_as_they_were(tmp_path: Path) -> None:
    joined = JoinedRows(stores(tmp_path))
    assert joined.missing(KEYS) == [0, 1, 2, 3]
    joined.append(KEYS, ROWS)
    assert joined.missing(KEYS) == []
    assert np.array_equal(joined.read(KEYS[::-1]), ROWS[::-1])
    first, second = stores(tmp_path)
    assert np.array_equal(first.read(KEYS), ROWS[:, :3])
    assert np.array_equal(second.read(KEYS), ROWS[:, 3:])


def test_a_row_that_one_store_lacks_is_missing_and_completed(tmp_path: Path) -> None:
    first, _ = stores(tmp_path)
    first.append(KEYS[:2], ROWS[:2, :3])
    joined = JoinedRows(stores(tmp_path))
    assert joined.missing(KEYS) == [0, 1, 2, 3]
    joined.append(KEYS, ROWS)
    assert np.array_equal(joined.read(KEYS), ROWS)


def test_damage_in_one_store_makes_the_row_missing(tmp_path: Path) -> None:
    joined = JoinedRows(stores(tmp_path))
    joined.append(KEYS, ROWS)
    file = joined.stores[1].folder / "rows.bin"
    file.write_bytes(bytes(8) + file.read_bytes()[8:])
    again = JoinedRows(stores(tmp_path))
    assert again.drop_damaged(KEYS) == 1
    assert again.missing(KEYS) == [0]


@pytest.mark.parametrize("count", [0, 3])
def test_space_is_asked_of_each_store(tmp_path: Path, count: int) -> None:
    JoinedRows(stores(tmp_path)).require_space(count)
