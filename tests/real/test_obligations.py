"""What the main job must reach on real photographs: two cores, offline default backbone, cold caches.

Times are limits of an AVX2 machine, see ``machine_speed``.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from machine_speed import slowness
from photographs import Timed, photographs
from sklearn.model_selection import StratifiedKFold, cross_val_score

import headstart as hs
from headstart.data import inspect


def trained(command: Callable[..., Timed], data: Path, out: Path) -> tuple[dict[str, dict[str, float]], Timed]:
    done = command("train", data, "--effort", "probe", "--out", out, "--json")
    assert done.status == 0, done.err
    return json.loads(done.out)["scores"], done


def test_the_demo_reaches_95_percent_in_under_60_seconds(command: Callable[..., Timed], tmp_path: Path) -> None:
    done = command("demo", "--out", tmp_path / "demo")
    assert done.status == 0, done.err
    scores = json.loads((tmp_path / "demo" / "run" / "scores.json").read_text())
    held_out = sum(s["correct"] for s in scores.values()) / sum(s["count"] for s in scores.values())
    assert scores["test"]["accuracy"] >= 0.95
    assert held_out >= 0.95
    assert done.seconds < 60 * slowness()
    assert (tmp_path / "demo" / "run" / "report.html").exists()


def test_flowers_reach_91_5_percent_in_under_75_seconds(
    flowers: tuple[Path, dict, Timed], command: Callable[..., Timed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, scores, done = flowers
    assert scores["val"]["count"] == 550
    assert scores["val"]["accuracy"] >= 0.915
    if done.seconds >= 75 * slowness():  # as below: once more, and as cold as the first time
        monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cold"))
        done = trained(command, photographs("flowers"), tmp_path / "again")[1]
    assert done.seconds < 75 * slowness()


def test_a_second_run_takes_under_25_seconds_and_says_why(
    flowers: tuple[Path, dict, Timed], command: Callable[..., Timed], tmp_path: Path
) -> None:
    scores, done = trained(command, photographs("flowers"), tmp_path / "again")
    assert scores == flowers[1]
    assert "the backbone does not run" in done.err
    if done.seconds >= 25 * slowness():  # as below: libraries are not in the disk cache
        done = trained(command, photographs("flowers"), tmp_path / "once more")[1]
    assert done.seconds < 25 * slowness()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (flowers[0] / "model.safetensors").read_bytes()


@pytest.mark.untimed
def test_the_two_flowers_in_both_splits_are_named(flowers: tuple[Path, dict, Timed]) -> None:
    findings = json.loads((flowers[0] / "findings.json").read_text())
    leak = next(f for f in findings if f["kind"] == "leak")
    assert sum(" = " in item for item in leak["items"]) == 2


def test_predicting_one_image_takes_under_8_seconds(
    flowers: tuple[Path, dict, Timed], command: Callable[..., Timed]
) -> None:
    """In a cold process; and it says what the run wrote down (law 5)."""
    with open(flowers[0] / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    done = command("predict", flowers[0], rows[7]["path"], "--json")
    if done.seconds >= 8 * slowness():  # what lies on the disk may have left its cache meanwhile: 5 GB of libraries
        done = command("predict", flowers[0], rows[7]["path"], "--json")
    assert done.seconds < 8 * slowness()
    (prediction,) = json.loads(done.out)
    assert prediction["label"] == rows[7]["predicted"]
    assert prediction["probability"] == pytest.approx(float(rows[7]["probability"]), abs=1e-4)


@pytest.mark.untimed
def test_evaluating_in_a_new_process_gives_the_validation_probabilities(
    flowers: tuple[Path, dict, Timed], command: Callable[..., Timed], tmp_path: Path
) -> None:
    """Law 5, on all 550."""
    assert command("evaluate", flowers[0], "--out", tmp_path / "p.csv").status == 0
    tables = []
    for file in (flowers[0] / "predictions.csv", tmp_path / "p.csv"):
        with open(file, newline="", encoding="utf-8") as handle:
            tables.append(list(csv.DictReader(handle)))
    assert [r["path"] for r in tables[0]] == [r["path"] for r in tables[1]]
    for one, two in zip(*tables, strict=True):
        for name, value in one.items():
            if name.startswith("p:"):
                assert float(two[name]) == pytest.approx(float(value), abs=1e-4)


@pytest.mark.untimed
@pytest.mark.parametrize(("name", "least"), [("hymenoptera", 0.935), ("urban_rural", 18 / 20), ("cats_dogs", 0.97)])
def test_probe_accuracy_on_val(name: str, least: float, tmp_path: Path) -> None:
    run = hs.train(photographs(name), effort="probe", out=tmp_path / "run")
    assert run.results["val"].accuracy >= least


@pytest.mark.untimed
@pytest.mark.share
def test_hotdog_cross_validated_reaches_90_percent() -> None:
    folder = photographs("hotdog")
    paths = sorted(str(p) for p in folder.glob("*/*.jpg"))
    labels = [os.path.basename(os.path.dirname(p)) for p in paths]
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    assert cross_val_score(hs.ImageClassifier(), paths, labels, cv=folds).mean() >= 0.90


@pytest.mark.untimed
def test_turned_photographs_are_upright() -> None:
    """48 hot dogs carry an EXIF rotation; a drawn split of the folder reads every one."""
    look = inspect(photographs("hotdog"))
    assert not look.scanned.faults
    assert look.split.names == ("train", "val", "test")


@pytest.mark.untimed
@pytest.mark.share
def test_quick_fine_tuning_of_flowers_reaches_95_percent(command: Callable[..., Timed], tmp_path: Path) -> None:
    done = command("train", photographs("flowers"), "--effort", "quick", "--out", tmp_path / "run", "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)["scores"]["val"]["accuracy"] >= 0.95
    run = hs.load_run(tmp_path / "run")
    assert run.best == "fine-tune from blocks.6"
    frozen = json.loads((tmp_path / "run" / "run.json").read_text())["frozen"]
    assert frozen["frozen_before"] == frozen["frozen_after"]


@pytest.mark.share
@pytest.mark.parametrize("name", ["hymenoptera", "urban_rural", "cats_dogs"])
def test_standard_is_never_below_the_probe(name: str, command: Callable[..., Timed], tmp_path: Path) -> None:
    done = command("train", photographs(name), "--effort", "standard", "--out", tmp_path / "run", "--json")
    assert done.status == 0, done.err
    rungs = {rung.name: rung for rung in hs.load_run(tmp_path / "run").rungs}
    best = rungs[hs.load_run(tmp_path / "run").best]
    assert best.correct >= rungs["probe"].correct
    assert done.seconds < 90 * slowness()


@pytest.mark.untimed
@pytest.mark.share
def test_the_fast_engine_agrees_with_plain_float32_on_flowers() -> None:
    """Top-1 of one head on 99.8 % of val, and its accuracy within 0.2 points, whichever engine gave the features."""
    from headstart.backbone.pixel_net import FeatureNet
    from headstart.backbone.weights import load_backbone
    from headstart.data.pixel_cache import pixel_store
    from headstart.engine.measure import measure_engines
    from headstart.engine.select import choose_engine
    from headstart.engine.streaming import run_stream
    from headstart.engine.torch_engine import TorchEngine
    from headstart.training.probe import refit_probe

    net = FeatureNet(load_backbone())
    look = inspect(photographs("flowers"), preprocessing=net.backbone.preprocessing)
    keys = {name: [look.scanned.keys[i] for i in look.split.positions(name)] for name in ("train", "val")}
    labels = {name: look.dataset.labels[look.split.positions(name)] for name in ("train", "val")}
    pixels = pixel_store(net.backbone.preprocessing)
    plan = measure_engines(net, pixels.read(keys["train"][:16]), count=3000)
    fast = choose_engine(net, count=3000, sample=pixels.read(keys["train"][:16]), plan=plan, exact=False)
    exact = choose_engine(net, count=3000, sample=pixels.read(keys["train"][:16]), plan=plan)
    plain = TorchEngine(net, torch.device("cpu"))

    def features(engine: Any, name: str) -> Any:
        batches = (pixels.read(keys[name][i : i + 16]) for i in range(0, len(keys[name]), 16))
        return np.concatenate(list(run_stream(engine, batches)))

    weight, bias = refit_probe(features(exact, "train"), labels["train"], classes=5, c=0.01)
    expected = (features(plain, "val") @ weight.T + bias).argmax(1)
    for engine in (fast, exact):
        given = (features(engine, "val") @ weight.T + bias).argmax(1)
        assert (given == expected).mean() >= 0.998, engine.name
        assert abs((given == labels["val"]).mean() - (expected == labels["val"]).mean()) <= 0.002
