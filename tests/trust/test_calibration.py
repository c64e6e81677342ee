from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_predictions import random_logits
from scipy.special import expit, softmax
from scipy.stats import binomtest

from headstart.evaluation.predictions import evaluate_predictions
from headstart.evaluation.reliability import reliabilities, reliability, usual_kept
from headstart.reports.calibration_chart import calibration_charts
from headstart.training.losses import folds_of
from headstart.trust.calibration import (
    HIGHEST,
    LEARNT_P,
    LEAST,
    Agreement,
    Calibration,
    agreement,
    calibrate,
    calibrated_scale,
    cross_fitted_probabilities,
    threshold_for_accuracy,
)


@pytest.mark.parametrize("count", [1, 9, 60, 3000])
def test_chance_is_judged_by_the_exact_binomial_test(count: int) -> None:
    for expected in (0.0, 0.2 * count, 0.5 * count, float(count)):
        for correct in {0, 1, count // 3, int(0.55 * count), count - 1, count}:
            tested = binomtest(correct, count, expected / count, alternative="greater")
            assert Agreement(correct, expected, count).learnt == (tested.pvalue < LEARNT_P), (expected, correct)


@pytest.mark.parametrize("sharper", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_what_made_the_model_too_sure_or_too_modest(sharper: float) -> None:
    logits, labels = random_logits(3000, sharper)
    found = calibrate(logits, labels, target_accuracy=0.9)
    assert found.temperature == pytest.approx(sharper, rel=0.1)
    assert found.images == 3000
    others, truth = random_logits(20_000, sharper, seed=1)
    chances = softmax(others / found.temperature, axis=1)
    error = reliability("x", chances.max(1), chances.argmax(1) == truth).error
    assert error < 0.02
    if sharper != 1:
        plain = softmax(others, axis=1)
        assert reliability("x", plain.max(1), plain.argmax(1) == truth).error > 3 * error


def test_the_temperature_of_several_labels_likewise() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3000, 3)) * 2 - 1
    labels = (rng.random(logits.shape) < expit(logits)).astype(np.int64)
    found = calibrate(3 * logits, labels, target_accuracy=0.9)
    assert found.temperature == pytest.approx(3, rel=0.1)
    assert (found.target_accuracy, found.threshold) == (0, 0)  # each label has a separate threshold


def test_no_number_of_right_answers_makes_it_certain() -> None:
    logits = np.eye(3)[np.arange(99) % 3] * 3
    sure = softmax(calibrated_scale(logits, np.arange(99) % 3) * logits, axis=1).max(1)
    assert (sure < 0.999).all()
    assert (sure > 0.9).all()


def test_few_images_calibrate_nothing() -> None:
    logits, labels = random_logits(LEAST - 1)
    found = calibrate(logits, labels, target_accuracy=0.9)
    assert (found.images, found.temperature, found.threshold) == (0, 1, 0)
    assert "there are 49. Add labelled images" in found.sentence
    assert np.allclose(cross_fitted_probabilities(logits, labels), softmax(logits, axis=1))


@pytest.mark.parametrize("classes", [2, 5])
def test_a_classifier_no_better_than_chance_gets_no_temperature_and_is_said_to_have_learnt_nothing(
    classes: int,
) -> None:
    rng = np.random.default_rng(0)
    found = calibrate(rng.normal(size=(200, classes)), rng.integers(0, classes, 200), target_accuracy=0.9)
    assert (found.images, found.temperature) == (0, 1)
    assert "no better than chance" in found.sentence
    several = calibrate(rng.normal(size=(200, classes)), rng.integers(0, 2, (200, classes)), target_accuracy=0.9)
    assert several.images == 0


def test_always_naming_the_common_class_is_nothing_and_finding_the_rare_one_is_something() -> None:
    labels = (np.arange(300) % 20 == 0).astype(np.int64)
    always = agreement(np.tile([1.0, 0.0], (300, 1)), labels)
    assert (always.correct, always.expected, always.learnt) == (285, 285, False)
    found = labels.copy()
    found[labels == 1] = np.arange(15) % 3 > 0  # 10 of 15
    found[1:61:3] = 1  # 20 others: less often right than who always names the common one
    finds = agreement(np.eye(2)[found], labels)
    assert finds.correct < 285
    assert finds.learnt
    assert 0 < finds.kappa < 1


def test_the_temperature_has_bounds() -> None:
    logits, labels = random_logits(400)
    labels[:240] = np.random.default_rng(1).integers(0, 4, 240)  # a weak signal in logits that are far too large
    assert calibrate(1e4 * logits, labels, target_accuracy=0.9).temperature == HIGHEST
    assert calibrate(1e-4 * logits, labels, target_accuracy=0.9).temperature == pytest.approx(1 / HIGHEST)


def test_kept_usual_images_are_reported_with_their_interval_and_a_warning_outside_the_promise() -> None:
    part = evaluate_predictions("test", ["x"] * 200, np.zeros(200, np.int64), np.tile([0.9, 0.1], (200, 1)), ("a", "b"))
    for kept, warned in ((190, False), (160, True), (200, True)):
        scores = np.where(np.arange(200) < kept, 0.5, 0.99)
        (found,) = usual_kept(Calibration(), [replace(part, outliers=scores)])
        assert f"of the test images ({kept}/200), 95 % CI " in found.sentence
        assert bool(found.warning) == warned
    assert usual_kept(Calibration(), [part]) == []
    first = usual_kept(Calibration(num_inliers=245, num_inliers_accepted=233), [part])[0]
    assert (first.kept, first.count) == (233, 245)


def test_each_fifth_is_judged_by_the_temperature_of_the_others() -> None:
    logits, labels = random_logits(200, 3.0)
    found = cross_fitted_probabilities(logits, labels)
    for learn, judge in folds_of(labels, 5, 0):
        scale = calibrated_scale(logits[learn], labels[learn])
        assert np.allclose(found[judge], softmax(scale * logits[judge], axis=1))


def test_cross_fitting_divides_no_group() -> None:
    logits, labels = random_logits(200, 3.0)
    group = np.random.default_rng(0).permutation(np.repeat(np.arange(20), 10))
    found = cross_fitted_probabilities(logits, labels, together=group)
    for learn, judge in folds_of(labels, 5, 0, together=group):
        assert not set(group[learn]) & set(group[judge])
        scale = calibrated_scale(logits[learn], labels[learn])
        assert np.allclose(found[judge], softmax(scale * logits[judge], axis=1))


def test_the_coverage_is_that_of_groups_that_chose_no_threshold() -> None:
    """Groups that are all right or all wrong: what half a group says of its other half is too good."""
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(30), 20)
    right, answer = np.repeat(rng.random(30) < 0.8, 20), rng.integers(0, 2, 600)
    labels = np.where(right, answer, 1 - answer)
    sure = np.repeat(rng.uniform(0.55, 0.99, 30), 20)
    logits = np.log(np.where(answer[:, None] == np.arange(2), sure[:, None], 1 - sure[:, None]))
    apart, torn = (calibrate(logits, labels, target_accuracy=0.9, together=own) for own in (group, None))
    assert apart.threshold == torn.threshold
    assert (apart.coverage, apart.accuracy) != (torn.coverage, torn.accuracy)


def test_the_threshold_is_the_lowest_that_gives_the_wanted_accuracy() -> None:
    best = np.array([0.9, 0.8, 0.7, 0.7, 0.6, 0.5])
    right = np.array([True, True, True, False, True, False])
    assert threshold_for_accuracy(0.5, best, right) == 0  # all answers together are good enough
    assert threshold_for_accuracy(0.8, best, right) == 0.6  # 4 of 5
    assert threshold_for_accuracy(0.9, best, right) == 0.8  # those of 0.7 are answered together or not at all
    assert threshold_for_accuracy(0.9, best, ~right) > 1  # none would do


def test_the_wanted_accuracy_is_reached_on_other_images() -> None:
    logits, labels = random_logits(4000, 2.0)
    found = calibrate(logits, labels, target_accuracy=0.95)
    others, truth = random_logits(20_000, 2.0, seed=1)
    chances = softmax(others / found.temperature, axis=1)
    sure = chances.max(1) >= found.threshold
    assert (chances.argmax(1) == truth)[sure].mean() == pytest.approx(0.95, abs=0.015)
    assert sure.mean() == pytest.approx(found.coverage, abs=0.03)
    assert found.accuracy == pytest.approx(0.95, abs=0.015)


def test_a_threshold_that_is_none_is_said_to_be() -> None:
    words = [Calibration(1, 90, 0.95, own).threshold_sentence for own in (0.0, 1e-5, 0.62, 1.01)]
    assert words == [
        'The answers to all images reach the target accuracy of 95 %, so the model never answers "unsure".',
        'For the target accuracy of 95 %, the model answers "unsure: ask a person" below a probability of 0.1 %.',
        'For the target accuracy of 95 %, the model answers "unsure: ask a person" below a probability of 62.0 %.',
        'No answers, however probable, reach the target accuracy of 95 %, so the model always answers "unsure".',
    ]


def test_a_missed_target_accuracy_is_stated() -> None:
    reached, missed = (Calibration(1, 90, 0.95, 0.6, 0.97, share).sentence for share in (0.951, 0.946))
    assert "missed" not in reached
    assert missed.endswith("with an accuracy of 94.6 %, so the target is missed.")


def test_several_labels_are_answers_each() -> None:
    rng = np.random.default_rng(0)
    chances = rng.random((60, 2))
    labels = (rng.random((60, 2)) < chances).astype(np.int64)
    part = evaluate_predictions("val", ["p"] * 60, labels, chances, ("x", "y"), thresholds=[0.5, 0.5], chose=True)
    before, after = reliabilities(Calibration(2.0, 60), [part])
    assert sum(b.count for b in before.bins) == sum(b.count for b in after.bins) == 120
    assert len(calibration_charts(Calibration(2.0, 60), [before, after], [part])) == 1


def test_probabilities_that_are_as_good_as_certain_are_calibrated_too() -> None:
    """Beyond a logit of 37 a probability is 1 to the last bit; it has no finite logit any more."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 2)) * 30
    labels = (rng.random((200, 2)) < expit(logits / 3)).astype(np.int64)
    assert (expit(logits) == 1).any()
    part = evaluate_predictions(
        "val", ["p"] * 200, labels, expit(logits), ("x", "y"), thresholds=[0.5, 0.5], chose=True
    )
    (alone,) = reliabilities(Calibration(), [part])
    assert alone.name == "val"  # there is no before without an after
    before, after = reliabilities(Calibration(1.0, 200), [part])
    assert after.error < before.error


def test_a_calibration_is_read_from_the_keys_of_earlier_versions() -> None:
    fitted = Calibration(1.5, 100, 0.95, 0.6, 0.9, 0.97, "100 validation images", "", 245, 233)
    document = fitted.as_json()
    old = {"wanted": "target_accuracy", "usual_images": "num_inliers", "usual_kept": "num_inliers_accepted"}
    assert set(old.values()) <= set(document)
    earlier = document | {key: document[name] for key, name in old.items()}
    for name in old.values():
        del earlier[name]
    assert Calibration.from_json(earlier) == Calibration.from_json(document) == fitted
