"""Learning curves: loss and accuracy on train and val by epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headstart.reports.svg_chart import BLUE, ORANGE, Series, line_chart


@dataclass(frozen=True)
class CurvePoint:
    """Metrics of one epoch.

    Attributes:
        stage: name of the trained rung of the ladder.
        epoch: number of the epoch within the stage, from 0.
        train_loss: mean training loss over the epoch, on augmented images, in nats.
        train_accuracy: training accuracy over the epoch, on the same images, 0-1.
        val_loss: log loss of the averaged weights on val, in nats; None without val.
        val_accuracy: accuracy of the averaged weights on val, 0-1; None without val.
    """

    stage: str
    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float | None = None
    val_accuracy: float | None = None


def curve_charts(points: Sequence[CurvePoint]) -> list[str]:
    """Draws loss and accuracy as two charts, with the stages side by side.

    Args:
        points: metrics of at least one epoch, in the order of training.

    Returns:
        ``<svg>`` elements.
    """
    loss = _chart(points, "loss, nats", lambda p: (p.train_loss, p.val_loss))
    return [loss, _chart(points, "accuracy, %", lambda p: (100 * p.train_accuracy, _percent(p.val_accuracy)))]


def _chart(
    points: Sequence[CurvePoint], y_label: str, values: Callable[[CurvePoint], tuple[float, float | None]]
) -> str:
    train = [(float(number), values(point)[0]) for number, point in enumerate(points, start=1)]
    val = [(float(n), value) for n, point in enumerate(points, start=1) if (value := values(point)[1]) is not None]
    series = [Series("train (augmented images)", train, ORANGE, dashed=True, markers=True)]
    if val:
        series.append(Series("val", val, BLUE, markers=True))
    firsts = {point.stage: number for number, point in reversed(list(enumerate(points, start=1)))}
    sections = sorted((max(1.0, first - 0.5), stage) for stage, first in firsts.items())
    return line_chart(
        series,
        x_label="epoch",
        y_label=y_label,
        description=f"{y_label.partition(',')[0].capitalize()} on train and val by epoch",
        sections=sections if len(sections) > 1 else (),
        whole_x=True,
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
