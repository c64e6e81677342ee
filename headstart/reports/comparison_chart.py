"""The comparison of several classifiers as a chart: accuracy with its interval against seconds."""

from __future__ import annotations

from collections.abc import Sequence

from headstart.evaluation.comparison import Compared
from headstart.reports.svg_chart import BLUE, GREY, ORANGE, SKY, YELLOW, Interval, interval_chart

_COLOURS = {"probes": BLUE, "heads": SKY, "depths": ORANGE, "batchnorm": YELLOW, "weights": GREY}
"""Of the groups that ``headstart compare`` knows."""


def comparison_chart(rows: Sequence[Compared]) -> str:
    """An ``<svg>`` element with one row for each classifier, in the order given.

    Args:
        rows: at least one.
    """
    intervals = [
        Interval(row.name, 100 * row.accuracy, 100 * row.low, 100 * row.high, row.seconds, _COLOURS[row.group])
        for row in rows
    ]
    return interval_chart(
        intervals,
        x_label="accuracy, % (95 % interval)",
        bar_label="seconds",
        description="Accuracy with its 95 % interval, and seconds; the table has the same figures",
    )
