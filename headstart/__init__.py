"""Headstart turns a folder of labelled images into a classifier that you can trust, by transfer learning.

    import headstart as hs

    run = hs.train("flowers/")
    print(run.scores.sentence)             # val accuracy 92.2 % (507/550), 95 % CI 89.6-94.1
    model = hs.load(run.model_path)
    model.predict("rose.jpg")              # Prediction(label='roses', probability=0.97, ...)

The names here are what most programs need. Types of results and tools for special cases are in the documented
submodules: ``headstart.data``, ``backbone``, ``engine``, ``training``, ``trust``, ``evaluation``, ``runs``,
``pipeline``, ``verbs``, ``exports``, ``runtime``, ``serve``, ``estimators``, ``progress`` and ``errors``.

A name is imported when it is first used: ``import headstart`` alone takes milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.lazy import lazy_names

if TYPE_CHECKING:
    from headstart.data.dataset import Dataset as Dataset
    from headstart.data.dataset import open_data as open_data
    from headstart.errors import HeadstartError as HeadstartError
    from headstart.estimators import FeatureExtractor as FeatureExtractor
    from headstart.estimators import ImageClassifier as ImageClassifier
    from headstart.loading import load as load
    from headstart.model import Model as Model
    from headstart.pipeline.custom_loop import prepare as prepare
    from headstart.pipeline.resume import resume as resume
    from headstart.pipeline.train import train as train
    from headstart.prediction import Prediction as Prediction
    from headstart.progress import TerminalProgress as TerminalProgress
    from headstart.runs.folder import Run as Run
    from headstart.runs.folder import load_run as load_run
    from headstart.serve.labelling.process import label as label
    from headstart.training.recipe import Recipe as Recipe
    from headstart.verbs.check import check as check
    from headstart.verbs.compare import compare as compare
    from headstart.verbs.compare_models import compare_models as compare_models
    from headstart.verbs.evaluate import evaluate as evaluate
    from headstart.verbs.export import export as export
    from headstart.verbs.export import verify as verify
    from headstart.verbs.push import push as push
    from headstart.verbs.report import report as report
    from headstart.verbs.retrain import retrain as retrain

_MODULES = {
    "Dataset": "headstart.data.dataset",
    "FeatureExtractor": "headstart.estimators",
    "HeadstartError": "headstart.errors",
    "ImageClassifier": "headstart.estimators",
    "Model": "headstart.model",
    "Prediction": "headstart.prediction",
    "Recipe": "headstart.training.recipe",
    "Run": "headstart.runs.folder",
    "TerminalProgress": "headstart.progress",
    "check": "headstart.verbs.check",
    "compare": "headstart.verbs.compare",
    "compare_models": "headstart.verbs.compare_models",
    "evaluate": "headstart.verbs.evaluate",
    "export": "headstart.verbs.export",
    "label": "headstart.serve.labelling.process",
    "load": "headstart.loading",
    "load_run": "headstart.runs.folder",
    "open_data": "headstart.data.dataset",
    "prepare": "headstart.pipeline.custom_loop",
    "push": "headstart.verbs.push",
    "report": "headstart.verbs.report",
    "resume": "headstart.pipeline.resume",
    "retrain": "headstart.verbs.retrain",
    "train": "headstart.pipeline.train",
    "verify": "headstart.verbs.export",
}

_SUBMODULES = {
    "Backbone": "headstart.backbone",
    "CacheError": "headstart.errors",
    "Calibration": "headstart.trust",
    "ClassScore": "headstart.evaluation",
    "Columns": "headstart.data",
    "Compared": "headstart.evaluation",
    "Comparison": "headstart.verbs",
    "DataError": "headstart.errors",
    "Diverged": "headstart.errors",
    "DuplicatePair": "headstart.data",
    "Evaluated": "headstart.evaluation",
    "Event": "headstart.runs",
    "ExportError": "headstart.errors",
    "Exported": "headstart.verbs",
    "FeatureNet": "headstart.backbone",
    "Finding": "headstart.data",
    "GroupScore": "headstart.evaluation",
    "HubError": "headstart.errors",
    "InputError": "headstart.errors",
    "Inspection": "headstart.data",
    "LabelScore": "headstart.evaluation",
    "LabelScores": "headstart.evaluation",
    "LargeImage": "headstart.errors",
    "ModelComparison": "headstart.verbs",
    "ModelFileError": "headstart.errors",
    "OptionError": "headstart.errors",
    "OutputError": "headstart.errors",
    "Paired": "headstart.evaluation",
    "Preprocessing": "headstart.data",
    "Progress": "headstart.progress",
    "Retrained": "headstart.verbs",
    "RunError": "headstart.errors",
    "RungResult": "headstart.training",
    "Scan": "headstart.data",
    "Scores": "headstart.evaluation",
    "ServerError": "headstart.errors",
    "Split": "headstart.data",
    "SplitShares": "headstart.data",
    "TrainingError": "headstart.errors",
    "UnreadableImage": "headstart.errors",
    "WeightsError": "headstart.errors",
    "Workbench": "headstart.pipeline",
    "WriteError": "headstart.errors",
    "create_app": "headstart.serve",
    "inspect": "headstart.data",
    "keep_freed_memory": "headstart.engine",
    "load_backbone": "headstart.backbone",
    "open_folder": "headstart.data",
    "open_table": "headstart.data",
    "train_events": "headstart.pipeline",
}
"""Names that were here before the first release -> the submodule that has them."""

_MOVED = {name: f"{module}.{name}" for name, module in _SUBMODULES.items()} | {
    "About": "headstart.exports.ExportMetadata",
    "Familiar": "headstart.trust.OodDetector",
    "Format": "headstart.exports.FormatResult",
    "Quantised": "headstart.exports.QuantizedLayers",
    "Whole": "headstart.exports.FullSizeDecoding",
}
"""Names that were here before the first release -> where they are now."""
__getattr__, __dir__, __all__ = lazy_names(__name__, _MODULES, _MOVED)
