"""Comparison of several classifiers as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headstart.figures import count_text, interval_text


@dataclass(frozen=True)
class Compared:
    """Results of one training method in a comparison.

    Attributes:
        group: "probes", "heads", "depths", "batchnorm", "weights".
        name: of the method.
        correct: number of correct predictions.
        count: number of images in the evaluated set.
        low: lower end of the 95 % Wilson interval of the accuracy, 0-1.
        high: upper end of that interval.
        log_loss: mean over the images, in nats.
        seconds: training time; the frozen pass, which all methods share, is counted for each.
        epochs: of fine-tuning; 0 without.
        run: its run folder, relative to the comparison's.
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
        """Share of correct predictions, 0-1."""
        return self.correct / self.count


def comparison_markdown(title: str, rows: Sequence[Compared]) -> str:
    """The comparison as a Markdown page: a title and a table, rows in the order given."""
    lines = [
        f"# {title}",
        "",
        "| method | accuracy | 95 % CI | log loss | epochs | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        accuracy, interval = count_text(row.correct, row.count), interval_text(row.low, row.high)
        cells = [row.name, accuracy, interval, f"{row.log_loss:.3f}"]
        cells += [str(row.epochs) if row.epochs else "", f"{row.seconds:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Seconds of each method include the frozen pass, which is computed once for all methods.", ""]
    return "\n".join(lines)
