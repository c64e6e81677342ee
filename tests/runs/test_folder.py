"""A run's folder: what is written, what is read back, and what is refused; without any training."""

from __future__ import annotations

import csv
import itertools
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from random_images import write_classes
from small_models import CLASSES, small_model

import headstart as hs
from headstart.data.finding import Finding
from headstart.errors import DataError, RunError, WriteError
from headstart.evaluation.metrics import CROSS_VALIDATION, score
from headstart.evaluation.predictions import Evaluated, evaluate_predictions
from headstart.reports.image_map import ImageMap
from headstart.runs import folder as folders
from headstart.runs import results as result_files
from headstart.runs.folder import (
    Run,
    RunStart,
    choose_run_folder,
    load_run,
    make_run_folder,
    next_free,
    open_like,
    read_start,
    rehearsal_rows,
    seal,
    write_findings,
    write_start,
)
from headstart.runs.results import collect_results, curve_points, write_results
from headstart.training.ladder import RungResult
from headstart.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("small_networks")

FINDING = Finding("dark", "warning", "1 image is nearly black.", ("a.png",))
RUNG = RungResult("probe", "", 3, 4, 0.3, 0.95, 0.25, 1.25, decision="kept")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_classes(tmp_path_factory.mktemp("data") / "colours", dict.fromkeys(CLASSES, 4))
    (folder / "red" / "broken.png").write_bytes(b"no image")
    return folder


def evaluated(name: str, count: int = 60) -> Evaluated:
    labels = np.arange(count) % 3
    probabilities = 0.1 + 0.7 * np.eye(3)[(labels + (np.arange(count) % 5 == 0)) % 3]
    return evaluate_predictions(name, [f"{name}/{i}.png" for i in range(count)], labels, probabilities, CLASSES)


@pytest.fixture(scope="module")
def model() -> hs.Model:
    return small_model()


def written(folder: Path, data: Path, model: hs.Model, *names: str, **more: Any) -> tuple[Run, dict[str, Any]]:
    """A run's folder as a training leaves it, but for the report."""
    look = hs.check(data, files_only=True)
    parts = [evaluated(name) for name in names]
    results = {part.scores.name: part.scores for part in parts}
    run = Run(folder, Recipe(seed=3), results, (RUNG,), "fine-tune from layer4", (FINDING,), {"train": 1.5})
    write_start(make_run_folder(folder), run.recipe, RunStart(str(data), "cpu"))
    fitted: Any = SimpleNamespace(name="probe", reason="few", frozen=7, settings={"c": 0.1})
    results_of_run = collect_results(run, model, fitted, look, tuple(parts), {"before": "x"}, **more)
    document = write_results(results_of_run)
    seal(folder, document)
    return run, document


def test_a_run_is_read_back_as_it_was_written(tmp_path: Path, data: Path, model: hs.Model) -> None:
    run, document = written(tmp_path / "run", data, model, "val", "test")
    back = load_run(tmp_path / "run")
    assert back == run
    assert (back.findings, back.seconds, back.best) == ((FINDING,), {"train": 1.5}, "fine-tune from layer4")
    assert back.scores.name == "test"
    assert back.model_path == tmp_path / "run" / "model.safetensors"
    assert back.report_path == tmp_path / "run" / "report.html"
    assert back.curves_path == tmp_path / "run" / "curves.svg"
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == json.loads(json.dumps(document))
    assert load_run(str(tmp_path / "run")) == run
    bare = {name: value for name, value in document.items() if name not in ("rungs", "best")}
    seal(tmp_path / "run", bare)
    old = load_run(tmp_path / "run")
    assert (old.rungs, old.best) == ((), "probe")
    (tmp_path / "run" / "start.json").unlink()
    assert load_run(tmp_path / "run") == old
    (tmp_path / "run" / "start.json").write_text("{")
    assert load_run(tmp_path / "run") == old


def test_what_run_json_holds(tmp_path: Path, data: Path, model: hs.Model) -> None:
    run, document = written(tmp_path / "run", data, model, "val")
    assert document["scores"] == {"val": run.results["val"].as_json()}
    assert document["head"] == {"name": "probe", "reason": "few", "frozen": 7, "c": 0.1}
    assert (document["best"], document["frozen"], document["seconds"]) == (
        "fine-tune from layer4",
        {"before": "x"},
        {"train": 1.5},
    )
    assert document["findings"] == [asdict(FINDING)]
    assert document["rungs"] == [asdict(RUNG)]
    backbone = model.net.backbone
    assert (document["backbone"], document["fingerprint"]) == (backbone.source, backbone.fingerprint)
    assert document["libraries"] == model.libraries
    own = document["data"]
    assert (own["base"], own["split"], own["name"]) == (str(data), "drawn by content", "colours")
    assert sum(own["sizes"].values()) == 12
    calibration = document["calibration"]
    assert {name: calibration[name] for name in model.calibration.as_json()} == model.calibration.as_json()
    assert [part["name"] for part in calibration["reliability"]]
    assert isinstance(calibration["usual"], str)


def test_every_file_of_a_run_is_there(tmp_path: Path, data: Path, model: hs.Model) -> None:
    folder = tmp_path / "run"
    image_map = ImageMap(("a.png",), ("train",), ("red",), np.array([[0.0, 1.0]]), ((),))
    written(folder, data, model, "val", CROSS_VALIDATION, image_map=image_map, rehearsal="path\nx.png\n")
    files = {path.name for path in folder.iterdir()}
    assert files == {
        *("recipe.json", "start.json", "run.json", "scores.json", "findings.json", "model.safetensors", "split.csv"),
        *("predictions.csv", "cross-validation.csv", "map.csv", "rehearsal.csv", "calibration.svg"),
    }
    assert (folder / "rehearsal.csv").read_text() == "path\nx.png\n"
    assert (folder / "map.csv").read_text() == image_map.csv()
    assert json.loads((folder / "findings.json").read_text()) == [json.loads(json.dumps(asdict(FINDING)))]
    assert set(json.loads((folder / "scores.json").read_text())) == {"val", CROSS_VALIDATION}
    kept = {name: list(csv.DictReader((folder / name).open())) for name in ("predictions.csv", "cross-validation.csv")}
    assert {row["split"] for row in kept["predictions.csv"]} == {"val"}
    assert {row["split"] for row in kept["cross-validation.csv"]} == {CROSS_VALIDATION}
    assert (folder / "calibration.svg").read_text().startswith("<svg ")
    assert hs.load(folder).classes == CLASSES
    written(tmp_path / "bare", data, model, "val")
    bare = {path.name for path in (tmp_path / "bare").iterdir()}
    assert files - bare == {"cross-validation.csv", "map.csv", "rehearsal.csv"}


def test_the_split_names_every_file_with_its_content_and_why_it_is_left_out(
    tmp_path: Path, data: Path, model: hs.Model
) -> None:
    written(tmp_path / "run", data, model, "val")
    rows = list(csv.DictReader((tmp_path / "run" / "split.csv").open()))
    assert list(rows[0]) == ["path", "label", "split", "content", "left_out"]
    by_path = {Path(row["path"]).name if "broken" in row["path"] else row["path"]: row for row in rows}
    assert len(by_path) == 13
    broken = by_path.pop("broken.png")
    assert (broken["label"], broken["split"]) == ("red", "")
    assert broken["left_out"]
    look = hs.check(data, files_only=True)
    contents = {key.hex() for key, ok in zip(look.scanned.keys, look.scanned.usable, strict=True) if ok}
    assert {row["content"] for row in by_path.values()} == contents
    assert {row["split"] for row in by_path.values()} <= {"train", "val", "test"}
    assert all(not row["left_out"] for row in by_path.values())


def test_the_split_of_a_table_keeps_groups_and_labels(tmp_path: Path, model: hs.Model) -> None:
    data = write_classes(tmp_path / "d", {"red": 3, "blue": 3})
    (data / "t.csv").write_text(
        "path,labels,group\n" + "".join(f"{c}/{i}.png,{c}|x{i % 2},g{i}\n" for c in ("red", "blue") for i in range(3))
    )
    written(tmp_path / "run", data / "t.csv", model, "val")
    rows = list(csv.DictReader((tmp_path / "run" / "split.csv").open()))
    assert list(rows[0]) == ["path", "labels", "split", "content", "left_out", "group"]
    assert sorted({row["group"] for row in rows}) == ["g0", "g1", "g2"]
    assert {row["labels"] for row in rows} == {"red|x0", "red|x1", "blue|x0", "blue|x1"}


def test_curves_are_drawn_where_anything_was_trained_by_steps(tmp_path: Path, data: Path, model: hs.Model) -> None:
    folder = make_run_folder(tmp_path / "run")
    epochs = [
        {"event": "epoch", "stage": "head", "epoch": e, "loss": 1.0 / (e + 1), "accuracy": 0.5, "time": ""}
        for e in (0, 1)
    ]
    val = {"event": "validation", "stage": "head", "epoch": 1, "log_loss": 0.7, "accuracy": 0.6, "time": ""}
    other = {"event": "rung", "stage": "head"}
    (folder / "log.jsonl").write_text("".join(json.dumps(own) + "\n" for own in (*epochs, val, other)))
    points = curve_points(folder)
    assert [(p.stage, p.epoch, p.train_loss, p.train_accuracy, p.val_loss, p.val_accuracy) for p in points] == [
        ("head", 0, 1.0, 0.5, None, None),
        ("head", 1, 0.5, 0.5, 0.7, 0.6),
    ]
    run, _ = written(folder, data, model, "val")
    assert run.curves_path.read_text().startswith("<svg ")
    shown = run._repr_html_()
    assert "data:image/svg+xml;base64," in shown
    assert 'alt="learning curves"' in shown
    assert 'width="720"' in shown


def test_a_notebook_shows_results_ladder_and_where_the_rest_is(tmp_path: Path) -> None:
    scores = score(np.eye(2), np.array([0, 1]), "ab", name="val")
    rung = replace(RUNG, correct=1234, count=2000, low=0.25, high=0.5, seconds=1.26)
    run = Run(tmp_path, Recipe(), {"val": scores}, (rung,), "probe")
    shown = run._repr_html_()
    for piece in (scores.sentence, "61.7 % (1,234/2,000)", "25.0-50.0", ">1.3<", ">kept<", ">probe<", "95 % CI"):
        assert piece in shown, piece
    for head in ("rung", "accuracy", "seconds", "decision"):
        assert f">{head}<" in shown
    assert f"Kept: probe. Report: {tmp_path / 'report.html'}. Model: {tmp_path / 'model.safetensors'}." in shown
    assert "<img" not in shown
    assert "<b>val accuracy" in shown
    assert "</p><table" in shown
    assert Run(tmp_path, Recipe(), {"val": scores}).best == "probe"
    assert "<table" not in Run(tmp_path, Recipe(), {"val": scores})._repr_html_()
    for hidden in ("findings", "seconds="):
        assert hidden not in repr(replace(run, rungs=()))


def test_what_is_no_finished_run_is_said_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not a run folder\. Expected a folder written by headstart train"):
        load_run(tmp_path)
    (tmp_path / "recipe.json").write_text(json.dumps(Recipe().as_json()))
    with pytest.raises(RunError, match=f"unfinished run.*--resume {tmp_path}"):
        load_run(tmp_path)
    good = {"scores": {}, "findings": [], "seconds": {}}
    (tmp_path / "run.json").write_text(json.dumps(good))
    assert load_run(tmp_path).results == {}
    for damage in (
        "{",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps(good | {"scores": []}),
        json.dumps(good | {"scores": {"val": {}}}),
        json.dumps(good | {"rungs": [{"a": 1}]}),
        "\xff",
    ):
        (tmp_path / "run.json").write_text(damage, encoding="latin-1")
        with pytest.raises(RunError, match="damaged run folder"):
            load_run(tmp_path)


def test_a_run_that_can_go_on_is_read_back_with_its_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(extend="runs/old", rehearsal="more", seed=5)
    start = RunStart("data", "cpu", "abc", {"torch": "2"}, {"path_column": "p"})
    write_start(tmp_path, recipe, start)
    public = (tmp_path / "recipe.json").read_text()
    assert str(tmp_path) not in public
    own, back = read_start(tmp_path)
    assert own == replace(recipe, extend=str(tmp_path / "runs/old"), rehearsal=str(tmp_path / "more"))
    assert back == replace(start, paths={"extend": own.extend, "rehearsal": own.rehearsal})
    assert (RunStart("d", "cpu").images, RunStart("d", "cpu").columns) == ("", {})
    write_start(tmp_path, Recipe(weights="~/w.pth"), start)
    assert read_start(tmp_path)[0].weights == os.path.expanduser("~/w.pth")


def test_what_cannot_go_on_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run to resume"):
        read_start(tmp_path)
    write_start(tmp_path, Recipe(), RunStart("d", "cpu"))
    for damage in ("{", "[]", '{"data": "d"}', '{"data": "d", "device": "cpu", "more": 1}'):
        (tmp_path / "start.json").write_text(damage)
        with pytest.raises(RunError, match="damaged run folder"):
            read_start(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunError, match="this run is finished"):
        read_start(tmp_path)


@pytest.mark.parametrize("names", [["now.json"], ["plan.json", "now.json"]])
def test_what_a_run_killed_before_training_leaves_is_named_with_the_remedy(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(RunError, match=r"killed before training began\. Delete the folder"):
        read_start(tmp_path)
    with pytest.raises(RunError, match=r"killed before training began\. If no run is active, delete"):
        choose_run_folder(tmp_path, Path("x"))


def test_a_run_folder_is_new_or_empty_and_named_after_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose_run_folder(None, Path("x/flowers.csv")) == Path("runs/flowers")
    assert choose_run_folder(None, Path("/")) == Path("runs/data")
    for expected in ("flowers", "flowers-2", "flowers-3"):
        assert choose_run_folder(None, Path("x/flowers")) == Path("runs") / expected
        make_run_folder(Path("runs") / expected)
    assert choose_run_folder("new", Path("x")) == Path("new")
    assert choose_run_folder(tmp_path / "runs" / "flowers", Path("x")) == tmp_path / "runs" / "flowers"  # empty
    (tmp_path / "file").write_text("")
    for taken in (tmp_path / "runs", tmp_path / "file"):
        with pytest.raises(RunError, match="already exists and is not empty; nothing is overwritten"):
            choose_run_folder(taken, Path("x"))
    assert choose_run_folder("~/nowhere/run", Path("x")) == Path(os.path.expanduser("~/nowhere/run"))
    assert make_run_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert make_run_folder(tmp_path / "a" / "b").is_dir()
    with pytest.raises(RunError, match=r"file/b: cannot be written .*option out"):
        make_run_folder(tmp_path / "file" / "b")
    names = (tmp_path / f"n{end}" for end in ("", "-2", "-3"))
    for path in itertools.islice(names, 3):
        assert next_free(tmp_path / "n") == path
        path.touch()


def test_a_folder_that_cannot_be_written_is_a_named_error(
    tmp_path: Path, data: Path, model: hs.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "write_atomically", full)
    monkeypatch.setattr(result_files, "write_atomically", full)
    for work in (
        lambda: write_start(tmp_path, Recipe(), RunStart("d", "cpu")),
        lambda: seal(tmp_path, {}),
        lambda: written(tmp_path / "run", data, model, "val"),
    ):
        with pytest.raises(WriteError, match="No space left"):
            work()
    with pytest.raises(OSError, match="No space left"):
        write_findings(tmp_path / "f.json", [FINDING])


def test_other_data_are_opened_by_the_columns_of_the_run_where_they_have_them(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "d", {"red": 2, "blue": 2})
    rows = [f"{c}/{i}.png,{c}" for c in ("red", "blue") for i in range(2)]
    (data / "own.csv").write_text("\n".join(["Datei,Art", *rows]))
    (data / "usual.csv").write_text("\n".join(["path,label", *rows]))
    (data / "other.csv").write_text("\n".join(["Datei,label", *rows]))
    (data / "one.csv").write_text("\n".join(["Datei,Art", *rows[:2]]))
    run = make_run_folder(tmp_path / "run")
    write_start(run, Recipe(), RunStart("d", "cpu", columns={"path_column": "Datei", "label_column": "Art"}))
    for source in ("own.csv", "usual.csv"):
        assert open_like(run, data / source).classes == ("blue", "red"), source
    assert open_like(run, data).classes == ("blue", "red")
    opened = open_like(run, data / "own.csv")
    assert open_like(run, opened) is opened
    with pytest.raises(DataError, match="Art"):
        open_like(run, data / "other.csv")
    with pytest.raises(DataError):
        open_like(None, data / "own.csv")
    assert open_like(None, data / "usual.csv").classes == ("blue", "red")
    with pytest.raises(DataError):
        open_like(run, data / "one.csv")
    assert open_like(run, data / "one.csv", min_classes=1).classes == ("red",)
    (run / "start.json").write_text("{")
    with pytest.raises(DataError):
        open_like(run, data / "own.csv")
    assert open_like(tmp_path / "gone", data / "usual.csv").classes == ("blue", "red")


@pytest.mark.parametrize("name", ["rehearsal.csv", "remembered.csv"])
def test_images_of_old_classes_are_read_from_runs_of_today_and_of_earlier_versions(name: str, tmp_path: Path) -> None:
    assert rehearsal_rows(tmp_path) == []
    (tmp_path / name).write_text("path,label,split\nx.png,a,train\n")
    assert rehearsal_rows(tmp_path) == [{"path": "x.png", "label": "a", "split": "train"}]
