from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.model_selection import KFold, StratifiedKFold
from torch import nn

from headstart.errors import DataError
from headstart.training import losses as targets
from headstart.trust.temperature import best_scale, calibrated_losses

ONE = np.array([2, 0, 1, 1])
SEVERAL = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
LOGITS = np.random.default_rng(0).normal(size=(4, 3)) * 2


def test_losses_are_pytorchs_own() -> None:
    x = torch.from_numpy(LOGITS)
    plain = nn.functional.cross_entropy(x, torch.from_numpy(ONE), reduction="none")
    binary = nn.functional.binary_cross_entropy_with_logits(x, torch.from_numpy(SEVERAL).double(), reduction="none")
    assert np.allclose(targets.log_losses(LOGITS, ONE), plain)
    assert np.allclose(targets.log_losses(LOGITS, SEVERAL), binary.sum(1))
    for labels, expected in ((ONE, plain), (SEVERAL, binary.sum(1))):
        goal = targets.soft_targets(labels, 3, 0.0)
        found = targets.loss_per_image(x.expand(2, 4, 3), goal, multi_label=labels.ndim == 2)
        assert found.shape == (2, 4)  # any number of heads at once
        assert torch.allclose(found.double(), expected.expand(2, 4), atol=1e-6)


def test_smoothing_spreads_over_what_could_be_answered() -> None:
    assert np.allclose(targets.soft_targets(ONE, 3, 0.3)[0], [0.1, 0.1, 0.8])
    assert np.allclose(targets.soft_targets(SEVERAL, 3, 0.3)[0], [0.85, 0.15, 0.85])


def test_an_image_is_right_where_all_of_its_labels_are() -> None:
    logits = np.array([[1.0, -2, 3], [-1, 2, -1], [1, 1, 1], [-1, 1, -1]])
    assert targets.are_correct(logits, SEVERAL).tolist() == [True, False, True, True]
    assert targets.are_correct(logits, ONE).tolist() == [True, False, False, True]


def test_probabilities_of_one_class_sum_to_1_and_those_of_several_labels_do_not_compete() -> None:
    assert np.allclose(targets.probabilities_of(LOGITS, multi_label=False).sum(1), 1)
    changed = LOGITS + np.array([0, 0, 5])
    before, after = (targets.probabilities_of(x, multi_label=True) for x in (LOGITS, changed))
    assert np.array_equal(before[:, :2], after[:, :2])
    assert np.allclose(before, 1 / (1 + np.exp(-LOGITS)))


def test_what_can_be_learnt_is_counted() -> None:
    assert targets.count_learnable(ONE) == 3
    assert targets.count_learnable(SEVERAL) == 3
    assert targets.count_learnable(np.array([[1, 0, 1], [1, 0, 0]])) == 1


@pytest.mark.parametrize("labels", [ONE.repeat(5), SEVERAL.repeat(5, axis=0)])
def test_folds_hold_each_image_once(labels: np.ndarray) -> None:
    folds = targets.folds_of(labels, 4, 1)
    assert len(folds) == 4
    assert sorted(np.concatenate([judge for _, judge in folds])) == list(range(20))
    assert all(not set(learn) & set(judge) for learn, judge in folds)


def test_folds_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    for seed in range(60):
        size, classes, count = generator.integers(12, 90), generator.integers(1, 12), int(generator.integers(2, 6))
        labels = generator.integers(0, classes, size)
        number = max(2, min(count, int(np.bincount(labels).max())))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # some classes have fewer images than there are folds
            expected = list(StratifiedKFold(number, shuffle=True, random_state=seed).split(labels, labels))
        several = generator.integers(0, 2, (size, 3))
        plain = list(KFold(min(count, size), shuffle=True, random_state=seed).split(several))
        found = [targets.folds_of(labels, count, seed), targets.folds_of(several, count, seed)]
        for folds, others in zip(found, [expected, plain], strict=True):
            assert [[part.tolist() for part in fold] for fold in folds] == [
                [part.tolist() for part in fold] for fold in others
            ]


def test_a_rare_class_takes_no_fold_from_the_others() -> None:
    labels = np.r_[np.zeros(20), np.ones(20), [2, 2]].astype(np.int64)
    folds = targets.folds_of(labels, 5, 0)
    assert len(folds) == 5
    assert all(set(labels[learn]) == {0, 1, 2} for learn, _ in folds)


def test_an_image_that_is_alone_of_its_class_is_always_learnt_from_and_never_judged() -> None:
    labels = np.r_[np.zeros(20), np.ones(20), [3]].astype(np.int64)
    folds = targets.learnable_folds(labels, 5, 0)
    assert len(folds) == 5
    assert all(40 in learn for learn, _ in folds)
    assert sorted(np.concatenate([judge for _, judge in folds])) == list(range(40))
    with pytest.raises(DataError, match="every class has only one image"):
        targets.learnable_folds(np.arange(4), 5, 0)


def test_the_best_scale_of_several_labels_mends_their_logits() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(3000, 4)) * 2
    labels = (rng.random((3000, 4)) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    assert best_scale(5 * logits, labels) == pytest.approx(0.2, rel=0.1)
    assert np.allclose(calibrated_losses(5 * logits, labels), calibrated_losses(logits, labels), atol=1e-3)


def test_parts_lie_in_one_fold_each() -> None:
    rng = np.random.default_rng(0)
    together = rng.permutation(np.repeat(np.arange(12), 5))
    labels = (together % 2).astype(np.int64)
    folds = targets.learnable_folds(labels, 5, 0, together=together)
    assert len(folds) == 5
    assert sorted(np.concatenate([judge for _, judge in folds])) == list(range(60))
    for learn, judge in folds:
        assert not set(together[learn]) & set(together[judge])
        assert set(labels[learn]) == {0, 1}


def test_a_class_of_one_part_is_always_learnt_from_and_never_judged() -> None:
    together = np.r_[np.repeat(np.arange(6), 3), [9, 9, 9, 10, 11]]
    labels = np.r_[np.repeat([0, 1], 9), np.full(3, 2), [3, 3]].astype(np.int64)
    folds = targets.learnable_folds(labels, 3, 0, together=together)
    assert all(set(labels[learn]) == {0, 1, 2, 3} for learn, _ in folds)
    assert not any(2 in labels[judge] for _, judge in folds)
    mixed = np.r_[labels[:18], [1, 1]].astype(np.int64)  # of a class that is the lesser one of its only part
    mixed[[1, 2]] = 2
    for learn, _ in targets.learnable_folds(mixed, 3, 0, together=np.r_[together[:18], [9, 9]]):
        assert set(mixed[learn]) == {0, 1, 2}


def test_images_are_judged_where_each_class_is_one_part() -> None:
    labels = np.repeat([0, 1], 10).astype(np.int64)
    with_parts = targets.learnable_folds(labels, 5, 0, together=labels)
    assert [judge.tolist() for _, judge in with_parts] == [j.tolist() for _, j in targets.learnable_folds(labels, 5, 0)]


def test_folds_without_a_classifier_judge_every_image_and_divide_no_part() -> None:
    rng = np.random.default_rng(0)
    together = rng.permutation(np.repeat(np.arange(12), 5))
    labels = rng.integers(0, 3, 60)
    folds = targets.folds_of(labels, 5, 0, together=together)
    assert sorted(np.concatenate([judge for _, judge in folds])) == list(range(60))
    assert all(not set(together[learn]) & set(together[judge]) for learn, judge in folds)
    one = targets.folds_of(labels, 5, 0, together=np.zeros(60, np.int64))
    assert [judge.tolist() for _, judge in one] == [judge.tolist() for _, judge in targets.folds_of(labels, 5, 0)]


def test_no_fold_is_left_without_an_image_to_judge() -> None:
    together = np.r_[np.arange(10), [20] * 4, [21] * 4].astype(np.int64)
    labels = np.r_[[0] * 10, [1] * 4, [2] * 4].astype(np.int64)  # two classes of one part each
    assert all(len(judge) for _, judge in targets.learnable_folds(labels, 5, 0, together=together))
