"""Arrays that are computed once and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.cache.computed import computed_once, computed_rows
from headstart.cache.entries import cache_entries
from headstart.cache.keys import content_key
from headstart.cache.verify import verify_cache


@pytest.fixture
def asked(tmp_path: Path) -> Callable[..., int]:
    """Calls with an input, and returns how often anything was computed so far."""
    count = 0

    def ask(array: np.ndarray, about: dict[str, Any], shape: tuple[int, ...] = (3, 2)) -> int:
        def compute() -> np.ndarray:
            nonlocal count
            count += 1
            return np.full(shape, array.sum() + about["offset"], np.float64)

        found = computed_once("sums", about, [array], shape, compute, cache=tmp_path)
        assert np.array_equal(found, np.full(shape, array.sum() + about["offset"]))
        assert found.dtype == np.float64
        return count

    return ask


def test_the_same_inputs_are_computed_once(asked: Callable[..., int]) -> None:
    array = np.arange(6.0)
    assert asked(array, {"offset": 1}) == 1
    assert asked(array.copy(), {"offset": 1}) == 1


def test_whatever_differs_is_computed_again(asked: Callable[..., int]) -> None:
    array = np.arange(6.0)
    asked(array, {"offset": 1})
    assert asked(array + 1, {"offset": 1}) == 2
    assert asked(array.reshape(2, 3), {"offset": 1}) == 3, "same bytes, another shape"
    assert asked(array.view(np.int64), {"offset": 1}) == 4, "same bytes, another type"
    assert asked(array, {"offset": 2}) == 5
    assert asked(array, {"offset": 1}, (3, 3)) == 6


def test_results_of_other_shapes_are_kept_side_by_side(asked: Callable[..., int], tmp_path: Path) -> None:
    array = np.arange(6.0)
    assert asked(array, {"offset": 1}, (3, 2)) == 1
    assert asked(array, {"offset": 1}, (5,)) == 2
    assert asked(array, {"offset": 1}, (3, 2)) == 2
    assert asked(array, {"offset": 1}, (5,)) == 2
    checked = list(verify_cache(cache_entries(tmp_path)))
    assert [found.rows for found in checked] == [1, 1]
    assert all(found.sound for found in checked)


def test_the_key_depends_on_the_boundaries_between_inputs(tmp_path: Path) -> None:
    one, two = np.arange(4, dtype=np.uint8), np.arange(4, 6, dtype=np.uint8)
    for number, inputs in enumerate([[one, two], [np.concatenate([one, two])], [two, one]]):
        found = computed_once("sums", {}, inputs, (1,), lambda number=number: np.array([float(number)]), cache=tmp_path)
        assert found[0] == number


def test_a_damaged_result_is_computed_again(asked: Callable[..., int], tmp_path: Path) -> None:
    array = np.arange(6.0)
    asked(array, {"offset": 1})
    for rows in tmp_path.rglob("rows.bin"):
        rows.write_bytes(bytes(rows.stat().st_size))
    assert asked(array, {"offset": 1}) == 2


def test_without_a_cache_that_can_be_written_the_result_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    found = computed_once("sums", {}, [np.ones(2)], (1,), lambda: np.array([2.0]), cache=tmp_path / "file")
    assert found[0] == 2.0


@pytest.fixture
def squares(tmp_path: Path) -> Callable[[list[int]], tuple[list[Any], list[int]]]:
    """Asks for the squares of some numbers: (rows, the numbers that had to be computed); 7 has none."""

    def ask(numbers: list[int]) -> tuple[list[Any], list[int]]:
        computed: list[int] = []

        def compute(positions: list[int]) -> list[np.ndarray | None]:
            computed.extend(numbers[i] for i in positions)
            return [None if numbers[i] == 7 else np.full(2, numbers[i] ** 2, np.uint8) for i in positions]

        keys = [content_key(bytes([number])) for number in numbers]
        rows = computed_rows("squares", {}, keys, np.uint8, (2,), compute, cache=tmp_path)
        return [None if row is None else row.tolist() for row in rows], computed

    return ask


def test_only_missing_rows_are_computed(squares: Callable[[list[int]], tuple[list[Any], list[int]]]) -> None:
    rows, computed = squares([1, 2, 1])
    assert rows == [[1, 1], [4, 4], [1, 1]]
    assert sorted(computed) == [1, 2]
    assert squares([3, 2, 1, 7]) == ([[9, 9], [4, 4], [1, 1], None], [3, 7])
    assert squares([7, 3]) == ([None, [9, 9]], [7]), "nothing is kept for a row that does not exist"


def test_only_damaged_rows_are_computed_again(
    squares: Callable[[list[int]], tuple[list[Any], list[int]]], tmp_path: Path
) -> None:
    squares([1, 2, 3])
    (file,) = tmp_path.rglob("rows.bin")
    file.write_bytes(bytes([1, 1, 5, 4, 9, 9]))
    assert squares([1, 2, 3]) == ([[1, 1], [4, 4], [9, 9]], [2])
    assert squares([1, 2, 3])[1] == []


def test_a_cache_without_space_keeps_nothing(
    squares: Callable[[list[int]], tuple[list[Any], list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE_LIMIT", "1e-9")
    assert squares([2, 3]) == ([[4, 4], [9, 9]], [2, 3])
    assert squares([2, 3]) == ([[4, 4], [9, 9]], [2, 3])
