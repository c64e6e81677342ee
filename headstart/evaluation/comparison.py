"""Several classifiers side by side: a table and a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "probes": "#0072b2",
    "heads": "#56b4e9",
    "depths": "#d55e00",
    "batchnorm": "#e69f00",
    "weights": "#555555",
}
"""Of the groups; told apart by people with any colour vision (Okabe and Ito)."""

DOTS_PER_INCH = 150


@dataclass(frozen=True)
class Compared:
    """One way to train.

    Attributes:
        group: "probes", "heads", "depths", "batchnorm", "weights".
        name: of the way.
        correct: images right, of ``count``.
        count: images that it was scored on.
        low: of the 95 % Wilson interval.
        high: of the 95 % Wilson interval.
        log_loss: mean, in nats.
        seconds: that it takes, the features that all share counted for each.
        epochs: of fine-tuning.
        run: its run folder, below the comparison's.
    """

    group: str
    name: str
    correct: int
    count: int
    low: float
    high: float
    log_loss: float
    seconds: float
    epochs: int
    run: str

    @property
    def accuracy(self) -> float:
        """0-1."""
        return self.correct / self.count


def comparison_markdown(title: str, rows: Sequence[Compared]) -> str:
    """A title and a table, the rows in the order in which they come."""
    lines = [
        f"# {title}",
        "",
        "| way | right | accuracy (95 % interval) | log loss | epochs | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        interval = f"{100 * row.accuracy:.1f} % ({100 * row.low:.1f}-{100 * row.high:.1f})"
        cells = [row.name, f"{row.correct} of {row.count}", interval, f"{row.log_loss:.3f}"]
        cells += [str(row.epochs) if row.epochs else "", f"{row.seconds:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Seconds count what all share, running the frozen backbone, for each way.", ""]
    return "\n".join(lines)


def comparison_picture(title: str, rows: Sequence[Compared]) -> bytes:
    """A PNG: accuracy with its interval, a row for each way, and the seconds beside it."""
    from matplotlib.figure import Figure  # not pyplot, whose state is the caller's

    figure = Figure(figsize=(9, 1.2 + 0.36 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 1.4], sharey=True)
    places = range(len(rows) - 1, -1, -1)
    for place, row in zip(places, rows, strict=True):
        colour = COLOURS[row.group]
        off = [[100 * (row.accuracy - row.low)], [100 * (row.high - row.accuracy)]]
        left.errorbar([100 * row.accuracy], [place], xerr=off, fmt="o", color=colour, capsize=3)
        right.barh([place], [row.seconds], color=colour, height=0.6)
        right.annotate(f"{row.seconds:.0f}", (row.seconds, place), (3, 0), textcoords="offset points", va="center")
    left.set_yticks(list(places), [row.name for row in rows])
    left.set_xlabel("accuracy, % (95 % interval)")
    right.set_xlabel("seconds")
    right.margins(x=0.25)
    left.grid(axis="x", alpha=0.3)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    return png_of(figure)


def png_of(figure: Figure) -> bytes:
    """A matplotlib figure as a PNG."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DOTS_PER_INCH)
    return data.getvalue()
