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
    from headstart.data.checks import Inspection, inspect
    from headstart.data.dataset import Dataset, open_data, open_folder, open_table
    from headstart.data.duplicates import DuplicatePair
    from headstart.data.finding import Finding
    from headstart.data.images import Preprocessing
    from headstart.data.scan import Scan
    from headstart.data.splits import Split, SplitShares
    from headstart.data.table import Columns
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
    from headstart.evaluation.metrics import ClassScore, GroupScore, LabelScore, LabelScores, Scores
    from headstart.evaluation.paired import Paired
    from headstart.evaluation.predictions import Evaluated
    from headstart.exports.about import About
    from headstart.exports.agreement import Format, Whole
    from headstart.exports.int8 import Quantised
    from headstart.model import Model, Prediction, load
    from headstart.progress import Progress, TerminalProgress
    from headstart.runs.check import check
    from headstart.runs.compare import Comparison, compare
    from headstart.runs.evaluate import evaluate
    from headstart.runs.events import train_events
    from headstart.runs.export import Exported, export, verify
    from headstart.runs.folder import Run, load_run
    from headstart.runs.log import Event
    from headstart.runs.paired import ModelComparison, compare_models
    from headstart.runs.report import push, report
    from headstart.runs.retrain import Retrained, retrain
    from headstart.runs.train import resume, train
    from headstart.runs.workbench import Workbench, prepare
    from headstart.serve.limits import Limits
    from headstart.serve.server import create_app
    from headstart.training.calibration import Calibration
    from headstart.training.ladder import RungResult
    from headstart.training.outliers import Familiar
    from headstart.training.recipe import Recipe

_HOMES = {
    "About": "exports.about",
    "Backbone": "backbone.weights",
    "CacheError": "errors",
    "Calibration": "training.calibration",
    "ClassScore": "evaluation.metrics",
    "Columns": "data.table",
    "Compared": "evaluation.comparison",
    "Comparison": "runs.compare",
    "DataError": "errors",
    "Dataset": "data.dataset",
    "Diverged": "errors",
    "DuplicatePair": "data.duplicates",
    "Evaluated": "evaluation.predictions",
    "Event": "runs.log",
    "ExportError": "errors",
    "Exported": "runs.export",
    "Familiar": "training.outliers",
    "FeatureExtractor": "estimators",
    "FeatureNet": "backbone.forward",
    "Finding": "data.finding",
    "Format": "exports.agreement",
    "GroupScore": "evaluation.metrics",
    "HeadstartError": "errors",
    "HubError": "errors",
    "ImageClassifier": "estimators",
    "InputError": "errors",
    "Inspection": "data.checks",
    "LabelScore": "evaluation.metrics",
    "LabelScores": "evaluation.metrics",
    "LargeImage": "errors",
    "Limits": "serve.limits",
    "Model": "model",
    "ModelComparison": "runs.paired",
    "ModelFileError": "errors",
    "OptionError": "errors",
    "OutputError": "errors",
    "Paired": "evaluation.paired",
    "Prediction": "model",
    "Preprocessing": "data.images",
    "Progress": "progress",
    "Quantised": "exports.int8",
    "Recipe": "training.recipe",
    "Retrained": "runs.retrain",
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
    "Whole": "exports.agreement",
    "Workbench": "runs.workbench",
    "WriteError": "errors",
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
