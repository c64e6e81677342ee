"""Evaluation: metrics with confidence intervals, predictions and comparisons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.lazy import lazy_names

if TYPE_CHECKING:
    from headstart.evaluation.comparison import Compared as Compared
    from headstart.evaluation.mcnemar import Paired as Paired
    from headstart.evaluation.metrics import ClassScore as ClassScore
    from headstart.evaluation.metrics import GroupScore as GroupScore
    from headstart.evaluation.metrics import LabelScore as LabelScore
    from headstart.evaluation.metrics import LabelScores as LabelScores
    from headstart.evaluation.metrics import Scores as Scores
    from headstart.evaluation.predictions import Evaluated as Evaluated

_MODULES = {
    "ClassScore": "headstart.evaluation.metrics",
    "Compared": "headstart.evaluation.comparison",
    "Evaluated": "headstart.evaluation.predictions",
    "GroupScore": "headstart.evaluation.metrics",
    "LabelScore": "headstart.evaluation.metrics",
    "LabelScores": "headstart.evaluation.metrics",
    "Paired": "headstart.evaluation.mcnemar",
    "Scores": "headstart.evaluation.metrics",
}

__getattr__, __dir__, __all__ = lazy_names(__name__, _MODULES)
