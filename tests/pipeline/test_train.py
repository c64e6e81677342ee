"""Whole runs on small data: what is written, what is kept, what is the same twice."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_images import random_image, write_classes
from safetensors.torch import save_file
from served import served

import headstart as hs
from headstart.backbone.weights import random_backbone
from headstart.cache.entries import cache_root
from headstart.data import open_table
from headstart.errors import DataError, HeadstartError, OptionError, RunError
from headstart.evaluation.tables import write_predictions
from headstart.files import read_rows, unicode_text
from headstart.prediction import Prediction
from headstart.progress import SilentProgress
from headstart.verbs.report import report

pytestmark = pytest.mark.usefixtures("small_networks")

QUICK = {"image_size": 64, "device": "cpu"}


class Listener:
    """A progress that records messages."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def task(self, name: str, total: int, unit: str = "images"):
        return SilentProgress().task(name, total, unit)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> hs.Run:
    folder = tmp_path_factory.mktemp("data")
    data = write_classes(folder / "colours", {"blue": 40, "green": 40, "red": 40})
    (data / "red" / "broken é.jpg").write_bytes(b"")
    (data / "blue" / "words.png").write_text("no image")
    return hs.train(data, out=folder / "run", **QUICK)


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_a_run_learns_and_leaves_every_file(run: hs.Run) -> None:
    assert run.scores.accuracy > 0.85
    assert {p.name for p in run.folder.iterdir()} == {
        "recipe.json",
        "cross-validation.csv",
        "start.json",
        "log.jsonl",
        "checkpoints",
        "split.csv",
        "findings.json",
        "model.safetensors",
        "predictions.csv",
        "scores.json",
        "report.html",
        "calibration.svg",
        "test_uses.jsonl",
        "map.csv",
        "README.md",
        "run.json",
    }
    assert hs.load_run(run.folder).results == run.results
    assert hs.load_run(run.folder).recipe == run.recipe


def test_unreadable_files_are_named_counted_and_left_out(run: hs.Run) -> None:
    """Law 8, in training."""
    finding = next(f for f in run.findings if f.kind == "unreadable")
    assert finding.message.startswith("2 of 122 files")
    assert {item.split(":")[0] for item in finding.items} == {"red/broken é.jpg", "blue/words.png"}
    table = rows(run.folder / "split.csv")
    unused = [row for row in table if row["split"] == ""]
    broken = next(row for row in unused if row["path"].endswith("broken é.jpg"))
    assert broken["left_out"] == "empty file (0 bytes)"
    assert len(table) == 122
    assert all(row["left_out"] for row in unused)
    assert len([row for row in unused if "near-identical" not in row["left_out"]]) == 2


def test_every_score_can_be_recomputed_from_the_predictions(run: hs.Run) -> None:
    table, crossed = rows(run.folder / "predictions.csv"), rows(run.folder / "cross-validation.csv")
    assert {row["split"] for row in crossed} == {"cross-validation"}
    for name, scores in run.results.items():
        part = [row for row in [*crossed, *table] if row["split"] == name]
        assert len(part) == scores.count
        assert sum(row["label"] == row["predicted"] for row in part) == scores.correct
    stored = {row["path"]: row["label"] for row in rows(run.folder / "split.csv") if row["split"] in ("val", "test")}
    assert {row["path"]: row["label"] for row in table} == stored
    for row in table:
        assert Path(row["path"]).parent.name == row["label"]
        chances = {name[2:]: float(value) for name, value in row.items() if name.startswith("p:")}
        assert max(chances, key=lambda label: chances[label]) == row["predicted"]


@pytest.mark.exhaustive
def test_the_model_file_gives_the_runs_probabilities_in_a_new_process(run: hs.Run) -> None:
    """Law 5."""
    script = (
        "import csv, json, sys, headstart as hs\n"
        "rows = list(csv.DictReader(open(sys.argv[2], newline='', encoding='utf-8')))\n"
        "model = hs.load(sys.argv[1])\n"
        "chances, faults = model.predict_proba([r['path'] for r in rows], device='cpu')\n"
        "places = [(i, j) for i in range(len(rows)) for j in range(len(model.classes))]\n"
        "wrong = [abs(chances[i, j] - float(rows[i]['p:' + model.classes[j]])) for i, j in places]\n"
        "print(json.dumps([max(wrong), len(faults), len(rows)]))"
    )
    command = [sys.executable, "-c", script, str(run.model_path), str(run.folder / "predictions.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    gap, faults, count = json.loads(done.stdout)
    assert gap < 1e-4
    assert faults == 0
    assert count == run.results["val"].count + run.results["test"].count


def test_evaluating_the_run_again_gives_its_scores(run: hs.Run) -> None:
    again = {part.scores.name: part.scores for part in hs.evaluate(run.folder, device="cpu")}
    assert list(again) == ["val", "test"]
    for name, found in again.items():
        assert found.confusion == run.results[name].confusion
        assert found.log_loss == pytest.approx(run.results[name].log_loss, abs=1e-5)


def test_evaluating_on_other_data_scores_what_the_model_knows(run: hs.Run, tmp_path: Path) -> None:
    write_classes(tmp_path / "d" / "train", {"blue": 5, "red": 5, "purple": 3}, first_seed=900)
    write_classes(tmp_path / "d" / "test", {"green": 4, "red": 2, "blue": 1}, first_seed=950)
    listener = Listener()
    with pytest.raises(DataError, match=r"has no class purple \(3 images\).*--ignore-unknown"):
        hs.evaluate(run.model_path, tmp_path / "d", device="cpu")
    found = hs.evaluate(run.model_path, tmp_path / "d", ignore_unknown=True, device="cpu", progress=listener)
    parts = {p.scores.name: p.scores for p in found}
    assert {name: s.count for name, s in parts.items()} == {"train": 10, "test": 7}
    assert any(
        "3 images of classes that the model does not have" in text and "purple" in text for text in listener.said
    )
    write_classes(tmp_path / "none", {"x": 2, "y": 2})
    with pytest.raises(DataError, match="no readable image of a class of the model"):
        hs.evaluate(run.model_path, tmp_path / "none", ignore_unknown=True, device="cpu")
    with pytest.raises(RunError, match="give the data"):
        hs.evaluate(run.model_path)


def test_images_that_the_model_was_trained_on_are_not_passed_off_as_new(run: hs.Run, tmp_path: Path) -> None:
    write_classes(tmp_path / "d", {"blue": 4, "red": 4}, first_seed=900)
    learned = [
        row["path"] for row in rows(run.folder / "split.csv") if row["split"] == "train" and row["label"] == "red"
    ]
    shutil.copy(learned[0], tmp_path / "d" / "red" / "old.png")
    listener = Listener()
    hs.evaluate(run.folder, tmp_path / "d", device="cpu", progress=listener)
    assert any("was trained on 1 of the 9 images" in text and "red/old.png" in text for text in listener.said)


def test_a_second_run_does_not_run_the_backbone_and_says_so(run: hs.Run, tmp_path: Path, monkeypatch) -> None:
    from headstart.features import extract

    def fail(*_a: object, **_k: object) -> None:
        raise AssertionError("the backbone was run")

    monkeypatch.setattr(extract, "choose_engine", fail)
    listener = Listener()
    data = Path(rows(run.folder / "split.csv")[0]["path"]).parent.parent
    again = hs.train(data, out=tmp_path / "run", progress=listener, **QUICK)
    assert any("are in the cache; the backbone does not run" in text for text in listener.said)
    for name in ("predictions.csv", "map.csv", "scores.json", "model.safetensors", "README.md"):
        assert (again.folder / name).read_bytes() == (run.folder / name).read_bytes(), name
    reports = [re.sub(r"<td>[\d.]+ m?s\b", "", each.report_path.read_text()) for each in (run, again)]
    assert reports[0] == reports[1], "except for durations"


@pytest.mark.slow
def test_a_second_run_imports_neither_scikit_learn_nor_pandas(run: hs.Run, tmp_path: Path) -> None:
    """They take a third of its time."""
    data = Path(rows(run.folder / "split.csv")[0]["path"]).parent.parent
    script = (
        f"import sys, headstart as hs; hs.train({str(data)!r}, out={str(tmp_path / 'run')!r}, **{QUICK}); "
        "print([name for name in ('sklearn', 'pandas', 'scipy.stats', 'cleanlab') if name in sys.modules])"
    )
    for _ in range(2):  # the engines of a new process may be others than those of the tests
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.exhaustive
def test_the_same_seed_gives_the_same_model_from_cold_caches_and_another_seed_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 11, with the same engine: the choice of the fastest engine depends on timing."""
    order = ["torch", "folded", "mixed", "onnxruntime"]
    monkeypatch.setattr(
        "headstart.engine.measure.measure_rates",
        lambda engines, _sample: {name: 2.0 ** order.index(name) for name in engines},
    )
    data = write_classes(tmp_path / "d", {"blue": 30, "red": 30})
    models = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / f"run{number}"
        run = hs.train(data, out=out, cache=tmp_path / f"cache{number}", seed=seed, **QUICK)
        models.append(run.model_path.read_bytes())
    assert models[0] == models[1]
    assert models[0] != models[2]


@pytest.mark.exhaustive
def test_the_split_that_was_used_is_a_table_that_can_be_trained_on(run: hs.Run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    again = hs.train(run.folder / "split.csv", out="run", **QUICK)
    monkeypatch.chdir("/")
    assert again.results == run.results
    assert {p.scores.name: p.scores.confusion for p in hs.evaluate(tmp_path / "run", device="cpu")} == {
        name: scores.confusion for name, scores in run.results.items() if name != "cross-validation"
    }


@pytest.mark.slow
def test_class_names_are_in_natural_order_everywhere(tmp_path: Path) -> None:
    """Law 7."""
    data = write_classes(tmp_path / "d", {"10": 20, "9": 20, "é 1": 20})
    run = hs.train(data, out=tmp_path / "run", **QUICK)
    model = hs.load(run.folder)
    assert model.classes == ("9", "10", "é 1")
    assert [c.label for c in run.scores.classes] == ["9", "10", "é 1"]
    assert list(rows(run.folder / "predictions.csv")[0])[-3:] == ["p:9", "p:10", "p:é 1"]
    report = run.report_path.read_text()
    assert report.index(">9<") < report.index(">10<") < report.index(">é 1<")


@pytest.mark.slow
def test_a_class_missing_from_train_or_val_is_reported_and_shifts_nothing(tmp_path: Path) -> None:
    write_classes(tmp_path / "d" / "train", {"blue": 20, "red": 20})
    write_classes(tmp_path / "d" / "val", {"blue": 6, "green": 4, "red": 6}, first_seed=200)
    run = hs.train(tmp_path / "d", out=tmp_path / "run", **QUICK)
    assert any(f.kind == "missing-class" and f.items == ("green",) for f in run.findings)
    figures = {c.label: c for c in run.results["val"].classes}
    assert (figures["green"].support, figures["green"].recall) == (4, 0)
    assert figures["blue"].recall > 0.6
    assert figures["red"].recall > 0.6


def test_preprocessing_is_the_same_code_in_training_and_prediction(run: hs.Run) -> None:
    """Law 10: the pixels that training read from the cache are those that prediction makes from the file."""
    from headstart.cache.keys import content_key
    from headstart.data.pixel_cache import pixel_store

    model = hs.load(run.model_path)
    store = pixel_store(model.preprocessing)
    for row in rows(run.folder / "split.csv")[:20]:
        if row["split"]:
            key = content_key(Path(row["path"]).read_bytes())
            assert key.hex() == row["content"]
            assert np.array_equal(store.read([key])[0], model.preprocess(row["path"]))
    assert "augment" not in json.dumps(model._header())


def test_nothing_is_overwritten_and_nothing_empty_is_left(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "d", {"blue": 5, "red": 5})
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(RunError, match="nothing is overwritten"):
        hs.train(data, out=tmp_path / "taken")
    with pytest.raises(OptionError):
        hs.train(data, out=tmp_path / "new", backbone="no_such_net")
    assert not (tmp_path / "new").exists()
    with pytest.raises(OptionError, match=r"'?colour"):
        hs.train(data, colour=1)
    with pytest.raises(OptionError, match="not both"):
        hs.train(data, recipe=hs.Recipe(), seed=1)
    with pytest.raises(RunError, match="not a run folder"):
        hs.load_run(tmp_path)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ({"unfreeze": "blocks.9"}, r"Did you mean blocks\.\d\?"),
        ({"cut": "block.3"}, r"Did you mean blocks\.3\?"),
        ({"head": "conv8-flatten", "single_logit": True, "cut": "blocks.3"}, "the data has 3"),
        ({"device": "tpu"}, "expected auto, cpu"),
        ({"weights": "nowhere.pth"}, r"nowhere\.pth"),
        ({"extend": "nowhere", "image_size": None}, "nowhere"),
    ],
)
def test_a_mistake_is_found_before_the_run_folder_is_made(
    mistake: dict[str, Any], words: str, three_colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headstart.pipeline import train

    def fail(folder: Path) -> Path:
        raise AssertionError("a folder was made")

    monkeypatch.setattr(train, "make_run_folder", fail)
    with pytest.raises(HeadstartError, match=words):
        hs.train(three_colours, out=tmp_path / "run", **{"device": "cpu", "image_size": 32} | mistake)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_failure_before_anything_is_learnt_leaves_the_folder_free_for_the_next_try(
    three_colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Saying(SilentProgress):
        def say(self, text: str) -> None:
            said.append(text)

    def stop(*_given: object, **_named: object) -> None:
        raise error

    monkeypatch.setattr("headstart.pipeline.choose_layers.fit_head", stop)
    for error in (DataError("data.csv: no"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            hs.train(three_colours, out=tmp_path / "run", progress=Saying(), **QUICK)
        assert not (tmp_path / "run").exists()
    assert "Training had not begun" in said[-1]
    assert str(tmp_path / "run") in said[-1]


@pytest.mark.slow
def test_after_something_was_learnt_ctrl_c_says_how_to_resume(
    three_colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Saying(SilentProgress):
        def say(self, text: str) -> None:
            said.append(text)

    def stop(*_given: object, **_named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("headstart.pipeline.train.evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            hs.train(three_colours, out=tmp_path / "run", progress=Saying(), **QUICK)
    assert said[-1] == f"To resume this run: headstart train --resume {tmp_path / 'run'}"
    assert hs.resume(tmp_path / "run").scores.count


def test_the_cache_is_where_it_was_asked_for(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "d", {"blue": 12, "red": 12})
    hs.train(data, out=tmp_path / "r", cache=tmp_path / "here", **QUICK)
    assert {p.name for p in (tmp_path / "here").iterdir()} >= {"facts", "pixels", "features"}
    assert cache_root() != tmp_path / "here"


def test_the_report_stands_alone_and_escapes_names(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "d", {"<b>bold": 30, "red": 30})
    random_image(99).save(data / "red" / "wrong & here.jpg")
    run = hs.train(data, out=tmp_path / "run", **QUICK)
    text = run.report_path.read_text()
    assert "<b>bold" not in text
    assert "&lt;b&gt;bold" in text
    namespace = 'xmlns="http://www.w3.org/2000/svg"'  # which nothing is fetched from
    assert "http" not in text.replace("http-equiv", "").replace(namespace, "")
    for scores in run.results.values():
        assert scores.sentence in text


HEADS = [
    {"head": "32-16-0.2,8", "head_epochs": 20},
    {"head": "conv8-flatten", "cut": "blocks.3", "head_epochs": 8},
    {"head": "16", "views": 2, "head_epochs": 8, "single_logit": True},
    {"head": "conv8-flatten", "cut": "blocks.5", "effort": "quick", "unfreeze": "blocks.5", "epochs": 4, "views": 1},
    {"probe": "svm", "pool": "flatten", "cut": "blocks.5"},
    {"probe": "rbf"},
    {"probe": "knn", "pool": "max"},
    {"probe": "centroid"},
    {"single_logit": True},
]


LONG = pytest.mark.exhaustive
QUICKEST = [{"probe": "centroid"}]


@pytest.mark.slow
@pytest.mark.parametrize("choices", [c if c in QUICKEST else pytest.param(c, marks=LONG) for c in HEADS])
def test_whatever_stands_on_the_features_is_saved_and_predicts_as_in_the_run(
    choices: dict[str, object], tmp_path: Path
) -> None:
    """Law 5, for every head."""
    data = write_classes(tmp_path / "colours", {"blue": 40, "red": 40})
    run = hs.train(data, out=tmp_path / "run", **QUICK, **choices)
    assert run.scores.correct > 0.7 * run.scores.count
    again = hs.evaluate(run.folder)[0]
    written = [float(row["p:blue"]) for row in rows(run.folder / "predictions.csv") if row["split"] == "val"]
    assert again.probabilities[:, 0] == pytest.approx(written, abs=1e-4)
    assert run.best in run.report_path.read_text()


@pytest.mark.parametrize(
    ("choices", "match"),
    [
        ({"head": "512", "probe": "svm"}, "cannot be combined with head"),
        ({"head": "conv8", "pool": "max"}, "conv1280-avg"),
        ({"head_epochs": 3}, "requires head"),
        ({"probe": "knn", "effort": "quick"}, "linear classifier"),
        ({"probe": "forest"}, "logistic, svm"),
        ({"head": "512-relu"}, "Examples"),
        ({"cut": "blocks.9"}, r"'blocks\.9'.*blocks\.3"),
        ({"single_logit": True}, "the data has 3"),
    ],
)
def test_heads_that_cannot_be_are_refused_before_anything_is_written(
    choices: dict[str, object], match: str, tmp_path: Path
) -> None:
    data = write_classes(tmp_path / "colours", {"blue": 9, "green": 9, "red": 9})
    with pytest.raises(OptionError, match=match):
        hs.train(data, out=tmp_path / "run", **QUICK, **choices)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_names_that_are_no_utf8_or_begin_like_formulas_go_through_everything(tmp_path: Path) -> None:
    """Every text file of the run is UTF-8, every JSON has whole characters, and the images are found again."""
    weights = tmp_path / "resnet.safetensors"
    save_file(random_backbone("test_resnet", image_size=32, seed=3).module.state_dict(), weights)
    data = write_classes(tmp_path / "data", {"=1+1": 20, "blue": 20})
    (data / "blue").rename(data / os.fsdecode("Gänse".encode("cp1252")))
    for i, file in enumerate(sorted(data.rglob("*.png"))):
        file.rename(file.with_name(os.fsdecode(f"-{i}".encode() + b"\xe4.png")))
    tiny = {"backbone": "test_resnet", "weights": str(weights), "image_size": 32, "device": "cpu"}
    run = hs.train(data, out=tmp_path / "run", cache=tmp_path / "cache", **tiny)
    model = hs.load(run.folder)
    assert model.classes == ("=1+1", "Gänse")
    for file in run.folder.iterdir():
        if file.suffix in (".csv", ".json", ".jsonl", ".html", ".md"):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"\\ud[89a-f]", text), file.name
            assert not re.search(r"(^|,)=", text, re.MULTILINE) or file.suffix != ".csv", file.name
    (scores, *_) = hs.evaluate(run.folder, device="cpu")
    assert scores.scores.correct == run.results[scores.scores.name].correct
    assert len(open_table(run.folder / "split.csv").files()) == 40
    assert all(os.path.isfile(file) for file in open_table(run.folder / "split.csv").files())
    assert "can no longer be read" not in report(run.folder).read_text(encoding="utf-8")
    images = sorted(map(str, data.rglob("*.png")))[:3]
    predictions = model.predict(images, device="cpu")
    for ending in ("csv", "json", "parquet"):
        write_predictions(tmp_path / f"p.{ending}", predictions)
    assert [p["path"] for p in json.loads((tmp_path / "p.json").read_bytes())] == [unicode_text(p) for p in images]
    assert [row["path"] for row in read_rows(tmp_path / "p.csv")] == images
    with served(model) as server:
        assert server.client.get("/v1/model").json()["classes"] == ["=1+1", "Gänse"]
        assert server.predict(("-1.png", Path(images[0]).read_bytes())).status_code == 200


def test_a_table_for_excel_opens_alike_in_every_language(tmp_path: Path) -> None:
    named = Prediction("ü.png", "=1+1", 0.987, (("=1+1", 0.987), ("Gänse", 0.013)), outlier=0.5)
    unread = Prediction("b.png", None, 0.0, (), "empty file (0 bytes)")
    write_predictions(tmp_path / "p.csv", [named, unread], excel=True)
    data = (tmp_path / "p.csv").read_bytes()
    assert data.startswith(b"\xff\xfe")
    lines = data.decode("utf-16").split("\r\n")
    assert lines[0].split("\t")[:5] == ["path", "label", "probability", "label2", "probability2"]
    assert lines[1].split("\t") == ["ü.png", "'=1+1", "99%", "Gänse", "1%", "'=1+1", "50%", ""]
    assert lines[2].split("\t")[-1] == "empty file (0 bytes)"
    table = open_table(tmp_path / "p.csv", min_classes=1)  # and Headstart reads it as well
    assert table.classes == ("=1+1",)
