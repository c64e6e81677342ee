from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import classification_report, f1_score, log_loss

from headstart.evaluation.metrics import Scores, score, wilson
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
    assert lines[0] == "path,split,label,predicted,probability,p:a,p:b,p:c,p:d"
    assert lines[8].startswith('"p7, x",val,')
    assert [float(v) for v in lines[8].split(",")[-4:]] == probabilities[7].tolist()
    wrong = part.mistakes()
    sure = [probabilities[i].max() for i in wrong]
    assert sure == sorted(sure, reverse=True)
    assert len(wrong) == part.scores.count - part.scores.correct
