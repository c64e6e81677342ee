"""The report of a run: one HTML file that needs nothing else, for a reader who was not there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from headstart.data.checks import Inspection
from headstart.data.images import thumbnail
from headstart.evaluation.metrics import Scores
from headstart.evaluation.predictions import MANY_CLASSES, Evaluated
from headstart.evaluation.reliability import BINS, Reliability
from headstart.model import Model
from headstart.training.classifiers import Fitted
from headstart.training.ladder import RungResult
from headstart.training.outliers import KEPT
from headstart.training.targets import are_several

MISTAKES = 24
THUMBNAIL = 160
LISTED_ITEMS = 20


@dataclass(frozen=True)
class _Mistake:
    path: str
    right: str
    given: str
    chances: str
    picture: str


def render_report(
    model: Model,
    fitted: Fitted,
    look: Inspection,
    evaluated: Sequence[Evaluated],
    *,
    rungs: Sequence[RungResult] = (),
    best: str = "probe",
    curves: str = "",
    reliable: Sequence[Reliability] = (),
    trust: str = "",
    proof: dict[str, object],
    seconds: dict[str, float],
) -> str:
    """The report as HTML, pictures included.

    Args:
        model: the finished classifier.
        fitted: the classifier on frozen features, and how it was come by.
        look: the data and what was found in them.
        evaluated: predictions by split.
        rungs: of the ladder.
        best: the name of the one that was kept.
        curves: a data: address of their picture; "" for none.
        reliable: calibration before and after.
        trust: a data: address of the picture of that.
        proof: fingerprints of what was frozen, and the engines.
        seconds: by step.
    """
    pages = Environment(
        loader=PackageLoader("headstart.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    counts = look.counts()
    template = pages.get_template("report.html")
    return template.render(
        name=look.dataset.root.resolve().name,
        look=look,
        counts=counts,
        sizes=look.split.sizes,
        several=look.dataset.multi_label,
        counted=[c for c in model.classes if len(model.classes) <= MANY_CLASSES or any(n[c] for n in counts.values())],
        model=model,
        fitted=fitted,
        head_weights=sum(t.numel() for t in model.head.state_dict().values()),
        evaluated=evaluated,
        rungs=rungs,
        best=best,
        curves=curves,
        reliable={own.name: own for own in reliable},
        trust=trust,
        usual=[_usual(part) for part in evaluated],
        kept=KEPT,
        bins=BINS,
        proof=proof,
        matrices=[_matrix(part) for part in evaluated],
        mistakes=[_mistakes(part, look.dataset.base) for part in evaluated],
        seconds=seconds,
        listed=LISTED_ITEMS,
        many=MANY_CLASSES,
    )


def _usual(part: Evaluated) -> tuple[str, int, int] | None:
    """(name, images that are taken for usual, images); None where it is not known."""
    if part.outliers is None:
        return None
    return part.scores.name, int((part.outliers <= KEPT).sum()), len(part.outliers)


def _matrix(part: Evaluated) -> list[list[dict[str, Any]]]:
    """Rows of cells: images, and the share of the row's class, which sets the shade."""
    return [
        [
            {"label": part.classes[i], "count": count, "share": count / max(1, sum(row)), "right": i == j}
            for j, count in enumerate(row)
        ]
        for i, row in enumerate(part.scores.confusion if isinstance(part.scores, Scores) else ())
    ]


def _mistakes(part: Evaluated, base: Path) -> list[_Mistake]:
    found = []
    for place in part.mistakes()[:MISTAKES]:
        path, picture = os.path.relpath(part.paths[place], base), thumbnail(part.paths[place], THUMBNAIL)
        right, given, chances = part.labels[place], part.given[place], part.probabilities[place]
        if are_several(part.labels):
            names = [", ".join(part.classes[i] for i in own.nonzero()[0]) or "none" for own in (right, given)]
            wrong = [(i, "missed" if right[i] else "wrongly") for i in (right != given).nonzero()[0]]
            words = "; ".join(f"{how} {part.classes[i]} ({100 * chances[i]:.1f} %)" for i, how in wrong)
        else:
            names = [part.classes[right], part.classes[given]]
            words = f"{100 * chances[given]:.1f} % against {100 * chances[right]:.1f} %"
        found.append(_Mistake(path, names[0], names[1], words, picture))
    return found
