"""McNemar's test: two models on the same images; and scores by group."""

from __future__ import annotations

import math

import numpy as np
import pytest

from headstart.evaluation.mcnemar import paired
from headstart.evaluation.metrics import score_groups


def rights(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    one = np.array([True] * both + [True] * first + [False] * second + [False] * neither)
    two = np.array([True] * both + [False] * first + [True] * second + [False] * neither)
    return one, two


def test_the_test_is_mcnemars_exact_one() -> None:
    found = paired("val", *rights(480, 9, 21, 40))
    tail = sum(math.comb(30, k) for k in range(10)) / 2**30
    assert found.p == pytest.approx(2 * tail)
    assert (found.both, found.first, found.second, found.count) == (480, 9, 21, 550)
    assert found.difference == pytest.approx(12 / 550)
    assert found.low < found.difference < found.high
    assert "A 88.9 % (489/550), B 91.1 % (501/550)" in found.sentence


def test_identical_models_do_not_differ_significantly() -> None:
    same = paired("val", *rights(90, 0, 0, 10))
    assert same.p == 1
    assert same.low < 0 < same.high
    assert "not significant" in same.sentence
    assert paired("val", *rights(50, 0, 20, 0)).p < 1e-4


@pytest.mark.exhaustive
def test_the_interval_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(600):
        kind = rng.choice(4, 200, p=[0.8, 0.05, 0.1, 0.05])
        found = paired("x", np.isin(kind, [0, 1]), np.isin(kind, [0, 2]))
        hits += found.low <= 0.05 <= found.high
    assert 0.92 <= hits / 600 <= 0.985


def test_groups_are_scored_apart_the_worst_first() -> None:
    right = np.array([True, True, False, False, False, True])
    found = score_groups(["a", "a", "b", "b", "", ""], right)
    assert [(g.group, g.correct, g.count) for g in found] == [("b", 0, 2), ("", 1, 2), ("a", 2, 2)]
    assert found[2].low < 1 == found[2].high
