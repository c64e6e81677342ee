"""Whole runs that train low-rank updates, or biases and norms, of a vision transformer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from altered_training import alter_in_training, write_brief_reports
from random_images import mislabel, write_classes, write_mixtures
from safetensors.torch import save_file

import headstart as hs
from headstart.backbone.weights import random_backbone
from headstart.data.label_cells import join_labels
from headstart.errors import OptionError, TrainingError
from headstart.pipeline import fine_tune as ladder_step
from headstart.pipeline import train_rung
from headstart.pipeline.resume import resume
from headstart.runs import Event
from headstart.runs.log import read_log
from headstart.training.ladder import FOLDS
from headstart.training.tuning import Method

pytestmark = pytest.mark.slow

VECTORS, MATRICES = 192 + 64 + 192 + 64 + 4 * 64, 64 * (192 + 64 + 192 + 192)
"""Weights in a block of ``test_vit``."""

FACTORS = (64 + 192) + (64 + 64) + (64 + 192) + (192 + 64)
"""Weights in the updates of rank 1 of a block."""

HEAD, NORM, TOTAL = 2 * 64 + 2, 2 * 64, 300_096
TRAINED: dict[Method, int] = {
    "full": 2 * (VECTORS + MATRICES) + NORM,
    "bias-norm": 2 * VECTORS + NORM,
    "lora": 2 * 4 * FACTORS,
}
CHANGED = TRAINED | {"lora": 2 * MATRICES}
NAMES = {"full": "fine-tune", "bias-norm": "bias and norm", "lora": "LoRA"}
RANK = {"lora": {"lora_rank": 4}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mislabel(write_classes(tmp_path_factory.mktemp("data") / "two", {"a": 30, "b": 30}), "a", "b", 30)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(random_backbone("test_vit", image_size=32, seed=3).module.state_dict(), file)
    return {"backbone": "test_vit", "weights": str(file), "image_size": 32, "device": "cpu", "views": 1, "epochs": 2}


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    write_brief_reports(monkeypatch)


@pytest.mark.parametrize("tune", ["lora", "bias-norm", "full"])
def test_a_run_says_what_was_trained_and_its_model_is_one_like_any_other(
    tune: Method, data: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    """Laws 3 and 5; counts are exact in plan, log, report, card and run.json."""
    said: list[str] = []

    def listen(event: Event) -> None:
        if event.kind == "message":
            said.append(event["text"])

    choices = options | {"tune": tune, "unfreeze": "blocks.4"} | RANK.get(tune, {})
    run = hs.train(data, out=tmp_path / "run", listener=listen, **choices)
    trained, changed = TRAINED[tune], CHANGED[tune]
    name = f"{NAMES[tune]} from blocks.4"
    assert run.best == run.rungs[-1].name == name
    stage = next(entry for entry in read_log(run.folder) if entry["event"] == "stage" and entry["stage"] == name)
    assert stage["trainable"] == trained + HEAD
    assert stage["frozen"] == TOTAL + HEAD - (HEAD if tune == "lora" else trained + HEAD)
    assert sum(count for _, _, count in stage["layers"]) == trained + HEAD
    assert any(text.startswith("Plan, rung 1") and f"; {trained:,} weights)" in text for text in said)
    assert any(text.startswith(f"Stage {name}: trains ") and f"{trained + HEAD:,} " in text for text in said)
    proof = json.loads((run.folder / "run.json").read_text())["frozen"]
    assert (proof["trained_weights"], proof["changed_weights"]) == (trained, changed)
    assert proof["frozen_before"] == proof["frozen_after"]
    for file in (run.report_path, run.folder / "README.md"):
        text = " ".join(file.read_text().split())
        assert f"{TOTAL - changed:,} of its {TOTAL:,}" in text or f"{TOTAL - changed:,} of {TOTAL:,}" in text
        assert (f"{trained:,} weights" in text) == (tune == "lora" or file == run.report_path)
    model = hs.load(run.model_path)
    assert model.net.backbone.module.state_dict().keys() == random_backbone("test_vit").module.state_dict().keys()
    for part in hs.evaluate(run.folder):
        assert part.scores.correct == run.results[part.scores.name].correct
    if tune == "lora":
        exported = hs.export(run.folder, out=tmp_path / "model.onnx", data=data)  # compared with the model, or refused
        assert exported.file.exists()


@pytest.mark.parametrize("tune", ["lora", "bias-norm"])
@pytest.mark.parametrize("stop_at", ["rung", "epoch"])
def test_a_gradual_ladder_that_was_stopped_ends_as_if_it_never_had_been(
    tune: str, stop_at: str, data: Path, options: dict[str, Any], tmp_path: Path, brief: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Law 4: the second rung goes on from merged weights, in the folds too."""
    monkeypatch.setattr(ladder_step, "paired_p", lambda before, after: 0.0)
    monkeypatch.setattr(ladder_step, "DEEPER_FROM", 0.0)
    monkeypatch.setattr(train_rung, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(train_rung, "SAVE_AT_MOST", 1e9)
    choices = options | {"effort": "standard", "tune": tune, "gradual_unfreezing": True}
    whole = hs.train(data, out=tmp_path / "whole", **choices)
    assert [rung.name.split(" from")[0] for rung in whole.rungs[2:]] == [NAMES[tune]] * 2
    stages = []

    def stop(event: Event) -> None:
        if event.kind == stop_at and event.fields.get("stage", event.fields.get("name")) not in ("kNN", "probe"):
            stages.append(event)
            if len(stages) == {"rung": 1, "epoch": 3}[stop_at]:  # after the first rung, or in the second
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hs.train(data, out=tmp_path / "run", listener=stop, **choices)
    assert resume(tmp_path / "run").model_path.read_bytes() == whole.model_path.read_bytes()


@pytest.mark.parametrize(
    ("tune", "name", "at"),
    [
        ("lora", "blocks.5.mlp.fc1.weight", FOLDS + 1),
        ("lora", "blocks.5.mlp.fc1.weight", 1),
        ("lora", "blocks.1.norm1.weight", FOLDS + 1),
        ("bias-norm", "blocks.5.mlp.fc1.weight", FOLDS + 1),
    ],
)
def test_a_run_in_which_a_base_weight_is_altered_fails(
    tune: str, name: str, at: int, data: Path, options: dict[str, Any], tmp_path: Path, brief: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Law 3: the weights that updates are merged into are frozen until then, in the folds too."""
    alter_in_training(monkeypatch, name, at=at)
    with pytest.raises(TrainingError, match=name):
        hs.train(data, out=tmp_path / "run", tune=tune, unfreeze="blocks.4", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_finished_rung_whose_base_weights_had_changed_is_refused_when_a_run_is_resumed(
    data: Path, options: dict[str, Any], tmp_path: Path, brief: None
) -> None:
    def stop(event: Event) -> None:
        if event.kind == "rung" and event["name"].startswith("LoRA"):
            raise KeyboardInterrupt

    choices = options | {"tune": "lora", "unfreeze": "blocks.4"}
    with pytest.raises(KeyboardInterrupt):
        hs.train(data, out=tmp_path / "run", listener=stop, **choices)
    file = tmp_path / "run" / "checkpoints" / "rung-1.safetensors"
    held = train_rung.load_checkpoint(file)
    assert held is not None
    document, tensors = held
    other = document["frozen"] | {"blocks.5.mlp.fc1.weight": "0" * 64}
    train_rung.save_checkpoint(file, document | {"frozen": other}, tensors)
    with pytest.raises(TrainingError, match=r"blocks\.5\.mlp\.fc1\.weight"):
        resume(tmp_path / "run")


def test_images_with_several_labels_can_be_trained_by_low_rank_updates(
    options: dict[str, Any], tmp_path: Path, brief: None
) -> None:
    rows = write_mixtures(tmp_path / "images", 60)
    lines = [
        f"images/{name},{join_labels([labels for _, labels in rows])[place]}" for place, (name, _) in enumerate(rows)
    ]
    (tmp_path / "colours.csv").write_text("\n".join(["path,labels", *lines]) + "\n")
    run = hs.train(tmp_path / "colours.csv", out=tmp_path / "run", tune="lora", unfreeze="blocks.4", **options)
    assert run.best == "LoRA from blocks.4"
    assert hs.load(run.model_path).thresholds is not None


def test_a_custom_loop_trains_low_rank_updates_and_its_model_has_them_merged(
    data: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    """Laws 3 and 5."""
    given = {name: value for name, value in options.items() if name != "epochs"}
    bench = hs.prepare(data, tune="lora", lora_rank=4, unfreeze="blocks.4", **given)  # type: ignore[arg-type]
    net = bench.classifier.train()
    assert f"{TRAINED['lora'] + HEAD:,} weights to train" in repr(bench)
    optimizer = torch.optim.SGD(net.trainable_parameters(), lr=0.5)
    for epoch in range(3):
        for x, labels in bench.batches("train", epoch=epoch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x), labels).backward()
            optimizer.step()
    before = {name: tensor.clone() for name, tensor in bench._split.module.state_dict().items()}
    model = bench.model()
    assert model.scores["val"]["correct"] == bench.scores().correct
    assert model.scores["val"]["log_loss"] == pytest.approx(bench.scores().log_loss, abs=1e-4)
    loaded = hs.load(model.save(tmp_path / "model.safetensors"))
    files = list(bench._prepared.featurised.val.images.files)  # type: ignore[union-attr]
    with torch.no_grad():
        ours = torch.cat([net.eval()(x) for x, _ in bench.batches("val")]).softmax(1).numpy()
    assert np.abs(loaded.predict_proba(files)[0] - ours).max() < 0.02  # bfloat16 against float32
    changed = {n for n, t in model.net.backbone.module.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == set(net.updates)
    assert all(torch.equal(t, before[n]) for n, t in bench._split.module.state_dict().items())
    bench._split.module.state_dict()["blocks.5.attn.qkv.weight"].add_(1)
    with pytest.raises(TrainingError, match=r"blocks\.5\.attn\.qkv\.weight"):
        bench.model()


@pytest.mark.usefixtures("small_networks")
def test_a_network_without_linear_layers_is_refused_before_an_image_is_read(data: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="tune 'lora': the backbone has no linear layers"):
        hs.train(data, out=tmp_path / "run", tune="lora", image_size=64, device="cpu")
    assert not (tmp_path / "run").exists()
