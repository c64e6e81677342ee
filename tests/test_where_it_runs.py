"""The library works from threads, in a running event loop and after a fork; models and estimators are pickled."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from random_images import write_classes
from safetensors.torch import save_file
from small_models import shown, small_model

import headstart as hs
from headstart.backbone.weights import random_backbone
from headstart.concurrency import ignored_warnings
from headstart.pipeline import train_events


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments of a short training run."""
    folder = tmp_path_factory.mktemp("job")
    save_file(random_backbone("test_resnet").module.state_dict(), folder / "w.safetensors")
    data = write_classes(folder / "d", {"blue": 24, "red": 24})
    return {"source": data, "backbone": "test_resnet", "weights": folder / "w.safetensors", "image_size": 32}


@pytest.fixture(scope="module")
def run(job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> hs.Run:
    return hs.train(out=tmp_path_factory.mktemp("run") / "run", **job)


def head_of(folder: Path) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in hs.load(folder).head.state_dict().items()}


def assert_same_head(one: Path, two: Path) -> None:
    first, second = head_of(one), head_of(two)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_runs_in_several_threads_give_the_same_model(job: dict[str, Any], run: hs.Run, tmp_path: Path) -> None:
    threads = [threading.Thread(target=hs.train, kwargs=job | {"out": tmp_path / str(i)}) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        assert_same_head(tmp_path / str(i), run.folder)


@pytest.mark.slow
def test_everything_works_in_a_running_event_loop(job: dict[str, Any], run: hs.Run, tmp_path: Path) -> None:
    async def work() -> None:
        hs.train(out=tmp_path / "run", **job)
        assert [event.kind for event in train_events(out=tmp_path / "events", **job)][-1] == "finished"
        assert hs.load(tmp_path / "run").predict(shown(0)).label in ("blue", "red")
        assert hs.evaluate(tmp_path / "run")

    asyncio.run(work())
    assert_same_head(tmp_path / "run", run.folder)


def trained_in_child(job: dict[str, Any], out: Path) -> None:
    hs.train(out=out, **job)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_run_in_a_forked_child_gives_the_same_model(job: dict[str, Any], run: hs.Run, tmp_path: Path) -> None:
    with ignored_warnings(category=DeprecationWarning):
        child = multiprocessing.get_context("fork").Process(target=trained_in_child, args=(job, tmp_path / "run"))
        child.start()
    child.join(120)
    hangs = child.is_alive()
    child.kill()
    assert not hangs
    assert child.exitcode == 0
    assert_same_head(tmp_path / "run", run.folder)


def test_a_model_is_pickled_by_joblib(tmp_path: Path) -> None:
    model = small_model(image_size=32, ood_detector=True)
    images = [shown(i) for i in range(3)]
    model.predict(images)  # its engine stays behind
    joblib.dump(model, tmp_path / "m.joblib")
    again = joblib.load(tmp_path / "m.joblib")
    assert again.predict(images) == model.predict(images)
    assert again.version == model.version
    assert joblib.Parallel(n_jobs=2, backend="threading")(joblib.delayed(again.predict)(image) for image in images)
