from __future__ import annotations

import numpy as np
import pytest
from random_predictions import random_logits
from scipy.special import softmax

from headstart.evaluation.metrics import Scores
from headstart.evaluation.predictions import Evaluated, evaluate_predictions
from headstart.evaluation.reliability import coverage_curve, reliabilities, reliability
from headstart.reports.calibration_chart import calibration_charts
from headstart.trust.calibration import calibrate, cross_fitted_probabilities


def test_the_error_is_the_mean_distance_of_probability_and_share_right() -> None:
    chances = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, False, True])
    found = reliability("val", chances, right)
    assert [(b.count, round(b.confidence, 2), b.accuracy) for b in found.bins] == [(2, 0.55, 0.5), (4, 0.95, 0.75)]
    assert found.error == pytest.approx((2 * 0.05 + 4 * 0.2) / 6)
    assert reliability("val", np.array([0.0, 1.0]), np.array([False, True])).error == 0


def evaluated(name: str, logits: np.ndarray, labels: np.ndarray) -> Evaluated:
    paths = [str(i) for i in range(len(labels))]
    return evaluate_predictions(name, paths, labels, softmax(logits, axis=1), ("a", "b", "c", "d"))


def test_reliability_follows_from_the_predictions_alone() -> None:
    logits, labels = random_logits(400, 3.0)
    own = calibrate(logits, labels, target_accuracy=0.9)
    parts = [evaluated("val", logits / own.temperature, labels), evaluated("test", *random_logits(300, seed=2))]
    before, after, test = reliabilities(own, parts)
    plain = softmax(logits, axis=1)
    assert before.error == pytest.approx(reliability("", plain.max(1), plain.argmax(1) == labels).error)
    crossed = cross_fitted_probabilities(logits, labels)
    assert after.error == pytest.approx(reliability("", crossed.max(1), crossed.argmax(1) == labels).error, abs=1e-4)
    assert after.error < before.error
    assert test.name == "test"
    share, accuracy = coverage_curve(parts[0])
    assert share[-1] == 1
    assert isinstance(parts[0].scores, Scores)
    assert accuracy[-1] == pytest.approx(parts[0].scores.accuracy)
    assert len(calibration_charts(own, [before, after, test], parts)) == 2
