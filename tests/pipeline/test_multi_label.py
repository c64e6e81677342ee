"""Any number of labels to an image: the whole way, as its user goes it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from random_images import COLOURS, write_mixtures
from sklearn.metrics import average_precision_score

import headstart as hs
from headstart.cli.main import app
from headstart.data.dataset import open_table
from headstart.data.inspection import inspect
from headstart.data.label_cells import join_labels
from headstart.errors import DataError, OptionError
from headstart.evaluation.metrics import LabelScores
from headstart.evaluation.predictions import Evaluated
from headstart.pipeline import train_events

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_networks")]

BACKBONE = "mobilenetv3_small_050"


def write_table(folder: Path, count: int, *, train: int | None = None) -> Path:
    """A table of mixtures beside their folder; the first ``train`` for train, the others for val."""
    rows = write_mixtures(folder / "images", count)
    cells = join_labels([labels for _, labels in rows])
    lines = ["path,labels" + (",split" if train else "")]
    for i, ((name, _), cell) in enumerate(zip(rows, cells, strict=True)):
        side = "" if train is None else ",train" if i < train else ",val"
        lines.append(f"images/{name},{cell}{side}")
    (folder / "colours.csv").write_text("\n".join(lines) + "\n")
    return folder / "colours.csv"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("data"), 160)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(timm.create_model(BACKBONE, num_classes=0).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def run(data: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> hs.Run:
    return hs.train(
        data, out=tmp_path_factory.mktemp("run") / "probe", backbone=BACKBONE, weights=str(weights), image_size=64
    )


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_run_reports_scores_and_findings_of_each_label(run: hs.Run) -> None:
    assert run.scores.name == "cross-validation"  # val and test have under 30 images each
    scores = run.results["test"]
    assert isinstance(scores, LabelScores)
    assert [c.label for c in scores.classes] == list(COLOURS)
    assert scores.mean_average_precision > 0.7  # chance: 0.5
    assert scores.map_low < scores.mean_average_precision < scores.map_high
    assert scores.sentence.startswith("test mAP ")
    again = hs.load_run(run.folder)
    assert again.results == run.results
    report = run.report_path.read_text()
    for text in ("3 labels (multi-label)", "average precision", "threshold", "metrics by label", "micro F1"):
        assert text in report
    assert "Confusion" not in report
    assert scores.sentence in report


def test_every_figure_follows_from_the_predictions(run: hs.Run) -> None:
    for name, scores in run.results.items():
        assert isinstance(scores, LabelScores)
        file = "cross-validation.csv" if name == "cross-validation" else "predictions.csv"
        own = [row for row in rows_of(run.folder / file) if row["split"] == name]
        truth, given = (
            np.array([[c in row[column].split("|") for c in COLOURS] for row in own])
            for column in ("labels", "predicted")
        )
        chances = np.array([[float(row[f"p:{c}"]) for c in COLOURS] for row in own])
        assert scores.count == len(own)
        assert scores.correct == (truth == given).all(1).sum()
        precisions = [average_precision_score(truth[:, i], chances[:, i]) for i in range(3)]
        assert scores.mean_average_precision == pytest.approx(np.mean(precisions))
        assert scores.micro_f1 == pytest.approx(2 * (truth & given).sum() / (truth.sum() + given.sum()))
        for i, label in enumerate(scores.classes):
            hits = (truth[:, i] & given[:, i]).sum()
            assert label.recall == pytest.approx(hits / truth[:, i].sum())
            assert label.precision == pytest.approx(hits / max(1, given[:, i].sum()))
            assert label.support == truth[:, i].sum()
            assert label.average_precision == pytest.approx(precisions[i])
        if name == "test":  # which chose no threshold
            assert np.array_equal(given, chances >= [c.threshold for c in scores.classes])


def test_the_model_gives_labels_by_its_thresholds_and_is_the_same_when_it_is_loaded(
    run: hs.Run, tmp_path: Path
) -> None:
    model = hs.load(run.folder)
    assert model.thresholds == tuple(c.threshold for c in run.results["val"].classes)
    rows = [row for row in rows_of(run.folder / "predictions.csv") if row["split"] == "test"]
    predictions = model.predict([row["path"] for row in rows])
    for row, prediction in zip(rows, predictions, strict=True):
        assert prediction.labels is not None
        assert "|".join(sorted(label for label, _ in prediction.labels)) == row["predicted"].strip("|")
        assert prediction.label == max(COLOURS, key=lambda c: float(row[f"p:{c}"]))
        for label, chance in prediction.labels:
            assert chance == pytest.approx(float(row[f"p:{label}"]), abs=1e-4)
    again = hs.load(model.save(tmp_path / "m.safetensors"))
    assert again.thresholds == model.thresholds
    assert again.predict([row["path"] for row in rows]) == predictions
    (tmp_path / "none.jpg").write_text("no image")
    unread = model.predict(tmp_path / "none.jpg")
    assert unread.error is not None
    assert unread.labels is None


def test_a_run_scored_again_gives_the_same_figures(run: hs.Run) -> None:
    again = hs.evaluate(run.folder)
    for part in again:
        expected = run.results[part.scores.name]
        assert isinstance(part.scores, LabelScores)
        assert part.scores.correct == expected.correct
        assert part.scores.mean_average_precision == pytest.approx(expected.mean_average_precision, abs=1e-6)


def test_a_runs_table_of_images_is_data_like_any_other(run: hs.Run) -> None:
    data = open_table(run.folder / "split.csv")
    assert data.multi_label
    assert data.classes == tuple(COLOURS)
    assert len(data) == 160
    (part,) = [e for e in hs.evaluate(run.folder, run.folder / "split.csv") if e.scores.name == "test"]
    assert part.scores.correct == run.results["test"].correct


@pytest.mark.exhaustive
def test_fine_tuning_learns_several_labels(data: Path, weights: Path, tmp_path: Path) -> None:
    events = list(
        train_events(
            data,
            out=tmp_path / "run",
            backbone=BACKBONE,
            weights=str(weights),
            image_size=64,
            effort="quick",
            unfreeze="blocks.4",
            label_smoothing=0.0,
            cutmix=0.0,
            epochs=3,
        )
    )
    run = hs.load_run(tmp_path / "run")
    epochs = [e for e in events if e.kind == "epoch"]
    assert epochs[-1]["loss"] < 0.95 * epochs[0]["loss"]
    assert run.rungs[2].epochs == 3
    model = hs.load(run.folder)
    (test,) = [e for e in hs.evaluate(run.folder) if e.scores.name == "test"]
    assert np.allclose(test.probabilities, model.predict_proba(test.paths)[0])
    assert run.curves_path.is_file()


@pytest.mark.exhaustive
def test_heads_by_steps_learn_several_labels(data: Path, weights: Path, tmp_path: Path) -> None:
    run = hs.train(data, out=tmp_path / "run", backbone=BACKBONE, weights=str(weights), image_size=64, head="64-0.2")
    assert isinstance(run.scores, LabelScores)
    assert run.best == "head 64-0.2"
    assert run.scores.mean_average_precision > 0.65


@pytest.mark.exhaustive
def test_a_loop_by_hand_gets_targets_for_binary_cross_entropy(data: Path, weights: Path) -> None:
    bench = hs.prepare(data, backbone=BACKBONE, weights=str(weights), image_size=64, unfreeze="blocks.4")
    x, labels = next(bench.batches("train"))
    assert labels.dtype == torch.float32
    assert labels.shape == (len(x), 3)
    torch.nn.functional.binary_cross_entropy_with_logits(bench.classifier(x), labels).backward()
    assert isinstance(bench.scores(), LabelScores)
    assert bench.model().thresholds is not None


def test_one_label_alone_is_given_or_not(weights: Path, tmp_path: Path) -> None:
    rows = write_mixtures(tmp_path / "images", 60)
    lines = [f"images/{name},{int('red' in labels)}" for name, labels in rows]
    (tmp_path / "red.csv").write_text("path,red\n" + "\n".join(lines))
    run = hs.train(
        tmp_path / "red.csv", out=tmp_path / "run", backbone=BACKBONE, weights=str(weights), image_size=64, val=0.3
    )
    assert hs.load(run.folder).predict_proba([tmp_path / "images" / "0.png"])[0].shape == (1, 1)
    assert isinstance(run.scores, LabelScores)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"probe": "svm"}, "probe svm: applies to images of one class each"),
        ({"balance_classes": True}, "balance_classes: applies to images of one class each"),
        ({"single_logit": True}, "single_logit: applies to images of one class each"),
        ({"extend": "pretrained"}, "extend: applies to images of one class each"),
    ],
)
def test_single_label_options_are_refused_by_name(
    data: Path, tmp_path: Path, choices: dict[str, object], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        hs.train(data, out=tmp_path / "run", **choices)
    assert not (tmp_path / "run").exists()


@pytest.mark.exhaustive
def test_models_and_data_of_two_kinds_are_not_mixed(
    run: hs.Run, data: Path, weights: Path, three_colours: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="one class per image, but the model predicts several labels"):
        hs.evaluate(run.folder, three_colours)
    with pytest.raises(OptionError, match="a multi-label model cannot be extended"):
        hs.train(three_colours, out=tmp_path / "extended", extend=str(run.folder))
    single = hs.train(three_colours, out=tmp_path / "one", backbone=BACKBONE, weights=str(weights), image_size=64)
    with pytest.raises(DataError, match=r"several labels per image .*, but the model predicts one class"):
        hs.evaluate(single.folder, data)


def test_labels_that_stand_on_every_image_or_on_none_are_named(weights: Path, tmp_path: Path) -> None:
    rows = write_mixtures(tmp_path / "images", 40)
    lines = [f"images/{name},1,{int('red' in labels)},0" for name, labels in rows]
    (tmp_path / "t.csv").write_text("path,image,red,moon\n" + "\n".join(lines))
    found = {finding.kind: finding for finding in inspect(tmp_path / "t.csv").findings}
    assert found["constant-label"].items == ("image",)
    assert "moon" in found["missing-class"].items
    (tmp_path / "t.csv").write_text("path,image\n" + "\n".join(line[: line.index(",") + 2] for line in lines))
    with pytest.raises(DataError, match="every label applies to every image or to none"):
        hs.train(tmp_path / "t.csv", out=tmp_path / "run", backbone=BACKBONE, weights=str(weights), image_size=64)


def test_the_commands_speak_of_labels(run: hs.Run, data: Path, tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    scored = said("evaluate", run.folder)
    assert "test mAP" in scored
    assert "average precision  threshold" in scored
    Image.new("RGB", (48, 40), (128, 128, 128)).save(tmp_path / "grey.png")
    images = [data.parent / "images" / "7.png", tmp_path / "grey.png"]
    predictions = hs.load(run.folder).predict(images)
    for line, prediction in zip(said("predict", run.folder, *images).splitlines(), predictions, strict=True):
        words = "  ".join(f"{label} {100 * chance:.1f} %" for label, chance in prediction.labels or ())
        nothing = ("none of the labels (nearest: ", "none of these (nearest: ")  # the second for a strange image
        assert words in line if words else any(text in line for text in nothing)
    document = json.loads(said("predict", run.folder, *images, "--json"))
    assert [pair["label"] for pair in document[0]["labels"]] == [name for name, _ in predictions[0].labels or ()]
    said("predict", run.folder, *images, "--out", tmp_path / "p.csv")
    table = rows_of(tmp_path / "p.csv")
    assert list(table[0])[:2] == ["path", "labels"]
    assert set(table[0]["labels"].strip("|").split("|")) == {name for name, _ in predictions[0].labels or ()}
    assert "blue" in said("check", data, "--image-size", 64)


@pytest.mark.exhaustive
def test_compare_runs_the_methods_that_support_multi_label_data(data: Path, weights: Path, tmp_path: Path) -> None:
    found = hs.compare(
        data,
        out=tmp_path / "compared",
        only=["probes"],
        backbone=BACKBONE,
        weights=str(weights),
        image_size=64,
    )
    assert [row.name for row in found.rows] == ["logistic regression"]


def test_mistakes_are_listed_most_confident_first() -> None:
    labels = np.array([[1, 0], [0, 1], [1, 1]])
    chances = np.array([[0.9, 0.6], [0.2, 0.9], [0.05, 0.9]])
    given = (chances >= 0.5).astype(np.int64)
    part = Evaluated(None, ("a", "b", "c"), labels, given, chances, ("x", "y"))  # type: ignore[arg-type]
    assert part.mistakes() == [2, 0]
    assert part.names_of(given) == ["x|y", "y", "y"]
