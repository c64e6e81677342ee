from __future__ import annotations

import numpy as np
import pytest

from headstart.prediction import INLIER_SHARE
from headstart.trust import ood as outliers
from headstart.trust.ood import (
    MAX_REFERENCES,
    MAX_REFERENCES_FINE_TUNED,
    MIN_INLIERS,
    MIN_REFERENCES,
    NUMBERS,
    OodDetector,
    choose_references,
    conformal_scores,
    cross_fitted_scores,
    find_outliers,
    held_out_distances,
    make_ood_detector,
    typical_distance,
)


def usual(count: int, seed: int) -> np.ndarray:
    """Features of two kinds."""
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(99).normal(size=(2, 64)) * 3
    return (middles[rng.integers(0, 2, count)] + rng.normal(size=(count, 64))).astype(np.float32)


def knowing(references: np.ndarray, held_out: np.ndarray) -> OodDetector:
    """What says "none of these" by usual images that were not learnt from."""
    known = make_ood_detector(references)
    assert known is not None
    judges = known.with_inlier_distances(known.distances(held_out))
    assert judges is not None
    return judges


def test_usual_images_are_kept_and_others_are_not() -> None:
    known = knowing(usual(300, 0), usual(400, 1))
    kept = known.outlier_scores(usual(2000, 2)) <= INLIER_SHARE
    assert kept.mean() == pytest.approx(INLIER_SHARE, abs=0.02)
    strange = np.random.default_rng(3).normal(size=(500, 64)).astype(np.float32) * 3
    assert (known.outlier_scores(strange) > INLIER_SHARE).mean() > 0.99
    assert np.allclose(known.outlier_scores(7 * strange), known.outlier_scores(strange))  # their length says nothing


@pytest.mark.parametrize("count", range(20, 140))
def test_the_promise_holds_for_any_number_of_usual_images(count: int) -> None:
    """The next one is equally likely to fall into each of the gaps that they leave."""
    gaps = np.arange(count + 1) - 0.5
    kept = conformal_scores(np.arange(count), gaps) <= INLIER_SHARE
    assert kept.mean() >= INLIER_SHARE
    assert kept.mean() <= INLIER_SHARE + 1.001 / (count + 1)  # and no more of them than that takes
    assert not kept[-1]  # an image farther than every reference is never in-distribution


def test_too_few_usual_images_promise_nothing() -> None:
    known = make_ood_detector(usual(100, 0))
    assert known is not None
    assert known.with_inlier_distances(known.distances(usual(19, 1))) is None
    assert known.with_inlier_distances(known.distances(usual(20, 1))) is not None


def test_training_images_are_compared_with_the_others() -> None:
    features = usual(300, 0)
    known = make_ood_detector(features)
    assert known is not None
    each = np.arange(300)
    own = known.distances(features, parts=(each, each))
    assert (own > 1e-3).all()  # no image was a neighbour of itself
    judges = known.with_inlier_distances(own)
    assert judges is not None
    assert (judges.outlier_scores(usual(2000, 2)) <= INLIER_SHARE).mean() == pytest.approx(INLIER_SHARE, abs=0.03)


def test_images_are_compared_with_references_of_other_groups_only() -> None:
    """Ten shots of each scene lie next to each other; images of a new scene are as far as other scenes are."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(30), 10)
    features = (usual(30, 0)[group] + 0.01 * rng.normal(size=(300, 64))).astype(np.float32)
    known = make_ood_detector(features)
    assert known is not None
    apart, each = known.distances(features, parts=(group, group)), np.arange(300)
    assert np.median(apart) > 10 * np.median(known.distances(features, parts=(each, each)))
    judges, new = known.with_inlier_distances(apart), usual(400, 1)
    assert judges is not None
    assert (judges.outlier_scores(new) <= INLIER_SHARE).mean() > 0.9
    most = np.r_[np.zeros(297, np.int64), 1, 2, 3]
    assert np.isinf(known.distances(features, parts=(most, most))).tolist() == [True] * 297 + [False] * 3


def test_cross_fitted_scores_divide_no_group() -> None:
    """Distances within a group are similar: judged by the same group, the farthest image would look in-distribution."""
    group = np.repeat(np.arange(20), 20)
    distances = group + np.linspace(0, 0.01, 400)
    farthest = group == 19
    assert (cross_fitted_scores(distances, together=group)[farthest] > INLIER_SHARE).all()
    assert (cross_fitted_scores(distances)[farthest] <= INLIER_SHARE).any()


def test_each_fifth_of_the_usual_images_is_judged_by_the_others() -> None:
    distances = np.random.default_rng(0).random(500)
    scores = cross_fitted_scores(distances)
    assert (scores <= INLIER_SHARE).mean() == pytest.approx(INLIER_SHARE, abs=0.01)
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
    known = make_ood_detector(learnt)
    assert known is not None
    judges = known.with_inlier_distances(relative * typical_distance(known, learnt))
    assert judges is not None
    assert (judges.outlier_scores(other) <= INLIER_SHARE).mean() == pytest.approx(INLIER_SHARE, abs=0.03)


def test_too_few_training_images_say_nothing() -> None:
    assert make_ood_detector(usual(MIN_REFERENCES - 1, 0)) is None


def test_very_many_images_become_quantiles() -> None:
    many = knowing(usual(200, 0), usual(5000, 1))
    assert len(many.inlier_distances) == MAX_REFERENCES + 1
    assert (np.diff(many.inlier_distances) >= 0).all()
    assert (many.outlier_scores(usual(4000, 2)) <= INLIER_SHARE).mean() == pytest.approx(INLIER_SHARE, abs=0.02)


def test_references_are_drawn_by_content_and_fit_into_a_budget() -> None:
    rng = np.random.default_rng(0)
    keys = [rng.bytes(16) for _ in range(3000)]
    places = choose_references(keys, 1280)
    assert len(places) == MAX_REFERENCES
    assert places == sorted(places)
    shuffled = rng.permutation(3000)
    again = choose_references([keys[i] for i in shuffled], 1280)
    assert {keys[i] for i in places} == {keys[shuffled[i]] for i in again}
    assert len(choose_references(keys, 25_088)) == NUMBERS // 25_088
    assert len(choose_references(keys, 10**6)) == MIN_REFERENCES
    assert len(choose_references(keys[:7], 10)) == 7


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
    assert (known.outlier_scores(some(600, kinds[0])) <= INLIER_SHARE).mean() == pytest.approx(INLIER_SHARE, abs=0.03)
    assert (known.outlier_scores(strange) > INLIER_SHARE).mean() > 0.95


def test_features_that_are_nearly_all_0_are_not_cut_off_to_nothing() -> None:
    rng = np.random.default_rng(0)
    sparse = (usual(300, 0) * (rng.random((300, 64)) < 0.03)).astype(np.float32)
    known = make_ood_detector(sparse)
    assert known is not None
    assert known.limits is not None
    assert known.limits[1] > 0
    assert np.linalg.norm(known.references.astype(np.float32), axis=1).mean() > 0.8


def cosines_of(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """(N, M) in double precision; references are of length 1 already, as far as halves can be."""

    def unit(features: np.ndarray) -> np.ndarray:
        wide = features.astype(float)
        return wide if features.dtype == np.float16 else wide / np.linalg.norm(wide, axis=1, keepdims=True)

    return unit(one) @ unit(two).T


def nearest(cosines: np.ndarray, rank: int) -> np.ndarray:
    """Distance to the neighbour of a rank from 1, of each row; of those there are, where they are fewer."""
    ranked = np.sort(1 - cosines, axis=1)
    return ranked[:, min(rank, ranked.shape[1]) - 1]


def knowing_exactly(references: np.ndarray) -> OodDetector:
    """Without cutting off, so that distances can be compared with plain cosines."""
    halves = (references / np.linalg.norm(references, axis=1, keepdims=True)).astype(np.float16)
    return OodDetector(halves, np.empty(0, np.float32))


@pytest.mark.slow
def test_the_distance_is_that_to_the_fifth_nearest() -> None:
    known, features = knowing_exactly(usual(60, 0)), usual(2300, 1)  # more than are compared at once
    cosines = cosines_of(features, known.references)
    assert known.distances(features) == pytest.approx(nearest(cosines, 5), abs=1e-6)
    assert known.distances(features, rank=1) == pytest.approx(nearest(cosines, 1), abs=1e-6)
    between = 0.75 * nearest(cosines, 2) + 0.25 * nearest(cosines, 3)
    assert known.distances(features, rank=2.25) == pytest.approx(between, abs=1e-6)
    few = knowing_exactly(usual(3, 0))
    assert few.distances(features) == pytest.approx(nearest(cosines_of(features, few.references), 3), abs=1e-6)
    assert known.distances(features[:0]).shape == (0,)
    assert known.similarities(features) == pytest.approx(cosines, abs=1e-6)


def test_a_reference_is_not_a_neighbour_of_itself() -> None:
    features = usual(2300, 0)
    known = knowing_exactly(features[:1200])
    itself = np.where(np.arange(2300) < 1200, np.arange(2300), -1)
    cosines = cosines_of(features, known.references)
    cosines[np.arange(1200), np.arange(1200)] = -np.inf
    for rank in (1, 5):
        assert known.distances(features, parts=(itself, np.arange(1200)), rank=rank) == pytest.approx(
            nearest(cosines, rank), abs=1e-6
        )
    two = knowing_exactly(features[:2])
    alone = two.distances(features[:2], parts=(np.arange(2), np.arange(2)))
    assert alone == pytest.approx(np.repeat(1 - cosines_of(features[:2], two.references)[0, 1], 2), abs=1e-3)


def test_features_are_cut_off_at_their_own_quantiles_and_never_beyond_0() -> None:
    rng = np.random.default_rng(0)
    both = rng.normal(size=(100, 20)).astype(np.float32)
    for features, expected in (
        (both, np.quantile(both, [0.05, 0.95])),
        (np.abs(both), [0, np.quantile(np.abs(both), 0.95)]),
        (-np.abs(both), [np.quantile(-np.abs(both), 0.05), 0]),
        (np.zeros((60, 3), np.float32), [-1, 1]),
    ):
        known = make_ood_detector(features)
        assert known is not None
        assert known.limits == pytest.approx(np.array(expected), abs=1e-6)
    sparse = np.zeros((100, 20), np.float32)
    sparse[:, 0] = np.linspace(-3, 1, 100)
    known = make_ood_detector(sparse)
    assert known is not None
    middle = float(np.median(np.abs(sparse[sparse != 0])))
    assert known.limits == pytest.approx(np.array([-middle, middle]))


def test_what_is_kept_is_bounded_and_has_no_usual_distances_yet() -> None:
    assert (MAX_REFERENCES, MAX_REFERENCES_FINE_TUNED, NUMBERS, MIN_REFERENCES, MIN_INLIERS) == (
        1000,
        500,
        1_500_000,
        50,
        20,
    )
    assert outliers.COMPARED == 20_000
    assert float(outliers.TINY) == pytest.approx(1e-12)
    known = make_ood_detector(usual(MIN_REFERENCES, 0))
    assert known is not None
    assert (known.references.dtype, known.inlier_distances.shape) == (np.float16, (0,))
    distances = np.random.default_rng(0).random(MAX_REFERENCES)
    judges = known.with_inlier_distances(distances)
    assert judges is not None
    assert judges.inlier_distances == pytest.approx(np.sort(distances))
    assert len(judges.inlier_distances) == MAX_REFERENCES


def test_a_fold_compares_at_a_rank_that_suits_its_share_of_the_references() -> None:
    learnt, others = usual(100, 0), usual(80, 1)
    known = make_ood_detector(learnt)
    assert known is not None
    for references, rank in ((100, 5), (250, 2), (200, 2.5), (10_000, 1)):
        found = held_out_distances(learnt, others, references=references)
        own = known.distances(learnt, parts=(np.arange(100), np.arange(100)), rank=rank)
        assert typical_distance(known, learnt, rank=rank) == pytest.approx(np.median(own))
        assert found == pytest.approx(known.distances(others, rank=rank) / np.median(own))
    alike = make_ood_detector(np.ones((60, 4), np.float32))
    assert alike is not None
    assert 0 < typical_distance(alike, np.ones((60, 4), np.float32)) < 1e-3


def strays_by_hand(features: np.ndarray, groups: list[np.ndarray]) -> dict[int, float]:
    far = np.full(len(features), np.nan)
    for own in groups:
        cosines = cosines_of(features[own], features[own])
        np.fill_diagonal(cosines, -np.inf)
        far[own] = nearest(cosines, 5)
    low, middle, high = np.nanquantile(far, [0.25, 0.5, 0.75])
    found = [i for i in range(len(far)) if far[i] > high + outliers.FAR * (high - low)]
    return {i: far[i] / middle for i in sorted(found, key=lambda i: -far[i])}


def test_strays_are_far_from_their_own_class() -> None:
    rng = np.random.default_rng(0)
    features = usual(300, 0)
    strange = rng.choice(300, 9, replace=False)
    features[strange] += rng.normal(size=(9, 64)).astype(np.float32) * rng.uniform(1, 5, (9, 1)).astype(np.float32)
    labels = rng.integers(0, 3, 300)
    labels[:5], labels[5:11] = 3, 4  # a class of five, which is not judged, and one of six, which is
    found = find_outliers(features, labels)
    expected = strays_by_hand(features, [np.flatnonzero(labels == i) for i in (0, 1, 2, 4)])
    assert list(found) == list(expected)
    assert len(found) >= 5
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=1e-4)
    several = np.stack([labels == 0, labels != 0], axis=1).astype(np.int64)
    whole = strays_by_hand(features, [np.arange(300)])
    assert find_outliers(features, several) == pytest.approx(whole, rel=1e-4)
    assert whole != expected


def test_under_fifty_judged_images_have_no_strays() -> None:
    features = usual(50, 0)
    features[7] = -5 * features[7]
    assert 7 in find_outliers(features, np.zeros(50, np.int64))
    assert find_outliers(features[:49], np.zeros(49, np.int64)) == {}
    assert find_outliers(features, np.arange(50) // 5) == {}


def test_of_a_very_large_class_each_image_is_compared_with_some(monkeypatch: pytest.MonkeyPatch) -> None:
    features = usual(200, 0)
    features[[3, 150]] *= -4
    monkeypatch.setattr(outliers, "COMPARED", 200)
    every = find_outliers(features, np.zeros(200, np.int64))
    assert set(every) == {3, 150}
    monkeypatch.setattr(outliers, "COMPARED", 60)
    found = find_outliers(features, np.zeros(200, np.int64))
    known = np.sort(np.random.default_rng(0).choice(200, 60, replace=False))
    cosines = cosines_of(features, features[known])
    cosines[known, np.arange(60)] = -np.inf
    far = nearest(cosines, 5)
    low, middle, high = np.quantile(far, [0.25, 0.5, 0.75])
    expected = {int(i): far[i] / middle for i in np.flatnonzero(far > high + 2 * (high - low))}
    assert found == pytest.approx(expected, rel=1e-4)
    assert {3, 150} <= set(found)


def test_an_image_as_far_as_all_usual_ones_is_usual() -> None:
    distances = np.full(30, 0.7)  # float32 rounds it down
    known = OodDetector(np.ones((60, 3), np.float16), np.empty(0, np.float32)).with_inlier_distances(distances)
    assert known is not None
    assert not conformal_scores(known.inlier_distances, distances).any()
