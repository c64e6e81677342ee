"""Comparison of several classifiers as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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
