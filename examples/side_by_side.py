"""Shared code of the five tutorial examples: arguments, backbone, and training methods side by side."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import headstart as hs
from headstart.backbone import load_backbone
from headstart.evaluation import Scores


@dataclass(frozen=True)
class Tutorial:
    """A tutorial that an example follows.

    Attributes:
        title: title of the tutorial and what it trains.
        backbone: timm name of its backbone.
        known: the accuracy it states.
        traps: its pitfalls, and what is done here instead.
        stand_in: data set used if the tutorial's data are not available.
    """

    title: str
    backbone: str
    known: str
    traps: Sequence[str]
    stand_in: str


@dataclass(frozen=True)
class Row:
    """One training method and its result."""

    way: str
    scores: Scores
    seconds: float
    run: hs.Run


def arguments(tutorial: Tutorial, text: str | None, given: Sequence[str] | None) -> argparse.Namespace:
    """Command-line arguments of every example."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("HEADSTART_DATA", "../shared/data")) / tutorial.stand_in
    parser.add_argument("data", nargs="?", type=Path, default=shared, help="your copy of the data set, or a stand-in")
    parser.add_argument("--weights", type=Path, help=f"weights file for {tutorial.backbone}")
    parser.add_argument("--out", type=Path, help="a new folder for the runs")
    parser.add_argument(
        "--short", action="store_true", help="fewer images and epochs, and no fine-tuning with Headstart's defaults"
    )
    return parser.parse_args(given)


def backbone_for(tutorial: Tutorial, weights: Path | None) -> dict[str, Any]:
    """The tutorial's backbone if its weights are available, otherwise the offline default; prints which."""
    try:
        load_backbone(tutorial.backbone, weights=weights)
    except hs.HeadstartError as error:
        if weights is not None:
            raise
        reason = str(error).split(":")[0]
        print(f"{tutorial.backbone} is not available here ({reason}); the offline default is used instead.")
        return {}
    return {"backbone": tutorial.backbone, "weights": str(weights) if weights else None}


def some_of(data: hs.Dataset) -> hs.Dataset:
    """About 300 of the images, evenly spaced."""
    kept = range(0, len(data), max(1, len(data) // 300))
    splits = tuple(data.splits[i] for i in kept) if data.splits else None
    return replace(data, paths=tuple(data.paths[i] for i in kept), labels=data.labels[list(kept)], splits=splits)


def side_by_side(tutorial: Tutorial, ways: dict[str, dict[str, Any]], given: argparse.Namespace) -> list[Row]:
    """Trains with each method and prints its result beside the tutorial's.

    Args:
        tutorial: the tutorial.
        ways: name of each method -> options of a recipe.
        given: command-line arguments, see ``arguments``.
    """
    print(f"{tutorial.title}\n")
    own, rows = backbone_for(tutorial, given.weights), []
    whole = hs.open_data(given.data)
    for way, choices in ways.items():
        print(f"\n== {way}")
        started = time.monotonic()
        out = given.out / f"{len(rows) + 1}" if given.out else None
        data = some_of(whole) if given.short and way.startswith("tutorial") else whole
        weights = {"weights": None} if choices.get("scratch") else {}
        run = hs.train(data, out=out, progress=hs.TerminalProgress(), **own | choices | weights)
        rows.append(Row(way, run.scores, time.monotonic() - started, run))
    width = max(len(row.way) for row in rows)
    print(
        f"\nThe tutorial gives: {tutorial.known}\nHere, on {given.data} ({rows[0].run.recipe.backbone or 'default'}):"
    )
    for row in rows:
        print(f"  {row.way:<{width}}  {row.scores.sentence}, {row.seconds:.0f} s")
        for rung in row.run.rungs[2:]:
            print(f"  {'':<{width}}  ({rung.name}: {rung.correct:,} of {rung.count:,}; {rung.decision})")
    for trap in tutorial.traps:
        print(f"Trap: {trap}")
    print(f"Reports, curves and models: {', '.join(str(row.run.folder) for row in rows)}")
    return rows
