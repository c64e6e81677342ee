"""Law 15: nothing that a library call does outlives it."""

from __future__ import annotations

import decimal
import gc
import importlib
import logging
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from public_names import PUBLIC
from random_images import write_classes
from safetensors.torch import save_file
from small_onnx import small_onnx
from torch import nn

import headstart as hs
from headstart.backbone import load_backbone
from headstart.backbone.weights import random_backbone
from headstart.data import inspect, open_folder, open_table
from headstart.pipeline import train_events
from headstart.runs import Event
from headstart.serve import create_app
from headstart.serve.corrections import Corrections
from headstart.verbs import export_all, space

SIX_IMPORTER = "_SixMetaPathImporter"
"""Copies of six add it to ``sys.meta_path`` for their own modules alone, for instance in boto3, which tensorboardX
imports if it is installed."""


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
        "imports": [own for own in sys.meta_path if type(own).__name__ != SIX_IMPORTER],
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook),
        "interpreter": (sys.getrecursionlimit(), sys.getswitchinterval(), socket.getdefaulttimeout()),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "torch backends": (
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.mkldnn.enabled,
            torch.backends.mkldnn.matmul.fp32_precision,
            torch.is_inference_mode_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        ),
        "threads": sorted(own.name for own in threading.enumerate() if not own.daemon),
    }


class Stopped(Exception):
    """Stops a run, to be resumed."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    importlib.import_module("torch._dynamo.config")  # optimisers import it: it ends our hook and sets a variable
    folder = tmp_path_factory.mktemp("state")
    weights = folder / "w.safetensors"
    save_file(random_backbone("test_resnet").module.state_dict(), weights)
    data = write_classes(folder / "d", {"blue": 24, "red": 24})
    options = {"backbone": "test_resnet", "weights": weights, "image_size": 32}
    run = hs.train(data, out=folder / "run", **options)
    images = {"data": data, "run": run.folder, "options": options, "folder": folder, "image": data / "red" / "0.png"}
    with pytest.raises(Stopped):
        hs.train(data, out=folder / "stopped", listener=stop, seed=2, **options)
    Corrections(folder / "run-corrections").keep(images["image"].read_bytes(), "blue")
    return images


def stopped() -> threading.Event:
    """Ends a session at once."""
    event = threading.Event()
    event.set()
    return event


def stop(event: Event) -> None:
    if event.kind == "stage":
        raise Stopped


CALLS: dict[str, Callable[[dict[str, Any]], object]] = {
    "open_data": lambda m: hs.open_data(m["data"]),
    "data.open_folder": lambda m: open_folder(m["data"]),
    "data.open_table": lambda m: open_table(table(m)),
    "data.inspect": lambda m: inspect(m["data"]),
    "check": lambda m: hs.check(m["data"], **m["options"]),
    "backbone.load_backbone": lambda m: load_backbone("test_resnet", weights=m["options"]["weights"]),
    "load": lambda m: hs.load(m["run"]),
    "runtime.load": lambda m: hs.load(small_onnx(m["folder"] / "small.onnx")).predict(m["data"]),
    "load_run": lambda m: hs.load_run(m["run"]),
    "predict one image": lambda m: hs.load(m["run"]).predict(m["image"]),
    "predict a folder": lambda m: hs.load(m["run"]).predict(m["data"]),
    "save": lambda m: hs.load(m["run"]).save(m["folder"] / "saved.safetensors"),
    "evaluate": lambda m: hs.evaluate(m["run"]),
    "report": lambda m: hs.report(m["run"], m["folder"] / "r.html"),
    "compare": lambda m: hs.compare(m["data"], out=m["folder"] / "compared", only=["heads"], **m["options"]),
    "compare_models": lambda m: hs.compare_models(m["run"], m["run"], m["data"]),
    "train": lambda m: hs.train(m["data"], out=m["folder"] / "again", seed=1, **m["options"]),
    "label": lambda m: hs.label(m["data"], labels=m["folder"] / "l.csv", open_browser=False, stop=stopped()),
    "train_events": lambda m: list(train_events(m["data"], out=m["folder"] / "events", seed=3, **m["options"])),
    "resume": lambda m: hs.resume(m["folder"] / "stopped"),
    "retrain": lambda m: hs.retrain(m["run"]),
    "prepare": lambda m: hs.prepare(m["data"], **m["options"]),
    "export": lambda m: exported(m),
    "verbs.export_all": lambda m: export_all(m["run"], out=m["folder"] / "all"),
    "verify": lambda m: hs.verify(exported(m), m["run"]),
    "verbs.space": lambda m: space(m["run"], m["folder"] / "space"),
    "push": lambda m: failed(lambda: hs.push(m["run"], "nobody")),
    "serve.create_app": lambda m: create_app(m["run"], local=False).state.service.close(),
    "FeatureExtractor": lambda m: features(m),
    "ImageClassifier": lambda m: classifier(m),
    "HeadstartError": lambda m: failed(lambda: hs.train(m["data"], out=m["folder"] / "e", backbone="none")),
    "TerminalProgress": lambda m: hs.check(m["data"], files_only=True, progress=hs.TerminalProgress()),
}
"""Every public function, and what classes do that does more than hold values."""

LONG = {"compare", "export", "verbs.export_all", "verbs.space", "verify"}
"""Calls of ten seconds and more."""

HOLD_VALUES = {"Dataset", "Model", "Prediction", "Recipe", "Run"}


def test_every_public_name_is_called() -> None:
    assert set(hs.__all__) <= {*CALLS, *HOLD_VALUES}


def wait_for_threads(names: list[str]) -> None:
    """Threads of a model's engine end once the model is gone."""
    gc.collect()
    for _ in range(100):
        if sorted(own.name for own in threading.enumerate() if not own.daemon) == names:
            return
        time.sleep(0.05)


def exported(made: dict[str, Any]) -> Path:
    file: Path = made["folder"] / "exported.pt2"
    return file if file.is_file() else hs.export(made["run"], "torch", out=file).file


def table(made: dict[str, Any]) -> Path:
    file: Path = made["folder"] / "table.csv"
    rows = [f"{path},{path.parent.name}" for path in sorted(made["data"].glob("*/*.png"))]
    file.write_text("\n".join(["path,label", *rows]))
    return file


def features(made: dict[str, Any]) -> None:
    extractor = hs.FeatureExtractor("test_resnet", weights=str(made["options"]["weights"]))
    joblib.hash(extractor.fit_transform([str(made["image"])]))


def classifier(made: dict[str, Any]) -> None:
    paths = [str(path) for path in sorted(made["data"].glob("*/*.png"))]
    weights = str(made["options"]["weights"])
    estimator = hs.ImageClassifier(backbone="test_resnet", weights=weights, image_size=32)
    estimator.fit(paths, [Path(path).parent.name for path in paths]).predict(paths[:2])


def failed(call: Callable[[], object]) -> None:
    with pytest.raises(hs.HeadstartError):
        call()


@pytest.mark.parametrize(
    "call", [pytest.param(call, marks=pytest.mark.exhaustive) if call in LONG else call for call in CALLS]
)
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


IMPORTS = """
import gc, importlib, json, logging, os, random, signal, sys, threading, warnings
environment, generator = dict(os.environ), random.getstate()
import numpy, pandas, torch  # their other effects are theirs; six, which pandas imports, adds an importer

def state():
    return [
        dict(os.environ), list(warnings.filters), warnings.showwarning, random.getstate(),
        str(numpy.random.get_state()),
        numpy.geterr(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), logging.getLogger().level,
        list(logging.getLogger().handlers), list(sys.meta_path), threading.enumerate(), gc.isenabled(), os.getcwd(),
        sys.excepthook, torch.get_num_threads(), torch.get_default_dtype(), sys.getrecursionlimit(),
    ]

before, changed = state(), []
for module in MODULES:
    module = importlib.import_module(module)
    for name in getattr(module, "__all__", ["__doc__"]):
        getattr(module, name)
        after = state()
        changed += [(module.__name__, name, i) for i, own in enumerate(after) if own != before[i]]
        before = after
from headstart.import_effects import import_quietly
import_quietly("sklearn.linear_model")
assert "sklearn" in sys.modules
changed += [name for name, then, now in (("environment", environment, dict(os.environ)),
                                         ("random", generator, random.getstate())) if then != now]
print(changed)
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", ["headstart", pytest.param("headstart.estimators", marks=pytest.mark.exhaustive)])
def test_importing_every_public_name_changes_nothing_in_the_process(first: str) -> None:
    if sys.platform != "linux":
        pytest.skip("elsewhere two variables are needed after the import")
    modules = [first, *sorted(PUBLIC - {first})]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS.replace("MODULES", repr(modules))], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
