from __future__ import annotations

import numpy as np
import pytest

from headstart.training.outliers import (
    KEPT,
    LEAST_REFERENCES,
    NUMBERS,
    REFERENCES,
    Familiar,
    conformal_scores,
    cross_fitted_scores,
    familiar_with,
    held_out_distances,
    pick_references,
    typical_distance,
)


def usual(count: int, seed: int) -> np.ndarray:
    """Features of two kinds."""
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(99).normal(size=(2, 64)) * 3
    return (middles[rng.integers(0, 2, count)] + rng.normal(size=(count, 64))).astype(np.float32)


def knowing(references: np.ndarray, held_out: np.ndarray) -> Familiar:
    """What says "none of these" by usual images that were not learnt from."""
    known = familiar_with(references)
    assert known is not None
    judges = known.with_usual(known.distances(held_out))
    assert judges is not None
    return judges


def test_usual_pictures_are_kept_and_others_are_not() -> None:
    known = knowing(usual(300, 0), usual(400, 1))
    kept = known.outlier_scores(usual(2000, 2)) <= KEPT
    assert kept.mean() == pytest.approx(KEPT, abs=0.02)
    strange = np.random.default_rng(3).normal(size=(500, 64)).astype(np.float32) * 3
    assert (known.outlier_scores(strange) > KEPT).mean() > 0.99
    assert np.allclose(known.outlier_scores(7 * strange), known.outlier_scores(strange))  # their length says nothing


@pytest.mark.parametrize("count", range(20, 140))
def test_the_promise_holds_for_any_number_of_usual_images(count: int) -> None:
    """The next one is equally likely to fall into each of the gaps that they leave."""
    gaps = np.arange(count + 1) - 0.5
    kept = conformal_scores(np.arange(count), gaps) <= KEPT
    assert kept.mean() >= KEPT
    assert kept.mean() <= KEPT + 1.001 / (count + 1)  # and no more of them than that takes
    assert not kept[-1]  # what is farther than all of them is never usual


def test_too_few_usual_images_promise_nothing() -> None:
    known = familiar_with(usual(100, 0))
    assert known is not None
    assert known.with_usual(known.distances(usual(19, 1))) is None
    assert known.with_usual(known.distances(usual(20, 1))) is not None


def test_training_images_are_compared_with_the_others() -> None:
    features = usual(300, 0)
    known = familiar_with(features)
    assert known is not None
    own = known.distances(features, itself=np.arange(300))
    assert (own > 1e-3).all()  # none was its own neighbour
    judges = known.with_usual(own)
    assert judges is not None
    assert (judges.outlier_scores(usual(2000, 2)) <= KEPT).mean() == pytest.approx(KEPT, abs=0.03)


def test_each_fifth_of_the_usual_images_is_judged_by_the_others() -> None:
    distances = np.random.default_rng(0).random(500)
    scores = cross_fitted_scores(distances)
    assert (scores <= KEPT).mean() == pytest.approx(KEPT, abs=0.01)
    assert scores[distances.argmax()] == 400 / 401
    assert cross_fitted_scores(np.arange(3.0)).shape == (3,)


def test_a_fold_says_of_the_finished_model_what_is_usual_though_it_has_half_the_images_and_other_features() -> None:
    """Its network spreads the same images half as far, its references lie farther from each other."""
    learnt, other = usual(400, 0), usual(400, 1)
    middles = np.random.default_rng(99).normal(size=(2, 64)).astype(np.float32) * 3

    def narrower(features: np.ndarray) -> np.ndarray:
        near = middles[((features[:, None] - middles) ** 2).sum(2).argmin(1)]
        return near + (features - near) / 2

    relative = held_out_distances(narrower(learnt[:200]), narrower(learnt[200:]), references=400)
    known = familiar_with(learnt)
    assert known is not None
    judges = known.with_usual(relative * typical_distance(known, learnt))
    assert judges is not None
    assert (judges.outlier_scores(other) <= KEPT).mean() == pytest.approx(KEPT, abs=0.03)


def test_too_few_training_images_say_nothing() -> None:
    assert familiar_with(usual(LEAST_REFERENCES - 1, 0)) is None


def test_very_many_images_become_quantiles() -> None:
    many = knowing(usual(200, 0), usual(5000, 1))
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

    known = knowing(some(300, kinds[0]), some(300, kinds[0]))
    assert known.limits is not None
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
