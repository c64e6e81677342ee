from __future__ import annotations

import numpy as np
import pytest

from headstart.training.outliers import (
    KEPT,
    LEAST_REFERENCES,
    NUMBERS,
    REFERENCES,
    familiar_with,
    pick_references,
)


def usual(count: int, seed: int) -> np.ndarray:
    """Features of two kinds."""
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(99).normal(size=(2, 64)) * 3
    return (middles[rng.integers(0, 2, count)] + rng.normal(size=(count, 64))).astype(np.float32)


def test_usual_pictures_are_kept_and_others_are_not() -> None:
    known = familiar_with(usual(300, 0))
    assert known is not None
    known = known.with_usual(usual(400, 1))
    kept = known.outlier_scores(usual(2000, 2)) <= KEPT
    assert kept.mean() == pytest.approx(KEPT, abs=0.02)
    strange = np.random.default_rng(3).normal(size=(500, 64)).astype(np.float32) * 3
    assert (known.outlier_scores(strange) > KEPT).mean() > 0.99
    assert np.allclose(known.outlier_scores(7 * strange), known.outlier_scores(strange))  # their length says nothing


def test_without_other_images_training_images_say_what_is_usual_each_without_itself() -> None:
    known = familiar_with(usual(300, 0))
    assert known is not None
    assert (known.outlier_scores(usual(2000, 2)) <= KEPT).mean() == pytest.approx(KEPT, abs=0.03)
    few = known.with_usual(usual(20, 1))
    assert len(few.usual) == 320
    assert (known.usual > 1e-3).all()  # no image was its own neighbour


def test_too_few_training_images_say_nothing() -> None:
    assert familiar_with(usual(LEAST_REFERENCES - 1, 0)) is None


def test_very_many_images_become_quantiles() -> None:
    known = familiar_with(usual(200, 0))
    assert known is not None
    many = known.with_usual(usual(5000, 1))
    assert len(many.usual) == REFERENCES + 1
    assert (np.diff(many.usual) >= 0).all()
    assert (many.outlier_scores(usual(4000, 2)) <= KEPT).mean() == pytest.approx(KEPT, abs=0.02)


def test_references_are_drawn_by_content_and_fit_into_a_budget() -> None:
    rng = np.random.default_rng(0)
    keys = [rng.bytes(16) for _ in range(3000)]
    places = pick_references(keys, 1280)
    assert len(places) == REFERENCES
    assert places == sorted(places)
    shuffled = rng.permutation(3000)
    again = pick_references([keys[i] for i in shuffled], 1280)
    assert {keys[i] for i in places} == {keys[shuffled[i]] for i in again}
    assert len(pick_references(keys, 25_088)) == NUMBERS // 25_088
    assert len(pick_references(keys, 10**6)) == LEAST_REFERENCES
    assert len(pick_references(keys[:7], 10)) == 7


def test_features_that_tell_classes_apart_do_not_hide_what_is_strange() -> None:
    """As after fine-tuning: one strong feature for each class, the rest weak; a stranger has it as well."""
    rng = np.random.default_rng(0)
    kinds = np.random.default_rng(1).random((2, 60)) * 0.3 * (np.random.default_rng(2).random((2, 60)) < 0.3)

    def some(count: int, weak: np.ndarray) -> np.ndarray:
        strong = 8 * np.eye(2)[rng.integers(0, 2, count)] * rng.uniform(0.8, 1.2, (count, 1))
        noise = 0.05 * rng.random((count, 60))
        return np.concatenate([strong, weak + noise], axis=1).astype(np.float32)

    known = familiar_with(some(300, kinds[0]))
    assert known is not None
    assert known.limits is not None
    known = known.with_usual(some(300, kinds[0]))
    strange = some(300, kinds[1])
    assert (known.outlier_scores(some(600, kinds[0])) <= KEPT).mean() == pytest.approx(KEPT, abs=0.03)
    assert (known.outlier_scores(strange) > KEPT).mean() > 0.95


def test_features_that_are_nearly_all_0_are_not_cut_off_to_nothing() -> None:
    rng = np.random.default_rng(0)
    sparse = (usual(300, 0) * (rng.random((300, 64)) < 0.03)).astype(np.float32)
    known = familiar_with(sparse)
    assert known is not None
    assert known.limits is not None
    assert known.limits[1] > 0
    assert np.linalg.norm(known.references.astype(np.float32), axis=1).mean() > 0.8
