"""Fine-tuning by several processes: the run, its events and its model are those of one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from random_images import mislabel, write_classes
from safetensors.torch import load_file, save_file
from thread_ranks import ThreadRanks, summing

import headstart as hs
from headstart.backbone.weights import random_backbone
from headstart.errors import OptionError, TrainingError, WorkerError
from headstart.pipeline import data_parallel
from headstart.pipeline.data_parallel import RankResult, require_equal, resumable

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mislabel(write_classes(tmp_path_factory.mktemp("data") / "two", {"a": 20, "b": 20}), "a", "b", 12)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(random_backbone("test_resnet", image_size=32, seed=3).module.state_dict(), file)
    own = {"backbone": "test_resnet", "weights": str(file), "image_size": 32, "device": "cpu", "views": 2}
    return own | {"unfreeze": "layer4", "epochs": 2, "layers": "last"}


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two ranks that are threads of this process."""
    with summing(2) as call:
        monkeypatch.setattr(
            data_parallel, "start_ranks", lambda make, _settings, device: ThreadRanks(make, 2, device, call)
        )
        yield


def events_of(run: hs.Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
def test_two_ranks_train_the_model_that_one_process_trains(data: Path, options: dict[str, Any], tmp_path: Path) -> None:
    alone = hs.train(data, out=tmp_path / "alone", **options)
    seen: list[str] = []
    run = hs.train(data, out=tmp_path / "two", workers=2, listener=lambda event: seen.append(event.kind), **options)
    expected, found = (load_file(own.model_path) for own in (alone, run))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.allclose(tensor.float(), found[name].float(), rtol=1e-2, atol=1e-3), name
    assert run.recipe == alone.recipe
    kinds = [[e["event"] for e in events_of(own) if e["event"] != "checkpoint"] for own in (alone, run)]
    assert kinds[0] == kinds[1]
    steps = [[e["loss"] for e in events_of(own) if e["event"] == "step"] for own in (alone, run)]
    assert steps[1] == pytest.approx(steps[0], rel=1e-2)
    assert "step" in seen


def results(*weights: float) -> list[RankResult]:
    return [RankResult(None, {}, {"a": str(weight), "b": "same"}) for weight in weights]


def test_ranks_that_end_with_other_weights_are_an_error() -> None:
    require_equal(results(1, 1, 1))
    with pytest.raises(TrainingError, match=r"worker 2 differ from those of worker 0 \(a\)"):
        require_equal(results(1, 1, 2))
    fewer = replace(results(1)[0], digests={"a": "1"})
    with pytest.raises(TrainingError, match="worker 1 differ"):
        require_equal([*results(1), fewer])


@pytest.mark.usefixtures("threads")
def test_a_weight_that_changes_on_one_rank_alone_ends_the_run(
    data: Path, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = data_parallel.RungRank.finish

    def altered(rank: Any) -> RankResult:
        if rank.rank.number == 1:
            rank.split.module.state_dict()["layer4.0.conv1.weight"].add_(1)
        return finish(rank)

    monkeypatch.setattr(data_parallel.RungRank, "finish", altered)
    with pytest.raises(TrainingError, match=r"worker 1 differ from those of worker 0 \(layer4.0.conv1.weight\)"):
        hs.train(data, out=tmp_path / "run", workers=2, **options)


def test_a_lost_worker_is_an_error_that_says_how_to_resume() -> None:
    error = resumable(WorkerError("a worker process was lost while it trained (it died)."), "runs/flowers")
    assert str(error) == (
        "a worker process was lost while it trained (it died). What was learnt up to the last checkpoint is kept: "
        "headstart train --resume runs/flowers"
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"workers": 0}, "workers 0: expected a whole number of at least 1"),
        ({"workers": True}, "workers True"),
        ({"workers": 2, "update_batchnorm": True}, "needs whole batches in one process"),
    ],
)
def test_workers_that_cannot_be_are_refused(
    given: dict[str, Any], words: str, data: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=words):
        hs.train(data, out=tmp_path / "run", **options | given)
    assert not (tmp_path / "run").exists()
