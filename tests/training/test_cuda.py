"""Tests that need a GPU; skipped without one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from random_images import mislabel, write_classes
from small_fine_tuning import SETTINGS, prepared

import headstart as hs
from headstart.backbone.pixel_net import FeatureNet
from headstart.backbone.weights import random_backbone
from headstart.engine.streaming import run_stream
from headstart.engine.torch_engine import TorchEngine
from headstart.pipeline import train_events
from headstart.pipeline.resume import resume
from headstart.training import finetune
from headstart.training.finetune import FineTuneSettings, fine_tune
from headstart.training.suffix_evaluation import logits_of
from headstart.training.tuning import Tuning

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CHOICES = {"image_size": 64, "effort": "quick", "unfreeze": "blocks.6", "epochs": 4, "views": 2, "device": "cuda"}


def tuned(
    settings: FineTuneSettings, device: torch.device, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    split, train, val, head = prepared()
    found = fine_tune(split, "layer3", head, train, val, settings, device=device, dtype=dtype)
    logits = logits_of(split, "layer3", val, found.head, device=device)
    state = {name: tensor.clone() for name, tensor in split.module.state_dict().items()}
    assert all(tensor.device == CPU for tensor in (*state.values(), *found.head.state_dict().values()))
    return state | {"logits": torch.from_numpy(logits), **found.head.state_dict()}


def differences(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    return max(float((one[name].double() - two[name].double()).abs().max()) for name in one)


def test_features_in_float32_are_those_of_the_cpu() -> None:
    """No TF32: it would move them by 1e-3."""
    images = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    expected = TorchEngine(FeatureNet(random_backbone("resnet18", image_size=64, seed=1)), CPU)(images)
    engine = TorchEngine(FeatureNet(random_backbone("resnet18", image_size=64, seed=1)), CUDA)
    assert np.abs(engine(images) - expected).max() < 1e-4 * np.abs(expected).max()
    streamed = np.concatenate(list(run_stream(engine, [images[:7], images[7:30], images[30:]])))
    assert np.abs(streamed - expected).max() < 1e-4 * np.abs(expected).max()


def recorded_steps(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the step of each fine-tuning from here on is recorded; filled while they run."""
    seen: list[bool] = []
    record = finetune._Trainer.record_step

    def noting(trainer: finetune._Trainer) -> None:
        record(trainer)
        seen.append(trainer.recorded is not None)

    monkeypatch.setattr(finetune._Trainer, "record_step", noting)
    return seen


def test_a_gpu_ends_at_the_weights_of_a_cpu() -> None:
    settings = replace(SETTINGS, epochs=2)
    assert differences(tuned(settings, CUDA), tuned(settings, CPU)) < 2e-3


def test_low_rank_updates_are_recorded_and_merged_into_the_weights_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = recorded_steps(monkeypatch)
    states = []
    for device in (CUDA, CPU):
        split, train, val, head = prepared("test_vit", "blocks.3")
        settings = replace(SETTINGS, epochs=2, tuning=Tuning("lora", rank=4))
        fine_tune(split, "blocks.3", head, train, val, settings, device=device)
        states.append({name: tensor.clone() for name, tensor in split.module.state_dict().items()})
    assert seen == [True, False]
    assert differences(*states) < 2e-3


def test_a_recorded_step_is_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = tuned(SETTINGS, CUDA)
    monkeypatch.setattr(finetune._Trainer, "record_step", lambda _self: None)
    assert differences(recorded, tuned(SETTINGS, CUDA)) < 1e-4


def test_steps_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = recorded_steps(monkeypatch)
    for dtype in (torch.float32, torch.bfloat16):
        tuned(SETTINGS, CUDA, dtype)
    assert seen == [True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_seed_gives_the_same_weights(dtype: torch.dtype) -> None:
    assert differences(tuned(SETTINGS, CUDA, dtype), tuned(SETTINGS, CUDA, dtype)) == 0


def test_a_run_on_a_gpu_writes_what_any_run_writes_and_its_model_says_the_same_on_a_cpu(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "mixed", {"first": 24, "second": 24})
    run = hs.train(mislabel(data, "first", "second", 24), out=tmp_path / "run", **CHOICES)
    assert run.report_path.exists()
    frozen = json.loads((run.folder / "run.json").read_text())["frozen"]
    assert frozen["frozen_before"] == frozen["frozen_after"]
    files = [str(path) for path in sorted(data.rglob("*.png"))[:12]]
    model = hs.load(run.model_path)
    on_cpu, _ = model.predict_proba(files, device="cpu")
    on_gpu, _ = hs.load(run.model_path).predict_proba(files, device="cuda")
    assert np.abs(on_cpu - on_gpu).max() < 1e-3


def test_a_run_on_a_gpu_goes_on(tmp_path: Path) -> None:
    data = mislabel(write_classes(tmp_path / "mixed", {"first": 24, "second": 24}), "first", "second", 24)
    whole = hs.train(data, out=tmp_path / "whole", **CHOICES)
    events = train_events(data, out=tmp_path / "left", **CHOICES)
    for event in events:
        if event.kind == "checkpoint" or (event.kind == "validation" and event["epoch"] >= 1):
            break
    events.close()
    again = resume(tmp_path / "left")
    assert [r.correct for r in again.rungs] == [r.correct for r in whole.rungs]
