"""Learning curves: loss and accuracy on train and val, epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headstart.reports.svg_chart import BLUE, ORANGE, Series, line_chart


@dataclass(frozen=True)
class CurvePoint:
    """The figures of one epoch.

    Attributes:
        stage: the rung of the ladder that was trained.
        epoch: number within the stage, from 0.
        train_loss: mean loss of the training images as they were shown, averaged while the model learns; in nats.
        train_accuracy: accuracy on the same images, 0-1.
        val_loss: log loss of the averaged weights on the validation images, in nats; None without such images.
        val_accuracy: their accuracy, 0-1; None without such images.
    """

    stage: str
    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float | None = None
    val_accuracy: float | None = None


def curve_charts(points: Sequence[CurvePoint]) -> list[str]:
    """Two charts, loss and accuracy, with the stages one after the other.

    Args:
        points: at least one, in the order of training.

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
    series = [Series("train, as shown", train, ORANGE, dashed=True, markers=True)]
    if val:
        series.append(Series("val", val, BLUE, markers=True))
    firsts = {point.stage: number for number, point in reversed(list(enumerate(points, start=1)))}
    sections = sorted((max(1.0, first - 0.5), stage) for stage, first in firsts.items())
    return line_chart(
        series,
        x_label="epoch",
        y_label=y_label,
        description=f"{y_label.partition(',')[0].capitalize()} on train and val, epoch by epoch",
        sections=sections if len(sections) > 1 else (),
        whole_x=True,
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
