from __future__ import annotations

import json

import numpy as np
import pytest
from random_predictions import random_predictions
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    classification_report,
    confusion_matrix,
    f1_score,
    log_loss,
)

from headstart.evaluation import metrics
from headstart.evaluation.metrics import (
    GroupScore,
    LabelScores,
    Scores,
    _average_precisions,
    class_figures,
    score,
    score_groups,
    score_labels,
    scores_from_json,
    share_words,
    shown_first,
    wilson,
)


def test_18_of_20_is_90_percent_70_to_97() -> None:
    """Law 13."""
    low, high = wilson(18, 20)
    assert (round(low, 2), round(high, 2)) == (0.70, 0.97)
    assert wilson(20, 20)[1] == 1
    assert wilson(0, 5)[0] == 0


def test_every_figure_equals_scikit_learns() -> None:
    probabilities, labels = random_predictions()
    scores = score(probabilities, labels, ["a", "b", "c", "never"], name="val")
    given = probabilities.argmax(1)
    report = classification_report(labels, given, labels=range(4), output_dict=True, zero_division=0)
    assert scores.correct == (given == labels).sum()
    assert scores.accuracy == scores.correct / 200
    assert scores.macro_f1 == pytest.approx(f1_score(labels, given, labels=range(3), average="macro"))
    assert scores.log_loss == pytest.approx(log_loss(labels, probabilities, labels=range(4)))
    for i, row in enumerate(scores.classes):
        assert (row.precision, row.recall, row.f1) == tuple(
            report[str(i)][k] for k in ("precision", "recall", "f1-score")
        )
        assert row.support == report[str(i)]["support"]
    assert np.array_equal(scores.confusion, confusion_matrix(labels, given, labels=range(4)))
    assert f"({scores.correct}/200), 95 % CI " in scores.sentence


def test_a_figure_of_nothing_is_no_zero() -> None:
    probabilities, labels = np.eye(3)[[0, 0, 0]] * 0.9 + 0.01, np.array([0, 0, 1])
    right, wrong, absent = class_figures(score(probabilities, labels, ["a", "b", "c"], name="test"))
    assert (right.precision, right.recall) == (pytest.approx(2 / 3), 1.0)
    assert (wrong.precision, wrong.recall, wrong.f1, wrong.support) == (None, 0.0, 0.0, 1)  # nothing was given "b"
    assert (absent.precision, absent.recall, absent.f1, absent.support) == (None, None, None, 0)
    given = np.array([[1, 0, 0], [1, 0, 1]])
    bears = np.array([[1, 1, 0], [1, 1, 0]])
    scores = score_labels(probabilities[:2], bears, given, ["a", "b", "c"], thresholds=[0.5] * 3, name="test")
    assert [own.precision for own in class_figures(scores)] == [1.0, None, None]
    assert LabelScores.from_json(json.loads(json.dumps(scores.as_json()))) == scores
    older = {name: value for name, value in scores.as_json().items() if name != "unpredicted"}
    assert LabelScores.from_json(older).unpredicted == ()
    assert (share_words(None), share_words(0.973)) == ("-", "97.3 %")


def test_scores_in_words() -> None:
    labels = np.repeat([0, 1], [1500, 500])
    probabilities = np.eye(2)[np.r_[labels[:1900], 1 - labels[1900:]]]
    scores = score(probabilities, labels, ["a", "b"], name="val")
    assert str(scores) == "accuracy 0.950 (0.940-0.959), n=2000"
    assert scores.sentence == "val accuracy 95.0 % (1,900/2,000), 95 % CI 94.0-95.9"
    several = np.stack([labels, 1 - labels], axis=1)
    given = np.where(np.arange(2000)[:, None] < 1900, several, 1 - several)
    found = score_labels(given * 0.8 + 0.1, several, given, ["a", "b"], thresholds=[0.5, 0.5], name="val")
    first, low, high = (found.mean_average_precision, found.map_low, found.map_high)
    assert 0.7 < low < first < high < 1
    assert str(found) == f"mAP {first:.3f} ({low:.3f}-{high:.3f}), n=2000"
    first, low, high = (100 * own for own in (first, low, high))
    assert found.sentence == (
        f"val mAP {first:.1f} %, 95 % CI {low:.1f}-{high:.1f}; "
        "all labels correct 95.0 % (1,900/2,000), 95 % CI 94.0-95.9"
    )


def test_a_score_of_certain_answers_is_finite_and_of_the_classes_that_are_there() -> None:
    """A right answer that was given no probability costs what one in 10^12 would."""
    scores = score(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]), ["a", "b"], name="val")
    assert scores.log_loss == pytest.approx(-np.log(1e-12) / 2)
    assert scores.macro_f1 == pytest.approx((2 / 3 + 0) / 2)
    assert score(np.eye(3)[[0]], np.array([0]), "abc", name="val").macro_f1 == 1
    assert score(np.eye(2), np.array([0, 1]), "ab", name="val").log_loss == 0
    sure = np.array([[1.0, 1.0]])
    one = np.array([[1, 0]])
    found = score_labels(sure, one, one, "ab", thresholds=[0.5, 0.5], name="val")
    assert found.log_loss == pytest.approx(-np.log(1e-12))


def test_groups_come_worst_first_each_with_its_interval() -> None:
    groups = ["b", "a", "b", "", "a", "b"]
    right = np.array([True, True, False, False, True, False])
    assert score_groups(groups, right) == (
        GroupScore("", 0, 1, *wilson(0, 1)),
        GroupScore("b", 1, 3, *wilson(1, 3)),
        GroupScore("a", 2, 2, *wilson(2, 2)),
    )
    many = score_groups([*"aaa", *"b" * 10], np.array([True, False, False, *[True] * 3, *[False] * 7]))
    assert [(own.group, own.correct, own.count) for own in many] == [("b", 3, 10), ("a", 1, 3)]
    assert [own.group for own in score_groups(["z", "y", "x"], np.array([True, True, True]))] == ["x", "y", "z"]


def test_the_score_shown_first_is_cross_validated_then_test_then_val() -> None:
    made = {name: score(np.eye(2), np.array([0, 1]), "ab", name=name) for name in ("val", "test", "cross-validation")}
    assert shown_first(made).name == "cross-validation"
    assert shown_first({"val": made["val"], "test": made["test"]}).name == "test"
    assert shown_first({"other": made["test"], "val": made["val"]}).name == "val"


def test_scores_survive_json() -> None:
    scores = score(*random_predictions(), ["a", "b", "c", "d"], name="val")
    assert Scores.from_json(json.loads(json.dumps(scores.as_json()))) == scores


def test_no_images_are_no_score() -> None:
    with pytest.raises(ValueError, match="no images"):
        score(np.zeros((0, 2)), np.zeros(0, np.int64), ["a", "b"], name="val")


def some_labels(count: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of four labels with ties, the last one without images; true labels; predicted labels."""
    rng = np.random.default_rng(0)
    chances = np.round(rng.beta(0.7, [0.7, 1.5, 6.0, 9.0], size=(count, 4)), 2)
    labels = (rng.random((count, 4)) < chances * [1, 1, 1, 0]).astype(np.int64)
    return chances, labels, (chances >= [0.5, 0.4, 0.2, 0.3]).astype(np.int64)


def test_every_figure_of_several_labels_equals_scikit_learns() -> None:
    chances, labels, given = some_labels()
    scores = score_labels(chances, labels, given, "abcd", thresholds=[0.5, 0.4, 0.2, 0.3], name="val")
    report = classification_report(labels, given, target_names=list("abcd"), output_dict=True, zero_division=0)
    for c in scores.classes:
        own = report[c.label]
        assert (c.precision, c.recall, c.f1) == pytest.approx((own["precision"], own["recall"], own["f1-score"]))
        assert c.support == own["support"]
    assert scores.micro_f1 == pytest.approx(f1_score(labels, given, average="micro"))
    assert scores.macro_f1 == pytest.approx(f1_score(labels[:, :3], given[:, :3], average="macro"))
    assert scores.mean_average_precision == pytest.approx(average_precision_score(labels[:, :3], chances[:, :3]))
    assert scores.accuracy == pytest.approx(accuracy_score(labels, given))
    assert (scores.low, scores.high) == wilson(scores.correct, 300)
    binary = [log_loss(labels[:, i], chances[:, i].clip(1e-12, 1 - 1e-12), labels=[0, 1]) for i in range(4)]
    assert scores.log_loss == pytest.approx(sum(binary))
    assert scores_from_json(json.loads(json.dumps(scores.as_json()))) == scores


def test_resampled_precisions_are_scikit_learns_with_whole_weights() -> None:
    chances, labels, _ = some_labels(60)
    weights = np.random.default_rng(7).integers(0, 3, (6, 60))
    weights[0, labels[:, 2] > 0] = 0  # no image of that label is drawn
    for i in range(3):
        found = _average_precisions(chances[:, i], labels[:, i], weights)
        for own, precision in zip(weights, found, strict=True):
            if not own[labels[:, i] > 0].any():
                assert np.isnan(precision)
            else:
                assert precision == pytest.approx(
                    average_precision_score(labels[:, i], chances[:, i], sample_weight=own)
                )


@pytest.mark.slow
def test_the_interval_of_map_is_that_of_a_thousand_draws_however_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    chances, labels, given = some_labels(40)
    labels[:, 2] = np.arange(40) == 7  # not in every draw
    own = [score_labels(chances, labels, given, "abcd", thresholds=[0.5] * 4, name="val")]
    draws = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=1000)
    each = []
    for weights in draws:
        there = [i for i in range(3) if weights[labels[:, i] > 0].any()]
        each.append(np.mean([_average_precisions(chances[:, i], labels[:, i], weights[None])[0] for i in there]))
    assert (own[0].map_low, own[0].map_high) == pytest.approx((np.quantile(each, 0.025), np.quantile(each, 0.975)))
    for at_once in (1, 40 * 300, 40 * 1000):
        monkeypatch.setattr(metrics, "AT_ONCE", at_once)
        own.append(score_labels(chances, labels, given, "abcd", thresholds=[0.5] * 4, name="val"))
    assert all((found.map_low, found.map_high) == pytest.approx((own[0].map_low, own[0].map_high)) for found in own)


def test_no_labels_on_no_images_are_no_score() -> None:
    with pytest.raises(ValueError, match="val: no images"):
        score_labels(np.zeros((0, 2)), *[np.zeros((0, 2), np.int64)] * 2, "ab", thresholds=[0.5, 0.5], name="val")


def test_a_label_that_was_given_or_borne_once_counts_once() -> None:
    """So do those that were never given, or never borne."""
    labels, given = np.array([[1, 0, 1, 0], [0, 0, 0, 0]]), np.array([[1, 1, 0, 0], [0, 0, 0, 0]])
    found = score_labels(given * 0.5, labels, given, "abcd", thresholds=[0.5] * 4, name="val")
    figures = [(c.precision, c.recall, c.f1, c.support, c.average_precision) for c in found.classes]
    assert figures == [(1, 1, 1, 1, 1), (0, 0, 0, 0, 0), (0, 0, 0, 1, 0.5), (0, 0, 0, 0, 0)]
    assert found.micro_f1 == pytest.approx(2 * 1 / (2 + 2))
    once = np.array([[1, 0]])
    assert score_labels(once * 0.5, once, 0 * once, "ab", thresholds=[0.5] * 2, name="val").micro_f1 == 0
    none = score_labels(once * 0.5, 0 * once, 0 * once, "ab", thresholds=[0.5] * 2, name="val")
    assert (none.micro_f1, none.map_low, none.map_high) == (0, 0, 0)


@pytest.mark.exhaustive
def test_the_interval_of_map_is_that_of_scikit_learns_on_resampled_images() -> None:
    chances, labels, given = some_labels(120)
    scores = score_labels(chances, labels, given, "abcd", thresholds=[0.5] * 4, name="val")
    rng = np.random.default_rng(7)
    drawn = []
    for _ in range(400):
        own = rng.integers(0, 120, 120)
        there = [i for i in range(3) if labels[own, i].any()]
        drawn.append(np.mean([average_precision_score(labels[own, i], chances[own, i]) for i in there]))
    assert scores.map_low == pytest.approx(np.quantile(drawn, 0.025), abs=0.02)
    assert scores.map_high == pytest.approx(np.quantile(drawn, 0.975), abs=0.02)
    weights = rng.integers(0, 3, (3, 120))
    for i in range(3):
        alone = [average_precision_score(labels[:, i], chances[:, i], sample_weight=own) for own in weights]
        assert _average_precisions(chances[:, i], labels[:, i], weights) == pytest.approx(alone)


def test_one_label_on_few_images_has_figures_too() -> None:
    chances, labels = np.array([[0.9], [0.2]]), np.array([[1], [0]])
    scores = score_labels(chances, labels, labels, ["x"], thresholds=[0.5], name="val")
    assert (scores.mean_average_precision, scores.macro_f1, scores.correct) == (1, 1, 2)
    assert (scores.map_low, scores.map_high) == (1, 1)
    bare = score_labels(chances, 0 * labels, labels, ["x"], thresholds=[0.5], name="val")
    assert (bare.mean_average_precision, bare.macro_f1, bare.correct, bare.classes[0].precision) == (0, 0, 1, 0)
