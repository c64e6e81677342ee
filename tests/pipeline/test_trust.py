"""Calibration and out-of-distribution detection, from training to the command line."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from random_images import mislabel, write_classes

import headstart as hs
from headstart.cli.main import app
from headstart.errors import OptionError
from headstart.evaluation.reliability import reliability
from headstart.prediction import NONE_OF_THESE, UNSURE, Prediction
from headstart.progress import SilentProgress
from headstart.reports.model_card import model_card
from headstart.serve.schemas import model_info
from headstart.trust.calibration import Calibration
from headstart.verbs.report import write_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> hs.Run:
    folder = tmp_path_factory.mktemp("trust")
    data = mislabel(write_classes(folder / "colours", {"blue": 130, "green": 130, "red": 130}), "blue", "red", 30)
    return hs.train(data, out=folder / "run", image_size=64, val=0.3, target_accuracy=0.93)


def rows(run: hs.Run) -> list[dict[str, str]]:
    with open(run.folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_calibrates_its_model_and_writes_down_what_it_found(run: hs.Run) -> None:
    model = hs.load(run.folder)
    own = model.calibration
    assert own.images == run.results["val"].count >= 100
    assert own.source == f"{own.images} validation images"
    assert own.num_inliers > own.images  # a drawn split: training images say what is usual as well
    assert own.target_accuracy == 0.93
    written = json.loads((run.folder / "run.json").read_text())["calibration"]
    assert {name: written[name] for name in own.as_json()} == own.as_json()
    test = next(entry for entry in written["reliability"] if entry["name"] == "test")
    part = [row for row in rows(run) if row["split"] == "test"]
    chances = np.array([float(row["probability"]) for row in part])
    right = np.array([row["label"] == row["predicted"] for row in part])
    assert test["error"] == pytest.approx(reliability("", chances, right).error)
    report = re.sub("</?span[^>]*>", "", run.report_path.read_text())
    kept = sum(float(row["outlier"]) <= 0.95 for row in part)
    for text in (
        'id="calibration"',
        f"Temperature scaling: {own.temperature:.2f}",
        f"test {100 * test['error']:.1f} points",
        "the target accuracy of 93 %",
        f"({kept}/{len(part)}), 95 % CI",
    ):
        assert text in " ".join(report.split())


def test_a_model_says_when_it_had_better_not_answer(run: hs.Run, tmp_path: Path) -> None:
    model = hs.load(run.folder)
    board = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((8, 8))) * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "board.png")
    strange = model.predict(tmp_path / "board.png")
    assert strange.outlier is not None
    assert strange.outlier > 0.99
    assert strange.answer == NONE_OF_THESE
    assert strange.label in model.classes  # what it would be, if it were one
    predictions = model.predict([row["path"] for row in rows(run)])
    for row, prediction in zip(rows(run), predictions, strict=True):
        near = 0.06 if row["split"] == "val" else 0.02  # of val, each fifth by the distances of the others
        assert prediction.outlier == pytest.approx(float(row["outlier"]), abs=near)
        unsure = prediction.probability < model.calibration.threshold
        assert prediction.unsure == unsure
        odd = prediction.outlier is not None and prediction.outlier > 0.95
        assert prediction.answer == (NONE_OF_THESE if odd else UNSURE if unsure else prediction.label)
    assert {p.answer for p in predictions} >= {UNSURE, "blue", "green", "red"}
    again = hs.load(model.save(tmp_path / "m.safetensors"))
    assert again.predict([row["path"] for row in rows(run)]) == predictions


def test_the_command_gives_the_answer_and_what_it_would_have_been(run: hs.Run, tmp_path: Path) -> None:
    board = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((8, 8))) * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "board.png")
    (tmp_path / "empty.png").write_bytes(b"")
    sure = next(row["path"] for row in rows(run) if float(row["probability"]) > 0.95 and float(row["outlier"]) < 0.9)
    images = [str(tmp_path / "board.png"), sure, str(tmp_path / "empty.png")]
    said = CliRunner().invoke(app, ["predict", str(run.folder), *images]).stdout.splitlines()
    assert "none of these (nearest: " in said[0]
    assert "nearest" not in said[1]
    documents = json.loads(CliRunner().invoke(app, ["predict", str(run.folder), *images, "--json"]).stdout)
    assert [d["answer"] for d in documents] == ["none of these", documents[1]["label"], None]
    assert documents[0]["outlier"] > 0.99
    CliRunner().invoke(app, ["predict", str(run.folder), *images, "--out", str(tmp_path / "p.csv")])
    table = list(csv.DictReader((tmp_path / "p.csv").open(newline="")))
    assert [row["answer"] for row in table] == ["none of these", documents[1]["label"], ""]
    assert table[2]["outlier"] == ""


def test_a_run_scored_again_knows_what_is_usual(run: hs.Run) -> None:
    for part in hs.evaluate(run.folder):
        assert part.outliers is not None
        own = [float(row["outlier"]) for row in rows(run) if row["split"] == part.scores.name]
        assert np.allclose(part.outliers, own, atol=0.06 if part.scores.name == "val" else 0.02)


def test_a_model_without_calibration_answers_with_its_label() -> None:
    assert Prediction("x.jpg", "cat", 0.4, (("cat", 0.4),)).answer == "cat"
    assert Prediction("x.jpg", None, 0.0, (), "empty").answer is None
    assert Prediction("x.jpg", "cat", 0.4, (("cat", 0.4),), labels=()).answer == ""


@pytest.mark.parametrize("wanted", [0.0, 1.0, -1])
def test_an_accuracy_that_nobody_reaches_is_refused(run: hs.Run, tmp_path: Path, wanted: float) -> None:
    with pytest.raises(OptionError, match="target_accuracy"):
        hs.train(run.folder / "split.csv", out=tmp_path / "run", target_accuracy=wanted)


@pytest.fixture(scope="module")
def without_val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and test folders, as most data come."""
    folder = tmp_path_factory.mktemp("without") / "colours"
    mislabel(write_classes(folder / "train", {"blue": 40, "green": 40}), "blue", "green", 9)
    return write_classes(folder / "test", {"blue": 16, "green": 16}, first_seed=900).parent


@pytest.fixture(scope="module")
def folded(without_val: Path) -> tuple[hs.Run, str]:
    told: list[str] = []

    class Told(SilentProgress):
        def say(self, text: str) -> None:
            told.append(text)

    out = without_val.parent / "run"
    return hs.train(without_val, out=out, image_size=64, progress=Told()), "\n".join(told)


def test_without_val_training_images_calibrate_by_cross_validation(folded: tuple[hs.Run, str]) -> None:
    run, told = folded
    model = hs.load(run.folder)
    assert model.calibration.images == 80
    assert model.calibration.source == "80 training images by 5-fold cross-validation"
    assert model.ood_detector is not None
    assert set(run.results) == {"test"}
    for text in (told, run.report_path.read_text(), (run.folder / "README.md").read_text()):
        assert "80 training images by 5-fold cross-validation" in text
    assert "Val selected" not in run.report_path.read_text()
    kept = [row for row in rows(run) if float(row["outlier"]) <= 0.95]
    assert f"of the test images ({len(kept)}/32)" in told


def test_what_is_missing_is_said_in_one_sentence_everywhere(folded: tuple[hs.Run, str], tmp_path: Path) -> None:
    model = hs.load(folded[0].folder)
    model = model.replace(calibration=Calibration(missing="it is too warm. Open a window"))
    sentence = "Not calibrated: it is too warm. Open a window."
    assert model.calibration_text == sentence
    file = model.save(tmp_path / "m.safetensors")
    assert hs.load(file).calibration_text == sentence
    assert model_info(model, engine=None).calibration == sentence
    image = next(row["path"] for row in rows(folded[0]))
    said = CliRunner().invoke(app, ["predict", str(file), image])
    assert sentence in said.stderr
    (document,) = json.loads(CliRunner().invoke(app, ["predict", str(file), image, "--json"]).stdout)
    assert document["uncalibrated"] == sentence
    document = json.loads((folded[0].folder / "run.json").read_text())
    assert sentence in model_card(model, folded[0].results, document)
    assert sentence in write_report(folded[0].folder, document, model, tmp_path / "report.html").read_text()


def test_where_few_images_are_held_out_a_cross_validated_score_comes_first(tmp_path: Path) -> None:
    write_classes(tmp_path / "d" / "train", {"blue": 12, "green": 12, "red": 1})
    write_classes(tmp_path / "d" / "val", {"blue": 1}, first_seed=900)
    run = hs.train(tmp_path / "d", out=tmp_path / "run", image_size=64)
    assert list(run.results) == ["cross-validation", "val"]
    assert run.results["val"].count == 1
    assert run.scores.name == "cross-validation"
    assert run.scores.count == 24  # the one image of its class is always learnt from
    assert hs.load_run(run.folder).results == run.results
    assert list(hs.load(run.folder).scores) == ["cross-validation", "val"]
    report, card = run.report_path.read_text(), (run.folder / "README.md").read_text()
    assert report.index("cross-validation accuracy ") < report.index("val accuracy 100.0 % (1/1)")
    assert card.index("cross-validation accuracy ") < card.index("val accuracy 100.0 % (1/1)")
    assert "Not calibrated" in report
    assert "Add labelled images" in card
