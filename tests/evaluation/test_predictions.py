from __future__ import annotations

from random_predictions import random_predictions

from headstart.evaluation.predictions import evaluate_predictions, predictions_csv


def test_every_prediction_has_its_path_and_mistakes_are_most_confident_first() -> None:
    probabilities, labels = random_predictions(50)
    part = evaluate_predictions("val", [f"p{i}, x" for i in range(50)], labels, probabilities, ("a", "b", "c", "d"))
    lines = predictions_csv([part]).splitlines()
    assert lines[0] == "path,split,label,predicted,probability,outlier,p:a,p:b,p:c,p:d"
    assert lines[8].startswith('"p7, x",val,')
    assert [float(v) for v in lines[8].split(",")[-4:]] == probabilities[7].tolist()
    wrong = part.mistakes()
    sure = [probabilities[i].max() for i in wrong]
    assert sure == sorted(sure, reverse=True)
    assert len(wrong) == part.scores.count - part.scores.correct
