"""Calibration and out-of-distribution detection of a model of flowers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from photographs import photographs

import headstart as hs
from headstart.evaluation.metrics import wilson
from headstart.evaluation.reliability import reliability
from headstart.prediction import NONE_OF_THESE
from headstart.trust.calibration import cross_fitted_probabilities

pytestmark = pytest.mark.untimed


def test_the_calibration_error_is_under_4_points(flowers_run: Path) -> None:
    with open(flowers_run / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    classes = hs.load(flowers_run).classes
    logits = np.log([[float(row[f"p:{name}"]) for name in classes] for row in rows])
    labels = np.array([classes.index(row["label"]) for row in rows])
    crossed = cross_fitted_probabilities(logits, labels)  # no image is judged by a temperature that it took part in
    found = reliability("", crossed.max(1), crossed.argmax(1) == labels).error
    assert found < 0.04
    written = json.loads((flowers_run / "run.json").read_text())["calibration"]["reliability"]
    assert found == pytest.approx(next(r["error"] for r in written if r["name"] == "val, after"), abs=1e-4)


def test_hot_dogs_are_none_of_these_and_flowers_are_kept(flowers_run: Path) -> None:
    model = hs.load(flowers_run)
    hot_dogs = sorted((photographs("hotdog") / "hot_dog").iterdir())[:200]
    refused = sum(p.answer == NONE_OF_THESE for p in model.predict(hot_dogs))
    assert refused >= 0.85 * 200
    flowers = sorted((photographs("flowers") / "val").glob("*/*"))
    assert np.mean([p.answer != NONE_OF_THESE for p in model.predict(flowers)]) >= 0.95
    with open(flowers_run / "predictions.csv", newline="") as file:  # each fifth judged by the distances of the others
        kept = sum(float(row["outlier"]) <= 0.95 for row in csv.DictReader(file))
    low, high = wilson(kept, len(flowers))
    assert low <= 0.95 <= high
