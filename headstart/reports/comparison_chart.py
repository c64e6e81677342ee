"""Chart of a comparison of classifiers: accuracy with 95 % interval, and training time."""

from __future__ import annotations

from collections.abc import Sequence

from headstart.evaluation.comparison import Compared
from headstart.reports.svg_chart import BLUE, GREY, ORANGE, SKY, YELLOW, Interval, interval_chart

_COLOURS = {"probes": BLUE, "heads": SKY, "depths": ORANGE, "batchnorm": YELLOW, "weights": GREY, "backbones": BLUE}
"""Colour of each group of methods, see ``verbs.compare.GROUPS``."""


def comparison_chart(rows: Sequence[Compared]) -> str:
    """Draws one row per classifier as an ``<svg>`` element.

    Args:
        rows: at least one classifier, from top to bottom.
    """
    intervals = [
        Interval(row.name, 100 * row.accuracy, 100 * row.low, 100 * row.high, row.seconds, _COLOURS[row.group])
        for row in rows
    ]
    return interval_chart(
        intervals,
        x_label="accuracy, % (95 % interval)",
        bar_label="seconds",
        description="Accuracy with 95 % interval, and training time in seconds; the table has the same figures",
    )
