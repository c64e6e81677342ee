"""Headstart turns a folder of labelled images into a classifier that you can trust, by transfer learning.

    import headstart as hs

    data = hs.open_folder("flowers/")
    run = hs.train(data)
    print(run.scores)                      # accuracy 0.922 (0.896-0.941), n=550
    model = hs.load(run.model_path)
    model.predict("rose.jpg")              # Prediction(label='roses', probability=0.97, ...)

Nothing is imported until it is used: ``import headstart`` alone takes milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.backbone.device import keep_freed_memory
    from headstart.backbone.forward import FeatureNet
    from headstart.backbone.weights import Backbone, load_backbone
    from headstart.data.checks import inspect
    from headstart.data.dataset import Dataset, open_data, open_folder, open_table
    from headstart.errors import HeadstartError
    from headstart.estimators import FeatureExtractor, ImageClassifier
    from headstart.evaluation.metrics import LabelScores, Scores
    from headstart.model import Model, Prediction, load
    from headstart.progress import Progress, TerminalProgress
    from headstart.runs.check import check
    from headstart.runs.compare import compare
    from headstart.runs.evaluate import evaluate
    from headstart.runs.events import train_events
    from headstart.runs.export import Exported, export, verify
    from headstart.runs.folder import Run, load_run
    from headstart.runs.log import Event
    from headstart.runs.paired import compare_models
    from headstart.runs.report import push, report
    from headstart.runs.retrain import retrain
    from headstart.runs.train import resume, train
    from headstart.runs.workbench import Workbench, prepare
    from headstart.serve.server import create_app
    from headstart.training.recipe import Recipe

_HOMES = {
    "Backbone": "backbone.weights",
    "Dataset": "data.dataset",
    "Event": "runs.log",
    "Exported": "runs.export",
    "FeatureExtractor": "estimators",
    "FeatureNet": "backbone.forward",
    "HeadstartError": "errors",
    "ImageClassifier": "estimators",
    "LabelScores": "evaluation.metrics",
    "Model": "model",
    "Prediction": "model",
    "Progress": "progress",
    "Recipe": "training.recipe",
    "Run": "runs.folder",
    "Scores": "evaluation.metrics",
    "TerminalProgress": "progress",
    "Workbench": "runs.workbench",
    "check": "runs.check",
    "compare": "runs.compare",
    "compare_models": "runs.paired",
    "create_app": "serve.server",
    "evaluate": "runs.evaluate",
    "export": "runs.export",
    "inspect": "data.checks",
    "keep_freed_memory": "backbone.device",
    "load": "model",
    "load_backbone": "backbone.weights",
    "load_run": "runs.folder",
    "open_data": "data.dataset",
    "open_folder": "data.dataset",
    "open_table": "data.dataset",
    "prepare": "runs.workbench",
    "push": "runs.report",
    "report": "runs.report",
    "resume": "runs.train",
    "retrain": "runs.retrain",
    "train": "runs.train",
    "train_events": "runs.events",
    "verify": "runs.export",
}

__all__ = [
    "Backbone",
    "Dataset",
    "Event",
    "Exported",
    "FeatureExtractor",
    "FeatureNet",
    "HeadstartError",
    "ImageClassifier",
    "LabelScores",
    "Model",
    "Prediction",
    "Progress",
    "Recipe",
    "Run",
    "Scores",
    "TerminalProgress",
    "Workbench",
    "check",
    "compare",
    "compare_models",
    "create_app",
    "evaluate",
    "export",
    "inspect",
    "keep_freed_memory",
    "load",
    "load_backbone",
    "load_run",
    "open_data",
    "open_folder",
    "open_table",
    "prepare",
    "push",
    "report",
    "resume",
    "retrain",
    "train",
    "train_events",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headstart' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"headstart.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
