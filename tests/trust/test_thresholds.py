from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from headstart.training.losses import folds_of
from headstart.trust.thresholds import DEFAULT_THRESHOLD, LEAST, best_thresholds, cross_fitted_labels, labels_above


def some(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Well calibrated probabilities of three labels, the last of them rare."""
    rng = np.random.default_rng(seed)
    chances = rng.beta(0.6, [0.6, 2.0, 8.0], size=(count, 3))
    return chances, (rng.random((count, 3)) < chances).astype(np.int64)


def f1_of(labels: np.ndarray, given: np.ndarray) -> float:
    return float(f1_score(labels, given, average="macro", zero_division=0))


@pytest.mark.exhaustive
def test_no_other_threshold_is_better_on_many_other_images() -> None:
    """Of well calibrated probabilities, also when the images that chose it are few; rare labels need low ones."""
    others, truth = some(100_000, seed=1)
    grid = np.linspace(0.05, 0.8, 61)
    best = np.array([max(f1_score(truth[:, i], others[:, i] >= t) for t in grid) for i in range(3)])
    found = [best_thresholds(*some(300, seed)) for seed in range(2, 12)]
    reached = np.mean([[f1_score(truth[:, i], others[:, i] >= own[i]) for i in range(3)] for own in found], axis=0)
    assert (reached > best - 0.02).all()
    middle = [f1_score(truth[:, i], others[:, i] >= DEFAULT_THRESHOLD) for i in range(3)]
    assert reached[2] > middle[2] + 0.1
    assert np.median(found, axis=0)[2] < np.median(found, axis=0)[0] < 0.6


def test_thresholds_mend_probabilities_that_are_off() -> None:
    chances, labels = some(400)
    off = chances**3
    assert f1_of(labels, cross_fitted_labels(off, labels)) > f1_of(labels, labels_above(DEFAULT_THRESHOLD, off)) + 0.03


def test_thresholds_of_the_others_divide_no_group() -> None:
    chances, labels = some(400)
    group = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 10))
    found = cross_fitted_labels(chances**3, labels, together=group)
    for learn, judge in folds_of(labels, 5, 0, together=group):
        assert not set(group[learn]) & set(group[judge])
        expected = labels_above(best_thresholds(chances[learn] ** 3, labels[learn]), chances[judge] ** 3)
        assert (found[judge] == expected).all()


def test_the_middle_is_kept_where_it_does_as_well_or_nothing_can_be_said() -> None:
    chances = np.array([[0.1], [0.2], [0.3], [0.8], [0.9], [0.95]] * 5)
    labels = (chances > 0.5).astype(np.int64)
    assert best_thresholds(chances, labels) == [DEFAULT_THRESHOLD]
    few = np.zeros((50, 1), np.int64)
    few[: LEAST - 1] = 1
    assert best_thresholds(np.linspace(0.3, 0, 50)[:, None], few) == [DEFAULT_THRESHOLD]
    assert best_thresholds(np.linspace(0.3, 0, 50)[:, None], 1 - few) == [DEFAULT_THRESHOLD]


def test_equal_probabilities_are_given_together() -> None:
    chances = np.repeat([0.1, 0.3], 20)[:, None]
    labels = np.r_[np.zeros(20, int), np.ones(10, int), np.zeros(10, int)][:, None]
    (found,) = best_thresholds(chances, labels)
    assert 0.1 < found <= 0.3
    assert labels_above([found], chances).sum() == 20


def f1_to_expect(chances: np.ndarray, bears: np.ndarray) -> Callable[[float], float]:
    """Threshold -> F1 to be expected there, from calibrated probabilities."""
    odds = logit(np.clip(chances, 1e-6, 1 - 1e-6))[:, None]
    calibrated = LogisticRegression(C=1e3).fit(odds, bears).predict_proba(odds)[:, 1]

    def expected(threshold: float) -> float:
        given = chances >= threshold
        return float(2 * calibrated[given].sum() / (given.sum() + calibrated.sum()))

    return expected


@pytest.mark.parametrize(("count", "seeds"), [(14, 8), (60, 4), (300, 2)])
def test_the_threshold_is_where_f1_is_to_be_expected_greatest(count: int, seeds: int) -> None:
    """Halfway to the next probability; ``DEFAULT_THRESHOLD`` where that gives the same images."""
    chosen = 0
    for seed in range(seeds):
        chances, labels = some(count, seed)
        chances[:2] = [[0, 1, 0], [1, 0, 0]]
        for i, found in enumerate(best_thresholds(chances, labels)):
            own, bears = chances[:, i], labels[:, i]
            if min(bears.sum(), count - bears.sum()) < LEAST:
                assert found == DEFAULT_THRESHOLD
                continue
            expected = f1_to_expect(own, bears)
            values = np.unique(np.r_[0.0, own])
            assert expected(found) == pytest.approx(max(map(expected, values)), abs=1e-12)
            if found != DEFAULT_THRESHOLD:
                chosen += 1
                assert np.abs((values[1:] + values[:-1]) / 2 - found).min() < 1e-12 or found == 0
                assert (own >= found).tolist() != (own >= DEFAULT_THRESHOLD).tolist()
    assert chosen


def test_the_threshold_is_where_f1_is_to_be_expected_greatest_whatever_the_calibration_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many small cases, calibrated by a table."""
    rng = np.random.default_rng(0)
    seen = []

    class Table:
        def __init__(self, *, C: float) -> None:
            seen.append(C)

        def fit(self, odds: np.ndarray, bears: np.ndarray) -> Table:
            return self

        def predict_proba(self, odds: np.ndarray) -> np.ndarray:
            right = expit(odds[:, 0]) ** power
            return np.stack([1 - right, right], axis=1)

    monkeypatch.setattr("sklearn.linear_model.LogisticRegression", Table)
    for _ in range(300):
        power = rng.choice([0.3, 1.0, 3.0])
        chances = rng.choice(np.linspace(0.05, 0.95, 13), (rng.integers(10, 16), 1))
        bears = (np.arange(len(chances)) % 2)[:, None]
        (found,) = best_thresholds(chances, bears)
        calibrated, values = chances**power, np.unique(np.r_[0.0, chances[:, 0]])
        between = [float(t) for t in (values[1:] + values[:-1]) / 2]
        expected = {
            t: float(2 * calibrated[chances >= t].sum() / ((chances >= t).sum() + calibrated.sum())) for t in between
        }
        best = max(expected.values())
        same = [t for t in between if expected[t] == pytest.approx(best, abs=1e-12)]
        if found == DEFAULT_THRESHOLD and DEFAULT_THRESHOLD not in between:
            assert any(((chances >= t) == (chances >= DEFAULT_THRESHOLD)).all() for t in same)
        else:
            assert min(abs(t - found) for t in same) < 1e-12
    assert set(seen) == {1000}


def test_a_threshold_needs_five_images_with_the_label_and_five_without() -> None:
    assert LEAST == 5
    few = np.zeros((50, 1), np.int64)
    few[:LEAST] = 1
    assert best_thresholds(np.linspace(0.3, 0, 50)[:, None], few)[0] < 0.3
    assert (
        best_thresholds(np.linspace(0.9, 0.6, 50)[:, None], 1 - few)[0] == DEFAULT_THRESHOLD
    )  # below every probability
    assert best_thresholds(np.linspace(0.4, 0.2, 50)[:, None], 1 - few[::-1])[0] < DEFAULT_THRESHOLD


def test_where_all_are_given_the_threshold_is_half_of_the_least_probability() -> None:
    chances = np.linspace(0.2, 0.4, 100)[:, None]
    bears = np.ones((100, 1), np.int64)
    bears[::20] = 0
    assert best_thresholds(chances, bears) == pytest.approx([0.1])


@pytest.mark.parametrize(("high", "low", "expected"), [(0.5, 0.3, 0.5), (0.7, 0.5, 0.6), (0.49, 0.3, 0.395)])
def test_the_middle_belongs_to_the_images_that_are_given_the_label(high: float, low: float, expected: float) -> None:
    chances = np.repeat([low, high], 20)[:, None]
    bears = np.r_[np.zeros(19, int), 1, 0, np.ones(19, int)][:, None]
    assert best_thresholds(chances, bears) == pytest.approx([expected])
    assert labels_above([0.5], np.array([[0.5], [0.4999]])).tolist() == [[1], [0]]


def test_each_fifth_of_the_images_is_judged_by_the_others() -> None:
    chances, labels = some(60)
    crossed = cross_fitted_labels(chances**3, labels)
    for learn, judge in folds_of(labels, 5, 0):
        found = best_thresholds(chances[learn] ** 3, labels[learn])
        assert np.array_equal(crossed[judge], labels_above(found, chances[judge] ** 3))
    assert not np.array_equal(crossed, labels_above(DEFAULT_THRESHOLD, chances**3))
    assert (
        cross_fitted_labels(np.full((4, 1), 0.7), np.ones((4, 1), np.int64)).tolist() == [[1]] * 4
    )  # too few to cross


@pytest.mark.exhaustive
def test_images_that_chose_thresholds_are_judged_by_those_of_the_others() -> None:
    """On labels that follow from nothing, thresholds look better on the images that chose them than they are."""
    rng = np.random.default_rng(5)
    flattered, honest, truth = [], [], []
    for _ in range(30):
        chances, labels = rng.random((40, 3)), (rng.random((40, 3)) < 0.3).astype(np.int64)
        found = best_thresholds(chances, labels)
        flattered.append(f1_of(labels, labels_above(found, chances)))
        crossed = cross_fitted_labels(chances, labels)
        honest.append(f1_of(labels, crossed))
        other, own = rng.random((2000, 3)), (rng.random((2000, 3)) < 0.3).astype(np.int64)
        truth.append(f1_of(own, labels_above(found, other)))
        for learn, judge in folds_of(labels, 5, 0):
            expected = labels_above(best_thresholds(chances[learn], labels[learn]), chances[judge])
            assert np.array_equal(crossed[judge], expected)
    assert np.mean(honest) < np.mean(flattered)
    assert abs(np.mean(honest) - np.mean(truth)) < 0.02
    assert (
        cross_fitted_labels(np.full((3, 1), 0.7), np.ones((3, 1), np.int64)).tolist() == [[1]] * 3
    )  # too few to cross
