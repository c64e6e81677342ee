"""Classical classifiers: as scikit-learn's, with probabilities that mean something."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from headstart.errors import DataError
from headstart.training import classical
from headstart.training.classical import CLASSICAL
from headstart.trust.temperature import best_scale


def some_data(classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    x, y = make_classification(
        500, 20, n_informative=12, n_classes=classes, n_clusters_per_class=2, class_sep=1.0, random_state=seed
    )
    x = (x * np.linspace(0.5, 5, 20) + 1).astype(np.float32)
    return x[:400], y[:400].astype(np.int64), x[400:], y[400:].astype(np.int64)


def logits(head: Any, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(head(torch.from_numpy(x)).double().numpy())


def reference(kind: str, settings: dict[str, float]) -> Any:
    return {
        "svm": lambda: LinearSVC(C=settings["C"], dual="auto", max_iter=5000, random_state=0),
        "rbf": lambda: OneVsRestClassifier(SVC(C=settings["C"], gamma=1 / 20)),
        "centroid": NearestCentroid,
        "knn": lambda: KNeighborsClassifier(
            int(settings["neighbours"]), metric="cosine", weights=lambda d: np.exp(-d / settings["temperature"])
        ),
    }[kind]()


@pytest.mark.parametrize("kind", CLASSICAL)
@pytest.mark.parametrize("classes", [2, 4])
def test_it_answers_as_scikit_learn_does(kind: str, classes: int) -> None:
    x, y, new, truth = some_data(classes)
    found = CLASSICAL[kind](x, y, classes=classes)
    scaler = StandardScaler().fit(x) if kind != "knn" else StandardScaler(with_mean=False, with_std=False).fit(x)
    expected = reference(kind, found.settings).fit(scaler.transform(x), y).predict(scaler.transform(new))
    answers = logits(found.head, new).argmax(1)
    assert (answers == expected).mean() >= 0.99
    assert (answers == truth).mean() > (0.7 if classes == 2 else 0.5)


@pytest.mark.parametrize("kind", CLASSICAL)
def test_settings_are_chosen_without_dividing_groups(kind: str) -> None:
    """Each group is a scene with an independent label: only images of the same scene allow confident predictions."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 10)
    x = (rng.normal(size=(40, 60))[group] + 0.05 * rng.normal(size=(400, 60))).astype(np.float32)
    y = rng.integers(0, 2, 40)[group]
    new = rng.normal(size=(200, 60)).astype(np.float32)
    torn, apart = (CLASSICAL[kind](x, y, classes=2, together=own) for own in (None, group))
    if kind == "knn":
        assert apart.settings["neighbours"] > torn.settings["neighbours"]
        return
    sure = [np.abs(np.diff(logits(found.head, new), axis=1)).mean() for found in (apart, torn)]
    assert sure[0] < 0.5 * sure[1]


@pytest.mark.parametrize("kind", CLASSICAL)
def test_probabilities_are_calibrated(kind: str) -> None:
    x, y, new, truth = some_data(3)
    out = logits(CLASSICAL[kind](x, y, classes=3).head, new)
    assert 0.6 < best_scale(out, truth) < 1.7  # 1: nothing to mend


@pytest.mark.parametrize("kind", CLASSICAL)
def test_a_class_without_images_is_never_named(kind: str) -> None:
    x, y, new, _ = some_data(2)
    out = logits(CLASSICAL[kind](x, 2 * y, classes=4).head, new)
    assert set(out.argmax(1)) == {0, 2}
    odds = np.exp(out - out.max(1, keepdims=True))
    assert (odds / odds.sum(1, keepdims=True))[:, [1, 3]].max() < 1e-5


@pytest.mark.parametrize("kind", CLASSICAL)
def test_settings_are_taken_over_and_tiny_sets_have_a_rule(kind: str) -> None:
    x, y, new, _ = some_data(2)
    first = CLASSICAL[kind](x, y, classes=2)
    again = CLASSICAL[kind](x, y, classes=2, settings=first.settings)
    assert np.allclose(logits(first.head, new), logits(again.head, new))
    few = CLASSICAL[kind](x[:6], np.array([0, 1, 0, 1, 0, 1]), classes=2)
    assert np.isfinite(logits(few.head, new)).all()


@pytest.mark.parametrize("kind", ["svm", "rbf"])
def test_a_class_of_one_image_does_not_keep_c_from_being_chosen(kind: str) -> None:
    x, y, _, _ = some_data(3)
    keep = np.r_[np.flatnonzero(y != 2)[:120], np.flatnonzero(y == 2)[:1]]
    reason = CLASSICAL[kind](x[keep], y[keep], classes=3).reason
    assert "5-fold" in reason
    assert "chosen from" in reason


def test_balance_finds_more_of_the_rare_class() -> None:
    x, y, _, _ = some_data(2)
    keep = np.r_[np.flatnonzero(y == 0), np.flatnonzero(y == 1)[:15]]
    for kind in ("svm", "rbf"):
        recalls = []
        for balance in (False, True):
            head = CLASSICAL[kind](x[keep], y[keep], classes=2, balance=balance).head
            recalls.append((logits(head, x).argmax(1) == y)[y == 1].mean())
        assert recalls[1] > recalls[0], kind


def test_a_kernel_of_too_many_pairs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classical, "MOST_FOR_RBF", 100)
    x, y, _, _ = some_data(2)
    with pytest.raises(DataError, match="Choose probe svm"):
        CLASSICAL["rbf"](x, y, classes=2)
