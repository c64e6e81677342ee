from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, classification_report, f1_score, log_loss

from headstart.evaluation.metrics import (
    LabelScores,
    Scores,
    _average_precisions,
    class_figures,
    score,
    score_labels,
    scores_from_json,
    share_words,
    wilson,
)
from headstart.evaluation.predictions import evaluate_predictions, predictions_csv


def some_predictions(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count)
    odds = rng.random((count, 4)) + 1.5 * np.eye(4)[labels]
    return odds / odds.sum(1, keepdims=True), labels


def test_18_of_20_is_90_percent_70_to_97() -> None:
    """Law 13."""
    low, high = wilson(18, 20)
    assert (round(low, 2), round(high, 2)) == (0.70, 0.97)
    assert wilson(20, 20)[1] == 1
    assert wilson(0, 5)[0] == 0


def test_every_figure_equals_scikit_learns() -> None:
    probabilities, labels = some_predictions()
    scores = score(probabilities, labels, ["a", "b", "c", "never"], name="val")
    given = probabilities.argmax(1)
    report = classification_report(labels, given, labels=range(4), output_dict=True, zero_division=0)
    assert scores.correct == (given == labels).sum()
    assert scores.accuracy == scores.correct / 200
    assert scores.macro_f1 == pytest.approx(f1_score(labels, given, labels=range(3), average="macro"))
    assert scores.log_loss == pytest.approx(log_loss(labels, probabilities, labels=range(4)))
    for i, row in enumerate(scores.classes):
        assert (row.precision, row.recall, row.f1) == pytest.approx(
            tuple(report[str(i)][k] for k in ("precision", "recall", "f1-score"))
        )
        assert row.support == report[str(i)]["support"]
    assert np.sum(scores.confusion) == 200
    assert scores.sentence.startswith(f"val: {scores.correct} of 200 right, ")
    assert "95 % interval" in scores.sentence


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


def test_scores_survive_json() -> None:
    scores = score(*some_predictions(), ["a", "b", "c", "d"], name="val")
    assert Scores.from_json(json.loads(json.dumps(scores.as_json()))) == scores


def test_no_images_are_no_score() -> None:
    with pytest.raises(ValueError, match="no images"):
        score(np.zeros((0, 2)), np.zeros(0, np.int64), ["a", "b"], name="val")


def test_every_prediction_carries_its_path_and_mistakes_come_surest_first() -> None:
    probabilities, labels = some_predictions(50)
    part = evaluate_predictions("val", [f"p{i}, x" for i in range(50)], labels, probabilities, ("a", "b", "c", "d"))
    lines = predictions_csv([part]).splitlines()
    assert lines[0] == "path,split,label,predicted,probability,outlier,p:a,p:b,p:c,p:d"
    assert lines[8].startswith('"p7, x",val,')
    assert [float(v) for v in lines[8].split(",")[-4:]] == probabilities[7].tolist()
    wrong = part.mistakes()
    sure = [probabilities[i].max() for i in wrong]
    assert sure == sorted(sure, reverse=True)
    assert len(wrong) == part.scores.count - part.scores.correct


def some_labels(count: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of four labels, the last of which no image bears, with ties; the labels; and those given."""
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
    bare = score_labels(chances, 0 * labels, labels, ["x"], thresholds=[0.5], name="val")
    assert (bare.mean_average_precision, bare.macro_f1, bare.correct, bare.classes[0].precision) == (0, 0, 1, 0)
