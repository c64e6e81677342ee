"""Extending: new classes behind those that a classifier knows, and nothing forgotten."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headstart.errors import DataError
from headstart.training.extend import MAX_FORGOTTEN, RehearsalSamples, Rows, extend_rows, synthesise_features
from headstart.training.head_spec import HeadSpec
from headstart.training.heads import build_head, head_with_rows


def clouds(classes: int, each: int, *, seed: int = 0, size: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Features in ``classes`` clouds that touch; (classes * each, size) float32 and labels."""
    rng = np.random.default_rng(seed)
    centres = 1.6 * np.random.default_rng(1).normal(size=(classes, size))
    labels = np.repeat(np.arange(classes), each)
    return (centres[labels] + rng.normal(size=(len(labels), size))).astype(np.float32), labels


def ideal_rows(classes: int, size: int = 12) -> Rows:
    """The classifier that knows the clouds: linear discriminants."""
    centres = 1.6 * np.random.default_rng(1).normal(size=(classes, size))
    return Rows(centres, -0.5 * (centres**2).sum(axis=1))


def all_of(rows: Rows) -> Rows:
    return Rows(rows.weight[:6], rows.bias[:6])


@pytest.mark.parametrize("train_old", [False, True])
def test_new_rows_find_their_images_and_rehearsal_images_keep_their_classes(train_old: bool) -> None:
    x, y = clouds(8, 120)
    old = all_of(ideal_rows(8))
    kept = RehearsalSamples(x[y < 6], y[y < 6])
    found = extend_rows(old, x[y >= 6], y[y >= 6] - 6, kept, classes=2, train_old=train_old)
    assert found.rows.weight.shape == (8, 12)
    assert np.array_equal(found.rows.weight[:6], old.weight) != train_old
    fresh, right = clouds(8, 200, seed=5)
    given, before = found.rows.logits(fresh).argmax(axis=1), old.logits(fresh).argmax(axis=1)
    known = right < 6
    assert (given[~known] == right[~known]).mean() > 0.8
    was, now = (before[known] == right[known]).mean(), (given[known] == right[known]).mean()
    assert was - now < 0.02
    assert found.lost <= MAX_FORGOTTEN
    assert found.found == pytest.approx((given[~known] >= 6).mean(), abs=0.08)


def test_the_old_classifiers_own_answers_stand_in_for_labels() -> None:
    x, y = clouds(8, 120)
    old = all_of(ideal_rows(8))
    found = extend_rows(old, x[y >= 6], y[y >= 6] - 6, RehearsalSamples(x[y < 6], np.full(720, -1)), classes=2)
    fresh, right = clouds(8, 200, seed=5)
    known = right < 6
    same = found.rows.logits(fresh[known]).argmax(axis=1) == old.logits(fresh[known]).argmax(axis=1)
    assert same.mean() > 0.98


@pytest.mark.parametrize(("new", "kept"), [(2, 720), (3, 720), (4, 2), (40, 2)])
def test_few_images_are_fitted_in_as_many_folds_as_there_are_images(new: int, kept: int) -> None:
    x, y = clouds(8, 120)
    images = RehearsalSamples(x[y < 6][::-1][:kept], y[y < 6][::-1][:kept])
    found = extend_rows(all_of(ideal_rows(8)), x[y == 6][:new], np.zeros(new, np.int64), images, classes=1)
    assert np.isfinite(found.rows.weight).all()
    assert f"{min(3, new, kept)}-fold" in found.reason


@pytest.mark.parametrize(("new", "kept"), [(1, 720), (40, 1)])
def test_a_single_image_cannot_be_divided_into_folds(new: int, kept: int) -> None:
    x, y = clouds(8, 120)
    images = RehearsalSamples(x[y < 6][:kept], y[y < 6][:kept])
    with pytest.raises(DataError, match="at least two of each are needed"):
        extend_rows(all_of(ideal_rows(8)), x[y == 6][:new], np.zeros(new, np.int64), images, classes=1)


def test_stepping_back_changes_nothing_among_the_new() -> None:
    x, y = clouds(8, 60)
    old = all_of(ideal_rows(8))
    new, kept = (x[y >= 6], y[y >= 6] - 6), RehearsalSamples(x[y < 6] + 0.8, y[y < 6])
    found = extend_rows(old, *new, kept, classes=2)
    assert found.step_back > 0
    forward = found.rows.logits(x)[:, 6:] + found.step_back
    assert np.array_equal(forward.argmax(axis=1), found.rows.logits(x)[:, 6:].argmax(axis=1))


def test_synthesised_features_show_their_classes_about_an_average_image() -> None:
    x, y = clouds(8, 60)
    old = all_of(ideal_rows(8))
    made = synthesise_features(old, np.zeros(12), x[y >= 6], y[y >= 6] - 6)
    assert made.is_synthesised
    assert set(made.labels) == {-1}
    assert len(made.features) % 6 == 0
    given = old.logits(made.features).argmax(axis=1)
    assert (given == np.repeat(np.arange(6), len(given) // 6)).mean() > 0.8


@pytest.mark.parametrize("single", [False, True])
def test_a_head_gets_rows_for_its_last_layer(single: bool) -> None:
    head = build_head(HeadSpec(widths=(5,), single=single), (7,), 2)
    weight, bias = np.ones((4, 5)), np.arange(4.0)
    other = head_with_rows(head, weight, bias)
    x = torch.randn(3, 7)
    inner = torch.relu(head[0](x))
    assert torch.allclose(other(x), inner @ torch.ones(5, 4) + torch.arange(4.0))
