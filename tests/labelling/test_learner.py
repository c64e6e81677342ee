"""The classifier of a session, its queues, clusters and forecast, on arrays."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from headstart.labelling import learner as learner_module
from headstart.labelling.clusters import Clusters, num_clusters
from headstart.labelling.knowledge import AHEAD, AccuracyPoint, advice, comparable, forecast
from headstart.labelling.learner import (
    Learner,
    Learnt,
    LearnTask,
    PseudoLabelPool,
    extended,
    learn,
    pseudo_labels,
    task_of,
)
from headstart.labelling.learning import _find_mistakes
from headstart.labelling.queues import Candidates, far_from_labels, informative, to_confirm, unchecked
from headstart.labelling.stacks import Stacks
from headstart.labelling.vectors import DIMENSIONS, Projection


def blobs(count: int = 300, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(count, 16) float32 around one centre for each class, and the classes."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=count)
    centres = 3 * rng.normal(size=(classes, 16))
    return (centres[truth] + rng.normal(size=(count, 16))).astype(np.float32), truth


def test_a_fit_gives_probabilities_for_all_images() -> None:
    vectors, truth = blobs()
    found = learn(vectors, LearnTask(np.arange(30), truth[:30], ("a", "b", "c")))
    assert found.probabilities.shape == (300, 3)
    assert np.allclose(found.probabilities.sum(axis=1), 1, atol=1e-5)
    assert (found.probabilities.argmax(axis=1) == truth).mean() > 0.95


def test_a_fit_from_the_one_before_gives_the_same_probabilities() -> None:
    vectors, truth = blobs()
    before = learn(vectors, LearnTask(np.arange(40), truth[:40], ("c", "b", "a")))
    task = LearnTask(np.arange(60), truth[:60], ("a", "b", "c"))
    alone, after = learn(vectors, task), learn(vectors, task, before)
    assert np.allclose(alone.probabilities, after.probabilities, atol=0.02)


def test_several_labels_are_learnt_one_by_one() -> None:
    vectors, truth = blobs()
    labels = np.stack([truth == 0, truth != 2], axis=1).astype(np.int64)
    found = learn(vectors, LearnTask(np.arange(60), labels[:60], ("a", "b")))
    assert ((found.probabilities >= 0.5) == labels).mean() > 0.95


def few_labels() -> tuple[np.ndarray, np.ndarray, LearnTask]:
    """Vectors of four far groups, of which the labels name two; their classes; a pool of all unlabelled images."""
    rng = np.random.default_rng(0)
    truth = np.arange(400) % 4
    vectors = (rng.normal(size=(400, 16)) + 6 * np.eye(16)[truth % 2] + 6 * np.eye(16)[truth]).astype(np.float32)
    labelled = np.flatnonzero(truth < 2)[:12]
    pool = PseudoLabelPool(np.setdiff1d(np.arange(400), labelled), truth)
    return vectors, truth, LearnTask(labelled, truth[labelled], ("a", "b"), pool)


def test_pseudo_labels_are_for_groups_in_which_a_person_gave_that_label() -> None:
    vectors, truth, task = few_labels()
    found = learn(vectors, task)
    images, labels = pseudo_labels(found.label_probabilities, task)
    assert len(images) == found.num_pseudo > 150
    assert set(truth[images].tolist()) == {0, 1}
    assert (labels == truth[images]).all()
    certain = found.label_probabilities[truth >= 2].max(axis=1) > 0.8
    assert certain.mean() > 0.5  # images of the classes without a name would get pseudo-labels but for their group
    assert task.pool is not None
    no_groups = PseudoLabelPool(task.pool.images, np.full(400, -1))
    assert not len(pseudo_labels(found.label_probabilities, replace(task, pool=no_groups))[0])
    one_group = PseudoLabelPool(task.pool.images, np.zeros(400, np.int64))
    images, _ = pseudo_labels(found.label_probabilities, replace(task, pool=one_group))
    assert (truth[images] >= 2).any()


def test_pseudo_labels_change_suggestions_and_not_what_questions_are_chosen_by() -> None:
    vectors, _, task = few_labels()
    found, alone = learn(vectors, task), learn(vectors, replace(task, pool=None))
    assert alone.num_pseudo == 0
    assert (alone.label_probabilities == found.label_probabilities).all()
    assert (alone.probabilities == alone.label_probabilities).all()
    assert not np.allclose(found.probabilities, found.label_probabilities, atol=1e-3)
    assert found.labels == alone.labels == 12


def test_several_labels_get_no_pseudo_labels() -> None:
    vectors, truth, task = few_labels()
    several = np.stack([truth[task.images] == 0, truth[task.images] == 1], axis=1).astype(np.int64)
    assert learn(vectors, replace(task, labels=several)).num_pseudo == 0


def test_an_image_is_asked_for_in_the_largest_group_that_only_the_classifier_knows() -> None:
    vectors, truth, task = few_labels()
    images, probabilities = np.arange(400), learn(vectors, task).label_probabilities
    assert task.pool is not None
    familiar = task.pool.familiar(images, probabilities.argmax(axis=1), task)
    candidates = Candidates(images, ("a", "b"), probabilities)
    found = unchecked(candidates, truth, familiar, 0.8)
    assert found is not None
    assert truth[found] >= 2
    assert unchecked(candidates, truth, np.ones(400, bool), 0.8) is None
    assert unchecked(candidates, np.full(400, -1), familiar, 0.8) is None


def test_the_image_far_from_labels_is_among_many_and_no_single_outlier() -> None:
    vectors = np.zeros((101, 2), np.float32)
    vectors[:, 0] = np.repeat((0, 8), (60, 41)) + np.linspace(0, 1, 101)
    vectors[100] = 0, 30
    assert far_from_labels(np.arange(10, 101), np.arange(10), vectors, 0) in range(60, 100)
    assert far_from_labels(np.arange(0), np.arange(10), vectors, 0) is None


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_result_is_extended_by_images_that_are_added(multi_label: bool) -> None:
    vectors, truth = blobs()
    labels = np.eye(3, dtype=np.int64)[truth[:30]] if multi_label else truth[:30]
    task = LearnTask(np.arange(30), labels, ("a", "b", "c"))
    whole, part = learn(vectors, task), learn(vectors[:200], task)
    assert extended(whole, vectors) is whole
    found = extended(part, vectors)
    assert np.allclose(found.probabilities, whole.probabilities, atol=1e-5)
    assert np.allclose(found.label_probabilities, whole.label_probabilities, atol=1e-5)


def test_points_of_the_first_blind_images_are_not_in_the_curve() -> None:
    first, half, most = AccuracyPoint(50, 8, 9), AccuracyPoint(55, 20, 30), AccuracyPoint(60, 36, 53)
    assert comparable([first, half, most]) == [half, most]
    assert comparable([first]) == [first]
    assert comparable([]) == []


FIRST_FIT = """
import sys
import numpy as np
from headstart.labelling.learner import Learner, LearnTask
rng = np.random.default_rng(0)
learner = Learner(rng.normal(size=(60, 8)).astype(np.float32), lambda found: None)
before = set(sys.modules)
learner.submit(LearnTask(np.arange(40), np.arange(40) % 4, tuple("abcd")))
assert learner.wait(60) and learner._version == 1
learner.close()
print(sorted(set(sys.modules) - before))
"""


@pytest.mark.slow
def test_the_first_fit_imports_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_FIT], capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_while_a_fit_runs_only_the_newest_task_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, truth = blobs()
    started, may_end, real = threading.Event(), threading.Event(), learn
    fitted: list[int] = []

    def slow(vectors: np.ndarray, task: LearnTask, _start: Learnt | None = None) -> Learnt:
        fitted.append(len(task.images))
        if len(task.images) == 10:
            started.set()
            may_end.wait(60)
        return real(vectors, task)

    monkeypatch.setattr(learner_module, "learn", slow)
    published: list[Learnt] = []
    learner = Learner(vectors, published.append)
    learner.submit(LearnTask(np.arange(10), truth[:10], ("a", "b", "c")))
    assert started.wait(60)
    for count in (20, 30, 40):
        learner.submit(LearnTask(np.arange(count), truth[:count], ("a", "b", "c")))
    assert learner.is_busy
    may_end.set()
    assert learner.wait(60)
    learner.close()
    assert fitted[1:] == [10, 40]  # the first fit warms up
    assert [(one.labels, one.version) for one in published] == [(10, 1), (40, 2)]


def test_one_class_is_not_learnt() -> None:
    published: list[Learnt] = []
    learner = Learner(blobs()[0], published.append)
    learner.submit(task_of([(0, ["a"]), (1, ["a"])], ["a", "b"], multi_label=False))
    assert learner.wait(60)
    learner.close()
    assert published == []


def test_questions_are_uncertain_and_differ() -> None:
    vectors = np.tile(np.eye(8, dtype=np.float32), (25, 1)) * 5
    chances = np.full((200, 2), (0.95, 0.05), np.float32)
    chances[np.arange(200) % 8 < 4] = 0.5, 0.5  # the images of four of the eight groups are uncertain
    asked = informative(Candidates(np.arange(200), ("a", "b"), chances), vectors, 4)
    assert sorted(image % 8 for image in asked) == [0, 1, 2, 3]


def test_a_page_has_one_class_most_certain_first() -> None:
    vectors, truth = blobs()
    found = learn(vectors, LearnTask(np.arange(60), truth[:60], ("a", "b", "c")))
    candidates = Candidates(np.arange(300), ("a", "b", "c"), found.probabilities)
    label, total, page = to_confirm(candidates, vectors, None, 20)
    assert label is not None
    own = found.probabilities[:, ("a", "b", "c").index(label)]
    assert total == int((found.probabilities.argmax(axis=1) == ("a", "b", "c").index(label)).sum())
    assert sorted(page) == sorted(np.argsort(-own, kind="stable")[:20].tolist())
    assert to_confirm(Candidates(np.arange(0), (), np.zeros((0, 0), np.float32)), vectors, None, 9) == (None, 0, [])


def test_clusters_find_the_groups_and_stand_for_them_in_turn() -> None:
    vectors, truth = blobs(400, 4)
    clusters = Clusters.of_vectors(vectors, np.arange(400), 0)
    assert len(clusters.members) == num_clusters(400) == 13
    assert sum(map(len, clusters.members)) == 400
    assert np.mean([np.bincount(truth[c]).max() / len(c) for c in clusters.members]) > 0.95
    is_open = np.ones(400, bool)
    first = clusters.in_turn(is_open, 13)
    assert len(set(clusters.cluster_of(400)[first])) == 13
    is_open[first] = False
    assert not set(first) & set(clusters.in_turn(is_open, 50))
    answered = np.zeros(400, bool)
    answered[first[:9]] = True
    is_open[:] = ~answered
    others = clusters.in_turn(is_open, 4, answered)  # the four clusters without an answer
    assert not set(clusters.cluster_of(400)[others]) & set(clusters.cluster_of(400)[first[:9]])


def test_a_stack_has_near_copies_of_its_first_image_only() -> None:
    from headstart.data.duplicates import DuplicatePair

    pairs = [DuplicatePair(0, 1, False), DuplicatePair(1, 2, False), DuplicatePair(2, 3, False)]
    stacks = Stacks.of_pairs(5, pairs)
    assert (stacks.first.tolist(), stacks.others) == ([0, 0, 2, 2, 4], {0: [1], 2: [3]})
    assert (stacks.members(3), stacks.size(4), stacks.is_first(1), stacks.members(9)) == ([2, 3], 1, False, [9])


def test_vectors_have_few_components_and_keep_distances() -> None:
    rng = np.random.default_rng(0)
    features = np.abs(rng.normal(size=(50, 300))).astype(np.float32)
    projection = Projection.of_features(features)
    vectors = projection.vectors(features)
    assert vectors.shape == (50, DIMENSIONS)
    whole = Projection(projection.mean, None).vectors(features)
    assert np.allclose(np.linalg.norm(vectors[0] - vectors[1]), np.linalg.norm(whole[0] - whole[1]), rtol=1e-3)


def law(labels: list[int], count: int = 150, slope: float = -0.5) -> list[AccuracyPoint]:
    return [AccuracyPoint(n, round(count * (1 - 1.5 * n**slope)), count) for n in labels]


def test_the_forecast_follows_a_power_law_and_says_nothing_with_too_few_points() -> None:
    points = law([20, 40, 80, 160, 320])
    found = forecast(points)
    assert found is not None
    expected = 1 - 1.5 * 370**-0.5
    assert abs(found.accuracy - expected) < 0.01
    assert found.low <= found.gain <= found.high
    assert found.labels == 320 + AHEAD
    assert forecast(points[:3]) is None
    assert forecast(law([100, 110, 120, 130])) is None


def test_the_forecasts_of_noisy_curves_contain_the_true_gain() -> None:
    inside = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        share = {n: 1 - 1.5 * n**-0.5 for n in range(20, 321, 20)}
        points = [AccuracyPoint(n, int(rng.binomial(150, p)), 150) for n, p in share.items()]
        found = forecast(points)
        assert found is not None
        inside += found.low <= 1.5 * (320**-0.5 - 370**-0.5) <= found.high
    assert inside >= 34


def test_the_words_say_when_to_stop() -> None:
    flat = forecast(law([20, 40, 80, 160, 1600], slope=-1.0))
    steep = forecast(law([20, 40, 80, 100]))
    assert "stop here, and train" in advice(150, 150, flat, 100)
    assert "go on" in advice(150, 150, steep, 100)
    assert steep is not None
    assert f"from {100 * (steep.accuracy - steep.gain):.1f}" in advice(150, 150, steep, 100)
    assert "unknown yet" in advice(150, 150, None, 100)
    assert advice(100, 150, steep, 100).startswith("Label 50 more of the test sample first")
    assert advice(150, 150, steep, 0) == "All images are labelled: train."


def test_planted_wrong_labels_are_offered_first_for_a_second_look() -> None:
    """The vectors are principal components: the last ones are noise, and would drown the others if standardised."""
    rng = np.random.default_rng(0)
    truth = np.arange(150) % 5
    vectors = rng.normal(size=(150, 200)).astype(np.float32) * np.geomspace(1, 0.05, 200, dtype=np.float32)
    vectors[:, :5] += 8 * np.eye(5, dtype=np.float32)[truth]
    labels, wrong = truth.copy(), [3, 47, 90, 141]
    labels[wrong] = (truth[wrong] + 1) % 5
    found = _find_mistakes(vectors, LearnTask(np.arange(150), labels, tuple("abcde")))
    assert {one.image for one in found[:4]} == set(wrong)
    assert all(one.label == "abcde"[truth[one.image]] for one in found[:4])
    assert len(found) <= 15
