"""Curves of loss and accuracy, epoch by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headstart.evaluation.comparison import png_of

TRAIN, VAL = "#d55e00", "#0072b2"
"""Colours, told apart by people with any colour vision (Okabe and Ito)."""


@dataclass(frozen=True)
class CurvePoint:
    """An epoch.

    Attributes:
        stage: that it belongs to.
        epoch: from 0, within the stage.
        train_loss: mean over the training images as they were shown, while the model learnt.
        train_accuracy: likewise, 0-1.
        val_loss: log loss of the averaged weights on the validation images; None where there are none.
        val_accuracy: likewise, 0-1.
    """

    stage: str
    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float | None = None
    val_accuracy: float | None = None


def curves_picture(title: str, points: Sequence[CurvePoint]) -> bytes:
    """A PNG: loss to the left, accuracy to the right, the stages one after the other.

    Args:
        title: above it.
        points: at least one, in order.
    """
    from matplotlib.figure import Figure  # not pyplot, whose state is the caller's
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.6))  # margins are given: to have them worked out takes as long as to draw
    figure.subplots_adjust(left=0.085, right=0.985, bottom=0.14, top=0.84, wspace=0.2)
    loss, accuracy = figure.subplots(1, 2)
    stages = list(dict.fromkeys(point.stage for point in points))
    first = 1
    for number, stage in enumerate(stages):
        own = [point for point in points if point.stage == stage]
        x = range(first, first + len(own))
        for axis, train, seen, scale in (
            (loss, [p.train_loss for p in own], [p.val_loss for p in own], 1),
            (accuracy, [p.train_accuracy for p in own], [p.val_accuracy for p in own], 100),
        ):
            names = ("train, as shown", "val") if number == 0 else (None, None)
            axis.plot(x, [scale * y for y in train], "o--", color=TRAIN, markersize=3, label=names[0])
            known = [(place, scale * y) for place, y in zip(x, seen, strict=True) if y is not None]
            if known:
                axis.plot(*zip(*known, strict=True), "o-", color=VAL, markersize=3, label=names[1])
            if len(stages) > 1:
                if number:
                    axis.axvline(first - 0.5, color="#999999", linewidth=0.8)
                axis.annotate(
                    stage, (first - 0.4, 1.01), xycoords=("data", "axes fraction"), fontsize=8, color="#555555"
                )
        first += len(own)
    for axis, name in ((loss, "loss, nats"), (accuracy, "accuracy, %")):
        axis.set_xlabel("epoch")
        axis.set_ylabel(name)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    loss.legend(frameon=False)
    figure.suptitle(title)
    return png_of(figure)
