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
    from headstart.backbone.pixel_net import FeatureNet
    from headstart.backbone.weights import Backbone, load_backbone
    from headstart.data.dataset import Dataset, open_data, open_folder, open_table
    from headstart.data.decode import Preprocessing
    from headstart.data.duplicates import DuplicatePair
    from headstart.data.finding import Finding
    from headstart.data.inspection import Inspection, inspect
    from headstart.data.scan import Scan
    from headstart.data.splits import Split, SplitShares
    from headstart.data.table import Columns
    from headstart.engine.device import keep_freed_memory
    from headstart.errors import (
        CacheError,
        DataError,
        Diverged,
        ExportError,
        HeadstartError,
        HubError,
        InputError,
        LargeImage,
        ModelFileError,
        OptionError,
        OutputError,
        RunError,
        ServerError,
        TrainingError,
        UnreadableImage,
        WeightsError,
        WriteError,
    )
    from headstart.estimators import FeatureExtractor, ImageClassifier
    from headstart.evaluation.comparison import Compared
    from headstart.evaluation.mcnemar import Paired
    from headstart.evaluation.metrics import ClassScore, GroupScore, LabelScore, LabelScores, Scores
    from headstart.evaluation.predictions import Evaluated
    from headstart.exports.int8 import Quantised
    from headstart.exports.metadata import About
    from headstart.exports.parity import Format, Whole
    from headstart.model import Model, load
    from headstart.pipeline.custom_loop import Workbench, prepare
    from headstart.pipeline.train import resume, train
    from headstart.pipeline.train_events import train_events
    from headstart.prediction import Prediction
    from headstart.progress import Progress, TerminalProgress
    from headstart.runs.folder import Run, load_run
    from headstart.runs.log import Event
    from headstart.serve.limits import Limits
    from headstart.serve.server import create_app
    from headstart.training.ladder import RungResult
    from headstart.training.recipe import Recipe
    from headstart.trust.calibration import Calibration
    from headstart.trust.ood import Familiar
    from headstart.verbs.check import check
    from headstart.verbs.compare import Comparison, compare
    from headstart.verbs.compare_models import ModelComparison, compare_models
    from headstart.verbs.evaluate import evaluate
    from headstart.verbs.export import Exported, export, verify
    from headstart.verbs.report import push, report
    from headstart.verbs.retrain import Retrained, retrain

_HOMES = {
    "About": "exports.metadata",
    "Backbone": "backbone.weights",
    "CacheError": "errors",
    "Calibration": "trust.calibration",
    "ClassScore": "evaluation.metrics",
    "Columns": "data.table",
    "Compared": "evaluation.comparison",
    "Comparison": "verbs.compare",
    "DataError": "errors",
    "Dataset": "data.dataset",
    "Diverged": "errors",
    "DuplicatePair": "data.duplicates",
    "Evaluated": "evaluation.predictions",
    "Event": "runs.log",
    "ExportError": "errors",
    "Exported": "verbs.export",
    "Familiar": "trust.ood",
    "FeatureExtractor": "estimators",
    "FeatureNet": "backbone.pixel_net",
    "Finding": "data.finding",
    "Format": "exports.parity",
    "GroupScore": "evaluation.metrics",
    "HeadstartError": "errors",
    "HubError": "errors",
    "ImageClassifier": "estimators",
    "InputError": "errors",
    "Inspection": "data.inspection",
    "LabelScore": "evaluation.metrics",
    "LabelScores": "evaluation.metrics",
    "LargeImage": "errors",
    "Limits": "serve.limits",
    "Model": "model",
    "ModelComparison": "verbs.compare_models",
    "ModelFileError": "errors",
    "OptionError": "errors",
    "OutputError": "errors",
    "Paired": "evaluation.mcnemar",
    "Prediction": "prediction",
    "Preprocessing": "data.decode",
    "Progress": "progress",
    "Quantised": "exports.int8",
    "Recipe": "training.recipe",
    "Retrained": "verbs.retrain",
    "Run": "runs.folder",
    "RunError": "errors",
    "RungResult": "training.ladder",
    "Scan": "data.scan",
    "Scores": "evaluation.metrics",
    "ServerError": "errors",
    "Split": "data.splits",
    "SplitShares": "data.splits",
    "TerminalProgress": "progress",
    "TrainingError": "errors",
    "UnreadableImage": "errors",
    "WeightsError": "errors",
    "Whole": "exports.parity",
    "Workbench": "pipeline.custom_loop",
    "WriteError": "errors",
    "check": "verbs.check",
    "compare": "verbs.compare",
    "compare_models": "verbs.compare_models",
    "create_app": "serve.server",
    "evaluate": "verbs.evaluate",
    "export": "verbs.export",
    "inspect": "data.inspection",
    "keep_freed_memory": "engine.device",
    "load": "model",
    "load_backbone": "backbone.weights",
    "load_run": "runs.folder",
    "open_data": "data.dataset",
    "open_folder": "data.dataset",
    "open_table": "data.dataset",
    "prepare": "pipeline.custom_loop",
    "push": "verbs.report",
    "report": "verbs.report",
    "resume": "pipeline.train",
    "retrain": "verbs.retrain",
    "train": "pipeline.train",
    "train_events": "pipeline.train_events",
    "verify": "verbs.export",
}

__all__ = [
    "About",
    "Backbone",
    "CacheError",
    "Calibration",
    "ClassScore",
    "Columns",
    "Compared",
    "Comparison",
    "DataError",
    "Dataset",
    "Diverged",
    "DuplicatePair",
    "Evaluated",
    "Event",
    "ExportError",
    "Exported",
    "Familiar",
    "FeatureExtractor",
    "FeatureNet",
    "Finding",
    "Format",
    "GroupScore",
    "HeadstartError",
    "HubError",
    "ImageClassifier",
    "InputError",
    "Inspection",
    "LabelScore",
    "LabelScores",
    "LargeImage",
    "Limits",
    "Model",
    "ModelComparison",
    "ModelFileError",
    "OptionError",
    "OutputError",
    "Paired",
    "Prediction",
    "Preprocessing",
    "Progress",
    "Quantised",
    "Recipe",
    "Retrained",
    "Run",
    "RunError",
    "RungResult",
    "Scan",
    "Scores",
    "ServerError",
    "Split",
    "SplitShares",
    "TerminalProgress",
    "TrainingError",
    "UnreadableImage",
    "WeightsError",
    "Whole",
    "Workbench",
    "WriteError",
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
