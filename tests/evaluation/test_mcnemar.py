"""Two models on the same images, groups, and how often test was looked at."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import main
from pictures import COLOURS, mislabel, write_classes

import headstart as hs
from headstart.errors import DataError
from headstart.evaluation.mcnemar import paired
from headstart.evaluation.metrics import score_groups
from headstart.pipeline import evaluate, fit
from headstart.runs.test_audit import AuditEntry, audit_text, read_audit, record_test_score
from headstart.training.losses import learnable_folds
from headstart.trust.ood import OodDetector


def rights(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    one = np.array([True] * both + [True] * first + [False] * second + [False] * neither)
    two = np.array([True] * both + [False] * first + [True] * second + [False] * neither)
    return one, two


def test_the_test_is_mcnemars_exact_one() -> None:
    found = paired("val", *rights(480, 9, 21, 40))
    tail = sum(math.comb(30, k) for k in range(10)) / 2**30
    assert found.p == pytest.approx(2 * tail)
    assert (found.both, found.first, found.second, found.count) == (480, 9, 21, 550)
    assert found.difference == pytest.approx(12 / 550)
    assert found.low < found.difference < found.high
    assert "A right in 489, B in 501 of 550" in found.sentence


def test_equal_models_are_told_to_be_equal() -> None:
    same = paired("val", *rights(90, 0, 0, 10))
    assert same.p == 1
    assert same.low < 0 < same.high
    assert "no more than chance" in same.sentence
    assert paired("val", *rights(50, 0, 20, 0)).p < 1e-4


@pytest.mark.exhaustive
def test_the_interval_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(600):
        kind = rng.choice(4, 200, p=[0.8, 0.05, 0.1, 0.05])
        found = paired("x", np.isin(kind, [0, 1]), np.isin(kind, [0, 2]))
        hits += found.low <= 0.05 <= found.high
    assert 0.92 <= hits / 600 <= 0.985


def test_groups_are_scored_apart_the_worst_first() -> None:
    right = np.array([True, True, False, False, False, True])
    found = score_groups(["a", "a", "b", "b", "", ""], right)
    assert [(g.group, g.correct, g.count) for g in found] == [("b", 0, 2), ("", 1, 2), ("a", 2, 2)]
    assert found[2].low < 1 == found[2].high


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, hs.Run]:
    """A table with groups, and a run on it."""
    folder = tmp_path_factory.mktemp("grouped")
    data = mislabel(write_classes(folder / "d", dict.fromkeys(COLOURS, 60)), "blue", "red", 40)
    rows = [
        [str(path.relative_to(folder)), path.parent.name, f"site {i % 7}"]
        for i, path in enumerate(sorted(data.rglob("*.png")))
    ]
    with open(folder / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "group"], *rows])
    return folder, hs.train(folder / "t.csv", out=folder / "run", image_size=64, val=0.35, test=0.3, seed=1)


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
    assert "Group by group" in report
    for group, right in expected.items():
        assert f'data-figure="val|group|{group}">{100 * np.mean(right):.1f} %' in report
    document = json.loads(main("evaluate", run.folder, "--json", capsys=capsys)[1])
    assert {g["group"]: (g["correct"], g["count"]) for g in document["val"]["groups"]} == {
        group: (sum(right), len(right)) for group, right in expected.items()
    }
    out = main("evaluate", run.folder, folder / "t.csv", capsys=capsys)[1]
    assert "all: group" in out
    assert "site 3" in out


@pytest.mark.exhaustive
def test_a_run_notes_each_look_at_its_test_images(grouped: tuple[Path, hs.Run], tmp_path: Path) -> None:
    folder, run = grouped
    copy = shutil.copytree(run.folder, tmp_path / "run")
    (copy / "test_uses.jsonl").unlink()
    record_test_score(copy, "train", images=run.results["test"].count, correct=run.results["test"].correct)
    said: list[str] = []

    class Heard(hs.TerminalProgress):
        def say(self, text: str) -> None:
            said.append(text)

    hs.evaluate(copy, progress=Heard())
    assert any(line.startswith("Test was scored once (train") for line in said)
    hs.evaluate(copy, folder / "t.csv")
    uses = read_audit(copy)
    assert [use.by for use in uses] == ["train", "evaluate", "evaluate"]
    assert {use.images for use in uses} == {run.results["test"].count}
    assert {use.correct for use in uses} == {run.results["test"].correct}
    assert "Test was scored 3 times" in hs.report(copy).read_text()
    write_classes(tmp_path / "other", dict.fromkeys(COLOURS, 3), first_seed=900)
    hs.evaluate(copy, tmp_path / "other")  # no image of test
    assert len(read_audit(copy)) == 3
    assert read_audit(run.folder)[0].by == "train"


def test_uses_in_words() -> None:
    uses = [AuditEntry(f"2026-11-2{i}T10:00:00+00:00", "evaluate", 5, 4) for i in range(4)]
    assert audit_text([]) == ""
    assert audit_text(uses[:1]) == "Test was scored once (evaluate 2026-11-20)"
    assert "4 times (most recently: evaluate 2026-11-21" in audit_text(uses)


@pytest.mark.exhaustive
def test_two_models_are_compared_on_the_same_images(
    grouped: tuple[Path, hs.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = grouped
    other = hs.train(
        folder / "t.csv", out=tmp_path / "other", probe="centroid", image_size=64, val=0.35, test=0.3, seed=1
    )
    (found,) = hs.compare_models(run.folder, other.model_path, folder / "t.csv").results
    with open(tmp_path / "a.csv", "w") as file:
        file.write("")
    code, out, err = main(
        "compare", run.folder, other.model_path, folder / "t.csv", "--out", tmp_path / "d.csv", capsys=capsys
    )
    assert code == 0, err
    assert found.sentence in out
    with open(tmp_path / "d.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found.first + found.second
    assert sum(row["right"] == "B" for row in rows) == found.second
    for row in rows:
        assert (row["A"] == row["label"]) == (row["right"] == "A")
    document = json.loads(main("compare", run.folder, run.folder, folder / "t.csv", "--json", capsys=capsys)[1])
    assert document[0]["p"] == 1
    assert main("compare", run.folder, folder / "t.csv", capsys=capsys)[0] == 2


@pytest.mark.exhaustive
def test_models_of_different_classes_are_compared_on_what_both_know(
    grouped: tuple[Path, hs.Run], tmp_path: Path
) -> None:
    _, run = grouped
    data = write_classes(tmp_path / "d", {"blue": 12, "red": 12}, first_seed=700)
    two = hs.train(data, out=tmp_path / "two", image_size=64)
    both = write_classes(tmp_path / "both", dict.fromkeys(COLOURS, 6), first_seed=800)
    with pytest.raises(DataError, match="has no class green"):
        hs.compare_models(run.folder, two.folder, both)
    (found,) = hs.compare_models(run.folder, two.folder, both, ignore_unknown=True).results
    assert found.count == 12


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
            seen[step] = len(set(given["together"].tolist()))
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


def test_classes_of_one_group_each_are_named_in_a_warning(tmp_path: Path) -> None:
    """Whoever recognises the group knows the class: cross-validation cannot tell the one from the other."""
    data = write_classes(tmp_path / "d", {"blue": 20, "red": 20})
    rows = [[str(p.relative_to(tmp_path)), p.parent.name, f"camera of {p.parent.name}"] for p in data.rglob("*.png")]
    splits = ["val" if Path(path).stem in ("1", "2", "3") else "train" for path, *_ in rows]
    with open(tmp_path / "t.csv", "w", newline="") as file:
        head = ["path", "label", "group", "split"]
        csv.writer(file).writerows([head, *([*row, split] for row, split in zip(rows, splits, strict=True))])
    said: list[str] = []

    class Heard(hs.TerminalProgress):
        def say(self, text: str) -> None:
            said.append(text)

    hs.train(tmp_path / "t.csv", out=tmp_path / "run", image_size=64, progress=Heard())
    assert [line for line in said if "one group only" in line] == [
        "Warning: each class has training images of one group only (or near copies of one image), so cross-validation "
        "divides groups and its figures are too high. Add images of further groups."
    ]
