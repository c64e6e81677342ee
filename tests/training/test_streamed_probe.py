"""The probe fitted in passes over batches is that which is fitted in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from headstart.errors import DataError
from headstart.progress import SilentProgress
from headstart.training import penalty as penalty_module
from headstart.training.losses import log_losses
from headstart.training.penalty import Features
from headstart.training.probe import NEVER, fit_probe, of_raw_features, standardised
from headstart.training.streamed_probe import Batches, fit_streamed_probe


def clouds(count: int, classes: int, seed: int = 0) -> tuple[Features, np.ndarray]:
    """Overlapping clouds of points with an offset and one nearly constant feature."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    features = rng.normal(size=(count, 12)) * np.linspace(0.5, 3, 12) + 7
    features[:, :classes] += 1.5 * np.eye(classes)[labels]
    features[:, -1] = 3 + 1e-9 * features[:, -1]
    return features.astype(np.float32), labels


def in_batches(features: Features, size: int) -> Batches:
    def batches() -> Iterator[Features]:
        for start in range(0, len(features), size):
            yield features[start : start + size]

    return batches


def streamed(features: Features, labels: np.ndarray, classes: int, size: int = 37):  # type: ignore[no-untyped-def]
    return fit_streamed_probe(in_batches(features, size), labels, classes=classes, progress=SilentProgress())


@pytest.mark.parametrize("classes", [2, 4])
def test_it_is_the_probe_in_memory(classes: int) -> None:
    features, labels = clouds(400, classes)
    expected, found = fit_probe(features, labels, classes=classes), streamed(features, labels, classes)
    assert (found.c, found.reason) == (expected.c, expected.reason)
    held, of = clouds(300, classes, seed=1)
    scores = [(held @ probe.weight.T + probe.bias).astype(np.float64) for probe in (expected, found)]
    losses = [float(log_losses(one, of).mean()) for one in scores]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert (scores[0].argmax(1) == scores[1].argmax(1)).mean() > 0.99


def test_the_penalty_is_chosen_on_the_same_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clouds(600, 3)
    for module in ("penalty", "streamed_probe"):
        monkeypatch.setattr(f"headstart.training.{module}.CHOOSE_ON", 200)
    expected, found = fit_probe(features, labels, classes=3), streamed(features, labels, 3)
    assert penalty_module.CHOOSE_ON == 200
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)
    assert np.abs(found.weight - expected.weight).max() < 0.02 * np.abs(expected.weight).max()


def test_several_labels_and_a_label_that_no_image_has() -> None:
    features, labels = clouds(300, 3)
    several = np.eye(4, dtype=np.int64)[labels]
    expected, found = fit_probe(features, several, classes=4), streamed(features, several, 4)
    assert np.abs(found.weight - expected.weight).max() < 0.02 * np.abs(expected.weight).max()
    assert found.bias[3] == pytest.approx(expected.bias[3], rel=1e-4)


def test_a_class_without_images_is_never_predicted() -> None:
    features, labels = clouds(200, 2)
    found = streamed(features, labels * 2, 3)
    assert found.bias[1] == NEVER
    assert not found.weight[1].any()
    with pytest.raises(DataError, match="at least two"):
        streamed(features, labels * 0, 2)


def test_the_size_of_the_batches_does_not_matter() -> None:
    features, labels = clouds(300, 3)
    one, other = streamed(features, labels, 3, 300), streamed(features, labels, 3, 7)
    assert np.abs(one.weight - other.weight).max() < 1e-3 * np.abs(one.weight).max()


def test_from_the_fit_on_a_sample_the_minimum_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("penalty", "streamed_probe"):
        monkeypatch.setattr(f"headstart.training.{module}.CHOOSE_ON", 800)
    rng = np.random.default_rng(0)
    labels = np.arange(4000) % 4
    features = (rng.normal(size=(4000, 400)) + 0.2 * rng.normal(size=(4, 400))[labels]).astype(np.float32)
    found = streamed(features[:3000], labels[:3000], 4, 500)
    mean, scale, x = standardised(features[:3000])
    exact = LogisticRegression(C=found.c, max_iter=1000, tol=1e-8).fit(x.astype(np.float64), labels[:3000])
    expected = of_raw_features(exact.coef_, exact.intercept_, mean, scale)
    losses = [
        float(log_losses((features[3000:] @ weight.T + bias).astype(np.float64), labels[3000:]).mean())
        for weight, bias in (expected, (found.weight, found.bias))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
