"""Output of commands: result lines, tables and JSON on stdout, messages on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from headstart.figures import interval_text, percent_text, share_text
from headstart.files import json_text, printable

if TYPE_CHECKING:
    from headstart.distributed.compute import ShardedOutput
    from headstart.evaluation.metrics import AnyScores
    from headstart.runs.folder import Run

MAX_NUMBER_WIDTH = 24
"""Maximum width of a right-aligned column of numbers, in characters."""


def say(text: str) -> None:
    """Prints one line to stderr."""
    print(text, file=sys.stderr)


def print_json(document: object) -> None:
    """Prints one JSON document to stdout."""
    print(json_text(document, indent=1))


def print_results(scores: Iterable[AnyScores]) -> None:
    """Prints a result line for each set of images."""
    for one in scores:
        print(result_line(one))


def result_line(scores: AnyScores) -> str:
    """A result in words: "val accuracy 92.4 % (508/550), 95 % CI 89.8-94.3, macro F1 0.921"."""
    from headstart.evaluation.metrics import LabelScores

    if not isinstance(scores, LabelScores):
        return f"{scores.sentence}, macro F1 {scores.macro_f1:.3f}"
    precision = percent_text(scores.mean_average_precision)
    interval = interval_text(scores.map_low, scores.map_high)
    accuracy = share_text(scores.correct, scores.count, scores.low, scores.high)
    return (
        f"{scores.name} mAP {precision}, 95 % CI {interval}, all labels correct {accuracy}, "
        f"macro F1 {scores.macro_f1:.3f}"
    )


def run_files(run: Run) -> dict[str, str]:
    """Paths of a run for its JSON document."""
    return {"run": str(run.folder), "model": str(run.model_path), "report": str(run.report_path)}


def print_run_files(run: Run) -> None:
    """Prints the paths of report and model."""
    print(f"Report: {run.report_path}\nModel:  {run.model_path}", flush=True)


def print_shards(output: ShardedOutput, *, as_json: bool) -> None:
    """Prints what a folder of shards has."""
    if as_json:
        document = {"folder": str(output.folder), "images": output.num_rows, "unreadable": output.num_unreadable}
        print_json(document | {"computed": output.num_computed, "finished": output.is_finished})
        return
    unreadable = f"; {output.num_unreadable:,} cannot be read, see unreadable/" if output.num_unreadable else ""
    others = "" if output.is_finished else "; other parts are missing"
    print(f"{output.folder}: {output.num_rows:,} images{unreadable}{others}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints columns aligned by width: words to the left, numbers to the right."""
    table = [[printable(cell) for cell in row] for row in [header, *rows]]
    columns = list(zip(*table, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numbers = [
        place > 0 and any(cell[:1].isdigit() for cell in column[1:]) and widths[place] <= MAX_NUMBER_WIDTH
        for place, column in enumerate(columns)
    ]
    for row in table:
        cells = zip(row, widths, numbers, strict=True)
        print("  ".join(c.rjust(w) if number else c.ljust(w) for c, w, number in cells).rstrip())
