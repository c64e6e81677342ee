"""The ladder of fine-tuning: which rung is kept, and what happens when a rung's training diverges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_images import mislabel, write_classes
from safetensors.torch import save_file

import headstart as hs
from headstart.backbone.weights import random_backbone
from headstart.errors import Diverged
from headstart.pipeline import fine_tune
from headstart.pipeline.ladder_state import JudgedRung

pytestmark = pytest.mark.usefixtures("small_networks")

WRONG_AND_LOSS = {1: (6, 0.1), 2: (12, 0.3)}
"""Rung -> mistakes and mean loss that its judgement is replaced by: the first one is the best."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels that the images do not explain, so that the probe leaves much to gain."""
    return mislabel(write_classes(tmp_path_factory.mktemp("data") / "two", {"a": 30, "b": 30}), "a", "b", 30)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(random_backbone("test_resnet", image_size=32, seed=3).module.state_dict(), file)
    return {"backbone": "test_resnet", "weights": str(file), "image_size": 32, "device": "cpu", "views": 1}


class Rungs:
    """Trains the rungs, replaces how they are judged, and lets one of them diverge."""

    def __init__(self, diverges: int = 0) -> None:
        self.diverges = diverges
        self.states: dict[int, dict[str, torch.Tensor]] = {}
        self.run_rung = fine_tune.run_rung

    def __call__(self, ladder: Any, number: int, *given: Any) -> JudgedRung:
        if number == self.diverges:
            raise Diverged("Fine-tuning diverged: in epoch 1 the loss is not a finite number.")
        judged = self.run_rung(ladder, number, *given)
        module = ladder.splittable.module
        self.states[number] = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        wrong, loss = WRONG_AND_LOSS[number]
        places = np.arange(len(judged.correct))
        return replace(judged, correct=places >= wrong, losses=loss * (1 + 0.3 * np.sin(places)))


def climb(
    rungs: Rungs, data: Path, options: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> tuple[hs.Run, list[str]]:
    """A run with two rungs, and its messages."""
    messages: list[str] = []
    monkeypatch.setattr(fine_tune, "run_rung", rungs)

    def listen(event: Any) -> None:
        if event.kind == "message":
            messages.append(event["text"])

    choices = {"effort": "standard", "epochs": 1} | more
    return hs.train(data, out=out, listener=listen, **options, **choices), messages


def weights_of(run: hs.Run) -> dict[str, torch.Tensor]:
    return dict(hs.load(run.model_path).net.backbone.module.state_dict())


@pytest.mark.slow
def test_the_best_rung_is_kept_and_not_the_last(
    data: Path, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rungs = Rungs()
    run, messages = climb(rungs, data, options, tmp_path / "run", monkeypatch)
    assert len(rungs.states) == 2, messages
    kept = weights_of(run)
    assert all(torch.equal(tensor, rungs.states[1][name]) for name, tensor in kept.items())
    assert any(not torch.equal(tensor, rungs.states[2][name]) for name, tensor in kept.items())
    decisions = [rung.decision for rung in run.rungs[-2:]]
    assert decisions[0].startswith("kept; the gain is significant; trying the next rung")
    assert decisions[1].startswith("not kept; no significant gain")


@pytest.mark.slow
@pytest.mark.parametrize("diverges", [1, 2])
def test_a_rung_that_diverges_ends_the_ladder_with_a_warning_and_the_best_before_it_is_kept(
    diverges: int, data: Path, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rungs = Rungs(diverges)
    run, messages = climb(rungs, data, options, tmp_path / "run", monkeypatch)
    warnings = [text for text in messages if "is not kept. Fine-tuning diverged" in text]
    assert len(warnings) == 1
    assert list(rungs.states) == list(range(1, diverges))
    pretrained = random_backbone("test_resnet", image_size=32, seed=3).module.state_dict()
    expected = rungs.states.get(1, pretrained)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(run).items())


@pytest.mark.slow
def test_a_depth_that_was_asked_for_and_diverges_is_an_error(
    data: Path, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Diverged):
        climb(Rungs(1), data, options, tmp_path / "run", monkeypatch, unfreeze="layer4")
