from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.trust import label_errors
from headstart.trust.label_errors import cached_label_errors, find_label_errors
from headstart.trust.ood import find_outliers

CLASSES = 4


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(features, classes) of kinds that overlap a little."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    middles = np.random.default_rng(5).normal(size=(CLASSES, 32))
    return (middles[labels] + 0.75 * rng.normal(size=(count, 32))).astype(np.float32), labels


@pytest.mark.slow
def test_most_flipped_labels_are_found_most_confident_first_with_few_false_alarms() -> None:
    features, right = images(600, 0)
    labels = right.copy()
    flipped = np.random.default_rng(1).choice(600, 30, replace=False)
    labels[flipped] = (labels[flipped] + 1) % CLASSES
    found = find_label_errors(features, labels)
    assert found is not None
    hits = np.isin(found.positions, flipped)
    assert hits.sum() >= 24
    assert hits.mean() >= 0.6
    assert hits[:10].all()
    assert found.probabilities.shape == (600, CLASSES)
    assert (found.probabilities[flipped].argmax(1) == right[flipped]).mean() > 0.8


def test_of_several_labels_one_that_is_missing_and_one_too_many_are_found() -> None:
    features, classes = images(600, 2)
    labels = np.eye(CLASSES, dtype=np.int64)[classes]
    wrong = np.arange(20)
    labels[wrong[:10], classes[wrong[:10]]] = 0
    labels[wrong[10:], (classes[wrong[10:]] + 1) % CLASSES] = 1
    found = find_label_errors(features, labels)
    assert found is not None
    assert np.isin(wrong, found.positions).sum() >= 15
    assert len(found.positions) <= 40


@pytest.mark.slow
def test_a_copy_with_the_same_wrong_label_does_not_defend_it() -> None:
    """Each image is there three times, as bursts and augmented copies are; all copies share the label."""
    features, right = images(200, 0)
    copy = np.repeat(np.arange(200), 3)
    features = features[copy] + np.float32(0.01) * np.random.default_rng(1).normal(size=(600, 32)).astype(np.float32)
    flipped = np.random.default_rng(2).choice(200, 14, replace=False)
    labels = np.where(np.isin(np.arange(200), flipped), (right + 1) % CLASSES, right)[copy]
    wrong = np.flatnonzero(np.isin(copy, flipped))
    torn, apart = find_label_errors(features, labels), find_label_errors(features, labels, together=copy)
    assert torn is not None
    assert apart is not None
    assert np.isin(wrong, apart.positions).mean() > 0.75 > np.isin(wrong, torn.positions).mean()


def test_a_class_of_one_group_is_not_judged() -> None:
    features, labels = images(600, 0)
    group = np.where(labels == 3, 0, 1 + np.arange(600) // 3)
    found = find_label_errors(features, labels, together=group)
    assert found is not None
    assert np.isnan(found.probabilities[labels == 3]).all()
    assert not np.isin(found.positions, np.flatnonzero(labels == 3)).any()
    assert np.isfinite(found.probabilities[labels != 3]).all()


def test_too_few_images_say_nothing() -> None:
    features, labels = images(600, 0)
    assert find_label_errors(features[:30], labels[:30]) is None
    assert find_label_errors(features[labels == 1], labels[labels == 1]) is None
    rare = np.append(np.flatnonzero(labels > 0), np.flatnonzero(labels == 0)[:3])
    assert find_label_errors(features[rare], labels[rare]) is None


@pytest.mark.parametrize("signal", [0.0, 0.12])
def test_a_classifier_that_is_not_well_above_chance_accuses_no_label(signal: float) -> None:
    """As of a network with random weights: nothing in the features tells the classes apart, or hardly anything."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 460)
    features = (rng.normal(size=(460, 64)) + signal * labels[:, None]).astype(np.float32)
    assert find_label_errors(features, labels) is None
    several = np.stack([labels, rng.integers(0, 2, 460)], axis=1)
    assert find_label_errors(features, several) is None


@pytest.mark.parametrize("several", [False, True])
def test_images_that_belong_to_no_class_are_strays_the_strangest_first(several: bool) -> None:
    features, labels = images(400, 3)
    features *= np.float32(3)
    features[[10, 20, 30]] = 3 * np.random.default_rng(8).normal(size=(3, 32)).astype(np.float32)
    features[40] = -features[labels == labels[40]].mean(0)
    given = np.eye(CLASSES, dtype=np.int64)[labels] if several else labels
    found = find_outliers(features, given)
    assert {10, 20, 30, 40} <= set(found)
    assert len(found) <= 12
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert min(found.values()) > 1


def test_few_images_have_no_strays() -> None:
    features, labels = images(40, 3)
    assert not find_outliers(features, labels)


def test_what_was_found_is_kept_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, right = images(600, 3)
    labels = right.copy()
    labels[:20] = (labels[:20] + 1) % CLASSES
    arguments: dict[str, Any] = {"c": 0.1, "seed": 0, "together": None, "progress": None, "cache": tmp_path}
    expected = find_label_errors(features, labels, c=0.1)
    assert expected is not None
    first = cached_label_errors(features, labels, **arguments)
    monkeypatch.setattr(label_errors, "find_label_errors", lambda *_, **__: pytest.fail("computed again"))
    for found in (first, cached_label_errors(features, labels, **arguments)):
        assert found is not None
        assert np.array_equal(found.positions, expected.positions)
        assert np.array_equal(found.probabilities, expected.probabilities)
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        cached_label_errors(features, right, **arguments)
    for name, value in {"c": 0.2, "seed": 1, "together": np.arange(600)}.items():
        with pytest.raises(pytest.fail.Exception, match="computed again"):
            cached_label_errors(features, labels, **arguments | {name: value})


def test_that_nothing_can_be_said_is_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = images(20, 0)
    arguments: dict[str, Any] = {"c": None, "seed": 0, "together": None, "progress": None, "cache": tmp_path}
    assert cached_label_errors(features, labels, **arguments) is None
    monkeypatch.setattr(label_errors, "find_label_errors", lambda *_, **__: pytest.fail("computed again"))
    assert cached_label_errors(features, labels, **arguments) is None
