"""Arrays that are computed once and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.cache.computed import computed_once


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
