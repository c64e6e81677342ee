"""Multi-label classification: one model for the labels of five data sets."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from photographs import Timed, photographs

pytestmark = [pytest.mark.untimed, pytest.mark.share]

GENERAL = {
    "flowers": ["flower"],
    "cats_dogs": ["animal"],
    "hymenoptera": ["animal", "insect"],
    "urban_rural": ["place"],
}
"""Data set -> what all of its images show, beside the name of their folder."""


def write_table(file: Path) -> None:
    rows = [
        (image, "|".join([*labels, kind.name]), split)
        for name, labels in GENERAL.items()
        for split in ("train", "val")
        for kind in sorted((photographs(name) / split).iterdir())
        for image in sorted(kind.iterdir())
    ]
    with open(file, "w", newline="") as lines:
        csv.writer(lines).writerows([("path", "labels", "split"), *rows])


def test_general_and_specific_labels_are_predicted_together(command: Callable[..., Timed], tmp_path: Path) -> None:
    write_table(tmp_path / "all.csv")
    done = command("train", tmp_path / "all.csv", "--effort", "probe", "--out", tmp_path / "run", "--json")
    assert done.status == 0, done.err
    assert "15 labels, 2.1 per image on average" in done.err
    val = json.loads(done.out)["scores"]["val"]
    assert val["count"] == 1023
    assert val["mean_average_precision"] > 0.95
    by_name = {c["label"]: c for c in val["classes"]}
    assert all(by_name[name]["average_precision"] > 0.99 for name in ("flower", "animal"))
    assert by_name["insect"]["recall"] > 0.9
    rose = next((photographs("flowers") / "val" / "roses").iterdir())
    told = json.loads(command("predict", tmp_path / "run", rose, "--json").out)[0]["labels"]
    assert told[0]["label"] == "flower"
    assert all(pair["label"] not in ("animal", "place") for pair in told)
