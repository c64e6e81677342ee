"""Law 15: nothing that a library call does outlives it."""

from __future__ import annotations

import decimal
import gc
import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pictures import write_classes
from PIL import Image, ImageFile
from safetensors.torch import save_file
from torch import nn

import headstart as hs
from headstart.backbone import load_backbone
from headstart.backbone.weights import random_backbone
from headstart.data import inspect


def state() -> dict[str, Any]:
    """Of the process, what a library may leave changed."""
    loggers = [logging.getLogger(), *(logging.getLogger(n) for n in ("timm", "huggingface_hub", "torch", "headstart"))]
    context = decimal.getcontext()
    return {
        "warning filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "streams": (sys.stdout, sys.stderr),
        "loggers": [(own.level, list(own.handlers), own.propagate, own.disabled) for own in loggers],
        "logging.disable": logging.root.manager.disable,
        "signals": [signal.getsignal(own) for own in (signal.SIGINT, signal.SIGTERM)],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "numpy": (np.geterr(), str(np.random.get_state())),
        "decimal": (context.prec, context.rounding),
        "random": random.getstate(),
        "torch random": torch.get_rng_state().tolist(),
        "torch": (
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            torch.is_autocast_enabled("cpu"),
        ),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "modules": (nn.Module.__call__, nn.Module.__getattr__),
        "collector": (gc.isenabled(), gc.get_threshold()),
        "Pillow": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES),
        "imports": list(sys.meta_path),
        "threads": sorted(own.name for own in threading.enumerate() if not own.daemon),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("state")
    weights = folder / "w.safetensors"
    save_file(random_backbone("test_resnet").module.state_dict(), weights)
    data = write_classes(folder / "d", {"blue": 24, "red": 24})
    options = {"backbone": "test_resnet", "weights": weights, "image_size": 32}
    run = hs.train(data, out=folder / "run", **options)
    return {"data": data, "run": run.folder, "options": options, "folder": folder, "image": data / "red" / "0.png"}


CALLS: dict[str, Callable[[dict[str, Any]], object]] = {
    "open_data": lambda m: hs.open_data(m["data"]),
    "inspect": lambda m: inspect(m["data"]),
    "check": lambda m: hs.check(m["data"], **m["options"]),
    "load_backbone": lambda m: load_backbone("test_resnet", weights=m["options"]["weights"]),
    "load": lambda m: hs.load(m["run"]),
    "load_run": lambda m: hs.load_run(m["run"]),
    "predict": lambda m: hs.load(m["run"]).predict(m["image"]),
    "predict many": lambda m: hs.load(m["run"]).predict(m["data"]),
    "evaluate": lambda m: hs.evaluate(m["run"]),
    "report": lambda m: hs.report(m["run"], m["folder"] / "r.html"),
    "compare_models": lambda m: hs.compare_models(m["run"], m["run"], m["data"]),
    "train": lambda m: hs.train(m["data"], out=m["folder"] / "again", seed=1, **m["options"]),
    "FeatureExtractor": lambda m: features(m),
    "error": lambda m: failed(m),
}


def wait_for_threads(names: list[str]) -> None:
    """Threads of a model's engine end once the model is gone."""
    gc.collect()
    for _ in range(100):
        if sorted(own.name for own in threading.enumerate() if not own.daemon) == names:
            return
        time.sleep(0.05)


def features(made: dict[str, Any]) -> None:
    hs.FeatureExtractor("test_resnet", weights=str(made["options"]["weights"])).fit_transform([str(made["image"])])


def failed(made: dict[str, Any]) -> None:
    with pytest.raises(hs.HeadstartError):
        hs.train(made["data"], out=made["folder"] / "e", backbone="none")


@pytest.mark.parametrize("call", CALLS)
def test_the_process_is_as_before_after_each_call(
    call: str, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    allocator: list[str] = []
    monkeypatch.setattr("headstart.engine.device.keep_freed_memory", lambda: allocator.append(call))
    before = state()
    CALLS[call](made)
    wait_for_threads(before["threads"])
    after = state()
    assert {name: (before[name], own) for name, own in after.items() if own != before[name]} == {}
    assert not allocator


def test_a_change_of_state_would_be_seen() -> None:
    before = state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.rand(1)
        changed = {name for name, own in state().items() if own != before[name]}
    assert changed == {"warning filters", "torch random"}
