"""Groups: a run keeps them together wherever images are left out, and scores them one by one."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import main
from random_images import write_grouped_table

import headstart as hs
from headstart.pipeline import evaluate, fit
from headstart.training.fit_head import HeadData
from headstart.training.losses import learnable_folds
from headstart.trust.ood import OodDetector

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_networks")]


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, hs.Run]:
    """A table with groups, and a run on it."""
    folder = tmp_path_factory.mktemp("grouped")
    table = write_grouped_table(folder)
    return folder, hs.train(table, out=folder / "run", image_size=64, val=0.35, test=0.3, seed=1)


def test_a_run_on_a_table_with_groups_scores_them_and_keeps_them(
    grouped: tuple[Path, hs.Run], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = grouped
    with open(run.folder / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val"]
    expected = {
        group: [r["label"] == r["predicted"] for r in rows if r["group"] == group]
        for group in {r["group"] for r in rows}
    }
    assert expected
    report = run.report_path.read_text()
    assert "Accuracy by group, lowest first" in report
    for group, right in expected.items():
        assert f'data-figure="val|group|{group}">{100 * np.mean(right):.1f} %' in report
    document = json.loads(main("evaluate", run.folder, "--json", capsys=capsys)[1])
    assert {g["group"]: (g["correct"], g["count"]) for g in document["val"]["groups"]} == {
        group: (sum(right), len(right)) for group, right in expected.items()
    }
    out = main("evaluate", run.folder, folder / "t.csv", capsys=capsys)[1]
    assert "all: group" in out
    assert "site 3" in out


@pytest.mark.parametrize("recipe", [{}, {"unfreeze": "blocks.6", "epochs": 1, "views": 1}])
def test_cross_validation_tears_no_group_apart(
    grouped: tuple[Path, hs.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any]
) -> None:
    folder, seen = grouped[0], []
    monkeypatch.setattr(
        evaluate,
        "learnable_folds",
        lambda *args, **told: seen.append(told["together"]) or learnable_folds(*args, **told),
    )
    hs.train(folder / "t.csv", out=tmp_path / "run", image_size=64, val=0.35, test=0.3, seed=1, **recipe)
    assert len(seen) == 1
    assert 1 <= len(set(seen[0].tolist())) <= 7


def test_no_step_of_a_run_divides_a_group(
    grouped: tuple[Path, hs.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 7 groups in all: every step that leaves images out is given the groups of those that it judges."""
    seen: dict[str, int] = {}
    places = {"fit_classifier": fit, "inspect_features": fit, "calibrate": evaluate, "cross_fitted_scores": evaluate}
    steps = {name: getattr(place, name) for name, place in places.items()}
    for name, place in places.items():

        def noted(*args: Any, step: str = name, **given: Any) -> Any:
            data = next((arg for arg in args if isinstance(arg, HeadData)), None)
            seen[step] = len(set((given["together"] if data is None else data.together).tolist()))
            return steps[step](*args, **given)

        monkeypatch.setattr(place, name, noted)
    apart = []
    distances = OodDetector.distances
    monkeypatch.setattr(
        OodDetector,
        "distances",
        lambda self, x, *, parts=None, **more: apart.append(parts) or distances(self, x, parts=parts, **more),
    )
    hs.train(grouped[0] / "t.csv", out=tmp_path / "run", image_size=64, val=0.35, test=0.3, seed=1)
    assert set(seen) == set(steps)
    assert all(1 <= count <= 7 for count in seen.values()), seen
    ((own, references),) = [parts for parts in apart if parts is not None]
    assert len(set(own.tolist()) | set(references.tolist())) <= 7
