"""What the five tutorial examples share: their arguments, the backbone that can be had, and ways side by side."""

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
        title: of the tutorial, and what it trains.
        backbone: that it uses, in timm's name.
        known: the figures that it gives.
        traps: in it, and what is done here instead.
        stand_in: the data set that may stand in for its own.
    """

    title: str
    backbone: str
    known: str
    traps: Sequence[str]
    stand_in: str


@dataclass(frozen=True)
class Row:
    """One way and what it gave."""

    way: str
    scores: Scores
    seconds: float
    run: hs.Run


def arguments(tutorial: Tutorial, text: str | None, given: Sequence[str] | None) -> argparse.Namespace:
    """The arguments that every example takes."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("HEADSTART_DATA", "../shared/data")) / tutorial.stand_in
    parser.add_argument("data", nargs="?", type=Path, default=shared, help="your copy of the data set, or a stand-in")
    parser.add_argument("--weights", type=Path, help=f"a file of weights for {tutorial.backbone}")
    parser.add_argument("--out", type=Path, help="a new folder for the runs")
    parser.add_argument(
        "--short", action="store_true", help="few images and epochs, and no fine-tuning of Headstart's own"
    )
    return parser.parse_args(given)


def backbone_for(tutorial: Tutorial, weights: Path | None) -> dict[str, Any]:
    """The tutorial's own backbone where its weights can be had, else the offline default; says which."""
    try:
        load_backbone(tutorial.backbone, weights=weights)
    except hs.HeadstartError as error:
        if weights is not None:
            raise
        print(f"{tutorial.backbone} cannot be had here ({str(error).split(':')[0]}); the offline default stands in.")
        return {}
    return {"backbone": tutorial.backbone, "weights": str(weights) if weights else None}


def some_of(data: hs.Dataset) -> hs.Dataset:
    """About 300 of the images, spread over all of them."""
    kept = range(0, len(data), max(1, len(data) // 300))
    splits = tuple(data.splits[i] for i in kept) if data.splits else None
    return replace(data, paths=tuple(data.paths[i] for i in kept), labels=data.labels[list(kept)], splits=splits)


def side_by_side(tutorial: Tutorial, ways: dict[str, dict[str, Any]], given: argparse.Namespace) -> list[Row]:
    """Trains in each way, and prints what each gave beside what the tutorial gives.

    Args:
        tutorial: which one.
        ways: name -> fields of a recipe.
        given: see ``arguments``.
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
