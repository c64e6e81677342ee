"""Retraining with corrected labels: same recipe and split; both models compared on the same images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from commands import main
from encoded_images import coloured_png
from random_images import write_classes
from recorded_progress import RecordedProgress

import headstart as hs
from headstart.cache.keys import content_key
from headstart.errors import DataError, OptionError
from headstart.evaluation.mcnemar import paired
from headstart.files import read_rows
from headstart.progress import SilentProgress
from headstart.serve.corrections import Corrections
from headstart.verbs.retrain import change_sentence, compare_runs, corrected_rows

pytestmark = pytest.mark.usefixtures("small_networks")


def write_csv(file: Path, *lines: list[str]) -> None:
    with open(file, "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows(lines)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The table of a run: one train, val, test and excluded image of each class."""
    images = write_classes(tmp_path / "data", {"a": 4, "b": 4})
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [["path", "label", "split", "content", "left_out"]]
    for place, file in enumerate(sorted(images.rglob("*.png"))):
        split = ["train", "val", "test", ""][place % 4]
        lines.append([str(file), file.parent.name, split, content_key(file.read_bytes()).hex(), ""])
    write_csv(folder / "split.csv", *lines)
    return folder


def rows_of(run: Path, kept: Corrections) -> dict[str, tuple[str, str]]:
    return {path: (label, split) for path, label, split, _ in corrected_rows(run, kept.folder, SilentProgress())}


def test_corrected_images_stay_in_their_split_and_others_are_for_training(run: Path, tmp_path: Path) -> None:
    kept, images = Corrections(tmp_path / "run-corrections"), tmp_path / "data"
    with pytest.raises(DataError, match=f"contains no corrections.*headstart serve {run}"):
        rows_of(run, kept)
    for place in range(4):
        kept.keep((images / "a" / f"{place}.png").read_bytes(), "b")
    new, left_out = kept.keep(coloured_png(77), "a"), kept.find(kept.all()[-1].key)
    assert left_out is not None
    rows = rows_of(run, kept)
    assert [rows[str(images / "a" / f"{i}.png")] for i in range(3)] == [("b", "train"), ("b", "val"), ("b", "test")]
    assert rows[str(images / "b" / "0.png")] == ("b", "train")
    assert rows[str(new.file.resolve())] == ("a", "train")
    assert str(images / "a" / "3.png") not in rows  # excluded from the run, so its correction is a new image
    assert len(rows) == 8


def test_a_class_without_a_training_image_is_named_and_left_out(run: Path, tmp_path: Path) -> None:
    kept, progress = Corrections(tmp_path / "kept"), RecordedProgress()
    kept.keep((tmp_path / "data" / "a" / "1.png").read_bytes(), "wasp")

    rows = corrected_rows(run, kept.folder, progress)
    assert "wasp" not in {label for _, label, _, _ in rows}
    assert len(progress.said) == 1
    assert progress.said[0].startswith("Warning: wasp: no training image")


def test_groups_are_kept_and_several_labels_refused(run: Path, tmp_path: Path) -> None:
    kept = Corrections(tmp_path / "kept")
    kept.keep(coloured_png(5), "a")
    table = read_rows(run / "split.csv")
    write_csv(run / "split.csv", [*table[0], "group"], *([*row.values(), "g1"] for row in table))
    assert {group for *_, group in corrected_rows(run, kept.folder, SilentProgress())} == {"g1", ""}
    write_csv(run / "split.csv", ["path", "labels", "split", "content"], ["x", "|a|b|", "train", "00"])
    with pytest.raises(OptionError, match="several labels"):
        corrected_rows(run, kept.folder, SilentProgress())


def test_before_and_after_are_compared_on_the_same_images_by_the_corrected_labels(tmp_path: Path) -> None:
    for name, rows in {
        "before": [["1", "val", "a", "a"], ["2", "val", "a", "b"], ["3", "test", "a", "b"], ["9", "val", "b", "b"]],
        "after": [["1", "val", "a", "a"], ["2", "val", "b", "b"], ["3", "test", "a", "a"], ["8", "val", "b", "b"]],
    }.items():
        (tmp_path / name).mkdir()
        write_csv(tmp_path / name / "predictions.csv", ["path", "split", "label", "predicted"], *rows)
    val, test = compare_runs(tmp_path / "before", tmp_path / "after")
    assert (val.name, val.count, val.both, val.first, val.second) == ("val", 2, 2, 0, 0)
    assert (test.name, test.count, test.both, test.first, test.second) == ("test", 1, 0, 0, 1)
    assert compare_runs(tmp_path, tmp_path) == ()
    first, second = np.array([True] * 8 + [False] * 2), np.array([True] * 9 + [False])
    assert change_sentence(paired("val", first, second)).startswith(
        "val accuracy: before 80.0 % (8/10), after 90.0 % (9/10); +10.0 points"
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> hs.Run:
    folder = tmp_path_factory.mktemp("retrain")
    data = write_classes(folder / "colours", {"blue": 20, "red": 20})
    return hs.train(data, out=folder / "run", image_size=64, device="cpu", seed=3, balance_classes=True)


@pytest.mark.exhaustive
def test_a_run_is_trained_again_with_the_same_options(trained: hs.Run, capsys: pytest.CaptureFixture[str]) -> None:
    kept = Corrections(trained.folder.with_name("run-corrections"))
    before = {row["path"]: row["split"] for row in read_rows(trained.folder / "split.csv")}
    wrong = next(path for path, split in before.items() if split == "val" and "blue" in path)
    kept.keep(Path(wrong).read_bytes(), "red")
    kept.keep(coloured_png(700), "red")
    status, out, _ = main("retrain", trained.folder, "--json", "--device", "cpu", capsys=capsys)
    assert status == 0
    document = json.loads(out)
    new = hs.load_run(document["run"])
    assert new.folder.name == "run-2"
    assert new.recipe == trained.recipe
    after = {row["path"]: row for row in read_rows(new.folder / "split.csv")}
    assert {path: row["split"] for path, row in after.items() if path in before} == before
    assert (after[wrong]["label"], after[wrong]["split"]) == ("red", "val")
    (fresh,) = set(after) - set(before)
    assert after[fresh]["split"] == "train"
    assert {own["name"]: own["count"] for own in document["changes"]} == {
        name: trained.results[name].count for name in ("val", "test")
    }
