"""The proof that what is frozen stays as it is: every way to break it ends the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from altered_training import alter_in_training, write_brief_reports
from random_images import mislabel, write_classes
from safetensors.torch import save_file
from torch import Tensor

import headstart as hs
from headstart.backbone.weights import random_backbone
from headstart.errors import TrainingError
from headstart.pipeline import choose_layers, train_rung
from headstart.pipeline.inspect_images import Inspected
from headstart.pipeline.load import Job, Loaded
from headstart.runs.events import Event
from headstart.training.frozen_proof import tensors_of
from headstart.training.ladder import FOLDS


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny pretrained network."""
    file = tmp_path_factory.mktemp("weights") / "resnet.safetensors"
    save_file(random_backbone("test_resnet", image_size=32, seed=3).module.state_dict(), file)
    return {"backbone": "test_resnet", "weights": str(file), "image_size": 32, "device": "cpu"}


TUNED = {"effort": "quick", "unfreeze": "layer4", "epochs": 1, "views": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mislabel(write_classes(tmp_path_factory.mktemp("data") / "two", {"a": 15, "b": 15}), "a", "b", 15)


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    write_brief_reports(monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "at"),
    [("layer2.0.conv1.weight", FOLDS + 1), ("layer1.0.bn1.running_mean", FOLDS + 1), ("layer4.0.bn1.running_var", 2)],
)
def test_a_run_in_which_a_frozen_tensor_is_altered_fails_and_has_no_result(
    name: str, at: int, data: Path, choices: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 3, in the rung and in a fold of its cross-validation."""
    alter_in_training(monkeypatch, name, at=at)
    with pytest.raises(TrainingError, match=name):
        hs.train(data, out=tmp_path / "run", **choices, **TUNED)
    assert not (tmp_path / "run" / "run.json").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()


class Stopped(Exception):
    pass


@pytest.mark.slow
def test_a_rung_that_finished_before_a_stop_brings_its_proof_along(
    data: Path, choices: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(event: Event) -> None:
        if event.kind == "rung" and event["name"].startswith("fine-tune"):
            raise Stopped

    with pytest.raises(Stopped):
        hs.train(data, out=tmp_path / "run", listener=stopping, **choices, **TUNED)
    file = tmp_path / "run" / "checkpoints" / "rung-1.safetensors"
    held = train_rung.load_checkpoint(file)
    assert held is not None
    document, tensors = held
    other = document["frozen"] | {"conv1.0.weight": "0" * 64}
    train_rung.save_checkpoint(file, document | {"frozen": other}, tensors)
    with pytest.raises(TrainingError, match=r"conv1\.0\.weight"):
        hs.resume(tmp_path / "run")
    train_rung.save_checkpoint(file, document, tensors)
    proof = json.loads((hs.resume(tmp_path / "run").folder / "run.json").read_text())["frozen"]
    assert proof["frozen_before"] == proof["frozen_after"]


@pytest.mark.slow
@pytest.mark.parametrize("own", [{}, {"head": "8", "head_epochs": 1}, {"cut": "layer3"}])
def test_a_head_alone_is_proven_by_the_backbone_that_ran(
    own: dict[str, Any], data: Path, choices: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = choose_layers.fit_head

    def altering(job: Job, loaded: Loaded, inspected: Inspected, *more: Any, **options: Any) -> Any:
        tensors: dict[str, Tensor] = tensors_of(loaded.backbone.module)
        tensors["layer1.0.bn1.running_mean"].view(-1)[0] += 1
        return fit(job, loaded, inspected, *more, **options)

    monkeypatch.setattr(choose_layers, "fit_head", altering)
    with pytest.raises(TrainingError, match=r"layer1\.0\.bn1\.running_mean"):
        hs.train(data, out=tmp_path / "run", **choices, **own)


@pytest.mark.slow
def test_classes_that_stay_are_proven_where_a_model_is_extended(
    data: Path, choices: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headstart.pipeline import extend as known

    first = hs.train(data, out=tmp_path / "first", **choices)
    more = write_classes(tmp_path / "more", {"c": 15}, first_seed=100)
    run = hs.train(more, out=tmp_path / "run", extend=str(first.folder), device="cpu")
    proof = json.loads((run.folder / "run.json").read_text())["frozen"]
    assert proof["frozen_before"] == proof["frozen_after"]
    with_rows = known.head_with_rows
    monkeypatch.setattr(known, "head_with_rows", lambda head, weight, bias: with_rows(head, weight * 1.001, bias))
    with pytest.raises(TrainingError, match="weights of the old classes"):
        hs.train(more, out=tmp_path / "broken", extend=str(first.folder), device="cpu")


@pytest.mark.slow
def test_a_loop_of_ones_own_is_checked_when_its_model_is_asked_for(data: Path, choices: dict[str, Any]) -> None:
    bench = hs.prepare(data, **choices, **TUNED)
    bench.model()
    bench._split.module.state_dict()["layer4.0.bn1.running_mean"] += 1
    with pytest.raises(TrainingError, match=r"layer4\.0\.bn1\.running_mean"):
        bench.model()
