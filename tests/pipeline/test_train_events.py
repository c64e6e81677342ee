"""Events of a listener, learning curves, and HTML for notebooks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from random_images import mislabel, write_classes

import headstart as hs
from headstart.backbone import load_backbone
from headstart.errors import DataError, OptionError
from headstart.pipeline import train_events
from headstart.progress import SilentProgress
from headstart.reports.curves import CurvePoint, curve_charts
from headstart.runs import Event
from headstart.runs.log import read_log

pytestmark = pytest.mark.usefixtures("small_networks")

CHOICES = {"image_size": 64, "device": "cpu", "effort": "quick", "unfreeze": "blocks.6", "epochs": 2, "views": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third of each class is of the other, so that the probe leaves something to mend."""
    folder = write_classes(tmp_path_factory.mktemp("data") / "two", {"first": 24, "second": 24})
    return mislabel(folder, "first", "second", 24)


@pytest.fixture(scope="module")
def told(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    out = tmp_path_factory.mktemp("runs") / "run"
    return list(train_events(data, out=out, **CHOICES))


def test_every_kind_of_event_is_emitted_in_order(told: list[Event]) -> None:
    kinds = [event.kind for event in told]
    main = [kind for kind in kinds if kind not in ("message", "progress", "step", "plan")]
    assert main[:7] == ["images", "findings", "engine", "stage", "mistakes", "findings", "rung"]
    assert main[-2:] == ["rung", "finished"]
    begins = max(place for place, kind in enumerate(kinds) if kind == "stage")
    for kind in ("step", "epoch", "checkpoint"):
        assert begins < kinds.index(kind) < len(kinds) - 1
    steps = [event for event in told if event.kind == "step"]
    assert [event["step"] for event in steps] == list(range(1, steps[0]["steps"] + 1))
    assert all(earlier.time <= later.time for earlier, later in pairwise(told))
    for task in {event["task"] for event in told if event.kind == "progress"}:
        done = [event["done"] for event in told if event.kind == "progress" and event["task"] == task]
        assert done[0] == 0


def test_the_log_contains_every_event_except_steps(told: list[Event]) -> None:
    kept = [event for event in told if event.kind not in ("message", "progress", "step")]
    written = read_log(Path(told[-1]["run"]))
    assert [entry["event"] for entry in written] == [event.kind for event in kept]
    assert written[-1]["scores"] == kept[-1]["scores"]


def test_each_stage_says_which_groups_it_trains(told: list[Event]) -> None:
    stages = [event for event in told if event.kind == "stage"]
    probe, tuned = stages
    assert (probe["stage"], tuned["stage"]) == ("probe", "fine-tune from blocks.6")
    trained = {stage["stage"]: [name for name, _, trained in stage["layers"] if trained] for stage in stages}
    assert trained == {"probe": ["head"], "fine-tune from blocks.6": ["blocks.6", "conv_head", "bn2", "head"]}
    buffers = load_backbone(image_size=64).module.named_buffers()
    statistics = sum(tensor.numel() for name, tensor in buffers if "running" in name)
    for stage in stages:
        assert stage["trainable"] + stage["frozen"] == sum(weights for _, weights, _ in stage["layers"])
        assert stage["trainable"] == sum(own for _, _, own in stage["layers"])
        assert stage["statistics"] == statistics
        assert not stage["learns_statistics"]
    said = [event["text"] for event in told if event.kind == "message" and event["text"].startswith("Stage ")]
    total = f"{probe['trainable'] + probe['frozen']:,}"
    assert f"trains only the head, 258 of {total} weights; frozen: conv_stem to bn2" in said[0]
    assert "trains blocks.6 to bn2 and the head" in said[1]


@pytest.mark.exhaustive
def test_a_run_that_is_left_stops_and_can_be_gone_on_with(data: Path, tmp_path: Path) -> None:
    for event in train_events(data, out=tmp_path / "run", **CHOICES):
        if event.kind == "stage":
            break
    assert not (tmp_path / "run" / "run.json").exists()
    *_, last = train_events(resume_from=tmp_path / "run")
    assert last.kind == "finished"
    assert hs.load_run(last["run"]).best == last["best"]


class Slow(SilentProgress):
    """Each step of a task takes a moment, so that the run does not finish before the loop over its events is left."""

    @contextmanager
    def task(self, name: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        yield lambda _steps: time.sleep(0.02)


def test_a_run_that_is_left_before_anything_was_learnt_leaves_nothing_behind(data: Path, tmp_path: Path) -> None:
    for event in train_events(data, out=tmp_path / "run", progress=Slow(), **CHOICES):
        assert event.kind == "progress"  # of reading the images
        break
    assert not (tmp_path / "run").exists()


def test_an_error_of_the_run_rises_in_the_loop(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        list(train_events(tmp_path / "nowhere"))
    with pytest.raises(OptionError, match="either a source to train on or resume_from"):
        list(train_events())


@pytest.mark.slow
def test_heads_that_are_trained_by_steps_have_curves_too(data: Path, tmp_path: Path) -> None:
    choices = {"head": "16", "head_epochs": 3, "head_lr": 2e-3}
    run = hs.train(data, out=tmp_path / "run", image_size=64, device="cpu", **choices)
    tried = json.loads((run.folder / "run.json").read_text())["head"]["tried"]
    assert {one["lr"] for one in tried} == {2e-3}
    log = read_log(run.folder)
    epochs = [entry for entry in log if entry["event"] == "epoch"]
    assert [entry["epoch"] for entry in epochs] == [0, 1, 2]
    assert all(0 <= entry["accuracy"] <= 1 for entry in epochs)
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    best = max((e for e in log if e["event"] == "validation"), key=lambda e: (e["correct"], -e["log_loss"]))
    assert best["accuracy"] == pytest.approx(run.results["val"].accuracy)
    assert run.curves_path.read_text().count("<polyline") == 4


def test_curves_are_an_image_of_every_stage() -> None:
    points = [CurvePoint("one", i, 1.0 / (i + 1), 0.5, 0.9, 0.6) for i in range(3)]
    points += [CurvePoint("two", 0, 0.2, 0.9)]
    for chart in curve_charts(points):
        drawn = ElementTree.fromstring(chart)
        words = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
        assert {"one", "two", "train (augmented images)", "val", "epoch"} <= set(words)
        lines = [line.get("points", "").split() for line in drawn.iter("{http://www.w3.org/2000/svg}polyline")]
        assert [len(line) for line in lines] == [4, 3]


def test_run_model_and_data_show_themselves_in_a_notebook(told: list[Event], data: Path, tmp_path: Path) -> None:
    run = hs.load_run(told[-1]["run"])
    shown = run._repr_html_()
    for piece in (run.scores.sentence, "fine-tune from blocks.6", "data:image/svg+xml;base64,", str(run.report_path)):
        assert piece in shown
    model = hs.load(run.model_path)._repr_html_()
    assert "tf_efficientnet_lite0" in model
    assert "first, second" in model
    assert f"({run.scores.correct}/{run.scores.count})" in model
    dataset = hs.open_data(data)._repr_html_()
    assert dataset.count("data:image/jpeg;base64,") == 8
    odd = write_classes(tmp_path / "odd", {"<script>": 2, "b": 2})
    assert "<script>" not in hs.open_data(odd)._repr_html_()
