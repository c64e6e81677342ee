"""What a model of flowers says of its own answers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from photographs import Timed, photographs

import headstart as hs
from headstart.evaluation.reliability import reliability
from headstart.model import NONE_OF_THESE
from headstart.training.calibration import by_others


@pytest.fixture(scope="module")
def run(command: Callable[..., Timed], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust") / "run"
    done = command("train", photographs("flowers"), "--out", folder)
    assert done.status == 0, done.err
    assert "Calibrated on 550 validation images" in done.err
    return folder


def test_the_calibration_error_is_under_4_points(run: Path) -> None:
    with open(run / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    classes = hs.load(run).classes
    logits = np.log([[float(row[f"p:{name}"]) for name in classes] for row in rows])
    labels = np.array([classes.index(row["label"]) for row in rows])
    crossed = by_others(logits, labels)  # no image is judged by a temperature that it took part in
    found = reliability("", crossed.max(1), crossed.argmax(1) == labels).error
    assert found < 0.04
    written = json.loads((run / "run.json").read_text())["calibration"]["reliability"]
    assert found == pytest.approx(next(r["error"] for r in written if r["name"] == "val, after"), abs=1e-4)


def test_hot_dogs_are_none_of_these_and_flowers_are_kept(run: Path) -> None:
    model = hs.load(run)
    hot_dogs = sorted((photographs("hotdog") / "hot_dog").iterdir())[:200]
    refused = sum(p.answer == NONE_OF_THESE for p in model.predict(hot_dogs))
    assert refused >= 0.85 * 200
    with open(run / "predictions.csv", newline="") as file:
        kept = [float(row["outlier"]) <= 0.95 for row in csv.DictReader(file)]
    assert np.mean(kept) >= 0.95
