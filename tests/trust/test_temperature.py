"""Temperature scaling: the scale is the one at which the log loss is least."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax

from headstart.trust.temperature import SCALES, best_scale, calibrated_losses


def some(count: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their probabilities; what is added to a whole row tells nothing."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, 3)) * 2
    labels = (rng.random(count)[:, None] > softmax(logits, axis=1).cumsum(1)).sum(1).astype(np.int64)
    return logits + rng.normal(size=(count, 1)) * 300, labels


def cross_entropy(logits: np.ndarray, labels: np.ndarray, doubt: float = 0.0) -> float:
    chances = log_softmax(logits, axis=1)
    right = chances[np.arange(len(labels)), labels]
    return float(-((1 - doubt) * right + doubt * chances.mean(1)).mean())


@pytest.mark.parametrize("doubt", [0.0, 0.1, 0.4])
def test_no_other_scale_has_a_smaller_log_loss(doubt: float) -> None:
    logits, labels = some()
    found = best_scale(logits, labels, smoothing=doubt)
    grid = found * np.linspace(0.8, 1.25, 46)
    losses = [cross_entropy(scale * logits, labels, doubt) for scale in grid]
    assert grid[int(np.argmin(losses))] == pytest.approx(found, rel=0.011)
    assert inspect.signature(best_scale).parameters["smoothing"].default == 0
    if not doubt:
        assert found == best_scale(logits, labels)
    else:
        assert found < 0.95 * best_scale(logits, labels)  # doubt makes answers less sure


def test_of_several_labels_no_other_scale_has_a_smaller_log_loss() -> None:
    """A number that all labels of an image share tells something there."""
    rng = np.random.default_rng(1)
    logits = 2 * rng.normal(size=(400, 3)) + rng.normal(size=(400, 1))
    labels = (rng.random(logits.shape) < expit(logits / 3)).astype(np.int64)
    found = best_scale(logits, labels)
    grid = found * np.linspace(0.8, 1.25, 46)
    signed = np.where(labels > 0, -logits, logits)
    losses = [np.logaddexp(0, scale * signed).sum(1).mean() for scale in grid]
    assert grid[int(np.argmin(losses))] == pytest.approx(found, rel=0.011)
    assert found == pytest.approx(1 / 3, rel=0.2)


def test_the_scale_follows_the_unit_of_the_logits_and_not_what_rows_share() -> None:
    logits, labels = some()
    own = best_scale(logits, labels)
    assert best_scale(1000 * logits, labels) == pytest.approx(own / 1000, rel=1e-3)
    assert best_scale(logits + 1e4, labels) == pytest.approx(own, rel=1e-3)


def test_the_scale_stays_within_its_bounds_where_the_log_loss_has_no_minimum() -> None:
    """Relative to logits with a standard deviation of 1."""
    logits = np.eye(2)[np.arange(40) % 2] * 6
    spread = float((logits - logits.mean(1, keepdims=True)).std())
    right = np.arange(40) % 2
    assert math.log(best_scale(logits, 1 - right) * spread) == pytest.approx(SCALES[0], abs=0.01)
    assert SCALES == (-8, 8)
    assert 2 < math.log(best_scale(logits, right) * spread) <= 8.01


@pytest.mark.parametrize("several", [False, True])
def test_logits_that_are_all_alike_are_left_as_they_are(several: bool) -> None:
    labels = np.ones((10, 3), np.int64) if several else np.arange(10) % 3
    assert best_scale(np.zeros((10, 3)), labels) == 1
    if not several:
        assert best_scale(np.arange(10.0)[:, None] * np.ones(3), labels) == 1
    else:
        assert best_scale(np.full((10, 3), 2.0), labels) == 1


def test_losses_are_those_at_the_best_scale_in_double_precision() -> None:
    logits, labels = some()
    found = calibrated_losses(logits.astype(np.float32), labels)
    scale = best_scale(logits.astype(np.float32), labels)
    chances = log_softmax(scale * logits.astype(np.float32).astype(np.float64), axis=1)
    assert found.dtype == np.float64
    assert found == pytest.approx(-chances[np.arange(len(labels)), labels])
    assert calibrated_losses(50 * logits, labels) == pytest.approx(calibrated_losses(logits, labels), rel=1e-2)
