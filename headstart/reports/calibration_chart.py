"""Calibration charts: reliability diagram, and accuracy against coverage."""

from __future__ import annotations

from collections.abc import Sequence

from headstart.evaluation.predictions import Evaluated
from headstart.evaluation.reliability import BEFORE, Reliability, coverage_curve
from headstart.reports.svg_chart import BLUE, GREEN, ORANGE, Series, line_chart
from headstart.training.losses import is_multi_label
from headstart.trust.calibration import Calibration

_COLOURS = {BEFORE: ORANGE, "val": BLUE, "val, after": BLUE, "test": GREEN}


def calibration_charts(
    calibration: Calibration, found: Sequence[Reliability], evaluated: Sequence[Evaluated]
) -> list[str]:
    """Draws the reliability diagram and, for single-label models, accuracy against coverage.

    Args:
        calibration: calibration of the model.
        found: result of ``evaluation.reliability.reliabilities``.
        evaluated: predictions of the model by set; only val and test are used.

    Returns:
        ``<svg>`` elements; empty without predictions.
    """
    if not found:
        return []
    curves = [part for part in evaluated if part.scores.name in ("val", "test") and not is_multi_label(part.labels)]
    return [_reliability_diagram(found), *([_coverage_chart(calibration, curves)] if curves else [])]


def _reliability_diagram(found: Sequence[Reliability]) -> str:
    series = [
        Series(
            f"{one.name}: calibration error {100 * one.error:.1f} points",
            [(100 * b.confidence, 100 * b.accuracy) for b in one.bins],
            _COLOURS[one.name],
            dashed=one.name == BEFORE,
            markers=True,
        )
        for one in found
    ]
    return line_chart(
        series,
        x_label="predicted probability, %",
        y_label="correct predictions, %",
        description="Reliability diagram: share of correct predictions by predicted probability",
        diagonal=True,
    )


def _coverage_chart(calibration: Calibration, curves: Sequence[Evaluated]) -> str:
    series = []
    for part in curves:
        shares, accuracies = coverage_curve(part)
        points = list(zip((100 * shares).tolist(), (100 * accuracies).tolist(), strict=True))
        series.append(Series(part.scores.name, points, _COLOURS[part.scores.name]))
    return line_chart(
        series,
        x_label="coverage: share of images answered, most confident first, %",
        y_label="accuracy on the answered images, %",
        description="Accuracy against coverage",
        guide=100 * calibration.target_accuracy if calibration.images else None,
    )
