from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from headstart.training.thresholds import LEAST, MIDDLE, best_thresholds, given_by, given_by_others


def some(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Well calibrated probabilities of three labels, the last of them rare."""
    rng = np.random.default_rng(seed)
    chances = rng.beta(0.6, [0.6, 2.0, 8.0], size=(count, 3))
    return chances, (rng.random((count, 3)) < chances).astype(np.int64)


def test_no_other_threshold_gives_a_better_f1() -> None:
    chances, labels = some(400)
    found = best_thresholds(chances, labels)
    for i, threshold in enumerate(found):
        best = f1_score(labels[:, i], chances[:, i] >= threshold)
        tried = [f1_score(labels[:, i], chances[:, i] >= other) for other in np.unique(chances[:, i])]
        assert best == pytest.approx(max(tried))
    assert found[2] < found[0] < 0.6  # the rarer, the lower


def test_the_middle_is_kept_where_it_does_as_well_or_nothing_can_be_said() -> None:
    chances = np.array([[0.1], [0.2], [0.3], [0.8], [0.9], [0.95]] * 5)
    labels = (chances > 0.5).astype(np.int64)
    assert best_thresholds(chances, labels) == [MIDDLE]
    few = np.zeros((50, 1), np.int64)
    few[: LEAST - 1] = 1
    assert best_thresholds(np.linspace(0.3, 0, 50)[:, None], few) == [MIDDLE]
    assert best_thresholds(np.linspace(0.3, 0, 50)[:, None], 1 - few) == [MIDDLE]


def test_equal_probabilities_are_given_together() -> None:
    chances = np.repeat([0.1, 0.3], 20)[:, None]
    labels = np.r_[np.zeros(20, int), np.ones(10, int), np.zeros(10, int)][:, None]
    (found,) = best_thresholds(chances, labels)
    assert 0.1 < found <= 0.3
    assert given_by([found], chances).sum() == 20


def test_images_that_chose_thresholds_say_honestly_how_good_they_are() -> None:
    """On labels that follow from nothing, the thresholds chosen look better than they are; crossed, they do not."""
    rng = np.random.default_rng(5)
    flattered, honest, truth = [], [], []
    for _ in range(30):
        chances, labels = rng.random((40, 3)), (rng.random((40, 3)) < 0.3).astype(np.int64)
        found = best_thresholds(chances, labels)
        flattered.append(f1_score(labels, given_by(found, chances), average="micro", zero_division=0))
        honest.append(f1_score(labels, given_by_others(chances, labels), average="micro", zero_division=0))
        other, own = rng.random((2000, 3)), (rng.random((2000, 3)) < 0.3).astype(np.int64)
        truth.append(f1_score(own, given_by(found, other), average="micro", zero_division=0))
    assert np.mean(flattered) > np.mean(truth) + 0.03
    assert abs(np.mean(honest) - np.mean(truth)) < 0.02
    assert given_by_others(np.full((3, 1), 0.7), np.ones((3, 1), np.int64)).tolist() == [[1]] * 3  # too few to cross
