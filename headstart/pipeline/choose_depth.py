"""How deep to fine-tune within a time, and which of the backbones that are equally good within noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headstart.pipeline.inspect_images import Inspected
from headstart.selection.results import Selection, Speed
from headstart.training.ladder import DEEPER_FROM, EFFORTS, SHARES, TRAINING_COST, least_epochs
from headstart.training.recipe import EffortName
from headstart.trust.ood import MAX_REFERENCES_FINE_TUNED

FIXED_SECONDS = 30.0
"""Time of a run that does not depend on the number of images: engines, probe, label check, report."""


FineTuningTime = Callable[[float], float]
"""Seconds of fine-tuning in one process -> seconds by the processes of the run."""


def in_one_process(seconds: float) -> float:
    """The ``FineTuningTime`` of a run without workers."""
    return seconds


@dataclass(frozen=True)
class Depth:
    """How deep a run fine-tunes, and for how long.

    Attributes:
        effort: see ``ladder.EFFORTS``; of one rung.
        epochs: of the rung for many images.
        views: augmented views of each image.
    """

    effort: EffortName
    epochs: int
    views: int

    def __str__(self) -> str:
        return f"effort {self.effort}, {self.epochs} epochs and {self.views} views"


SHORTEST = Depth("quick", 6, 2)

SHALLOW = (SHORTEST, *(Depth("quick", epochs, views) for epochs, views in ((8, 2), (8, 3), (10, 4), (15, 6))))
"""What the time is used for where deeper layers do not pay, by increasing time."""

DEEP = (SHORTEST, Depth("quick", 8, 3), Depth("deep", 6, 2), Depth("deep", 6, 3))
"""The same where they do. Deeper layers lower the log loss further than more epochs of the last ones; more epochs than
six did not lower it on flowers (docs/results/2026-11-30-choose-for-me.md)."""


def depths_for(selection: Selection) -> tuple[Depth, ...]:
    """The depths to choose from: deep ones where the probe of the best candidate leaves enough to gain."""
    return DEEP if selection.log_loss > DEEPER_FROM else SHALLOW


@dataclass(frozen=True)
class Preferred:
    """A candidate within noise of the best.

    Attributes:
        place: in ``Selection.near``.
        why: the reason to use it instead of the best one, in words.
        effort: the deepest that is expected to fit into the time; "probe" if none does.
    """

    place: int
    why: str
    effort: EffortName


def by_preference(
    selection: Selection,
    inspected: Inspected,
    seconds: float,
    depths: Sequence[Depth],
    training: FineTuningTime = in_one_process,
) -> list[Preferred]:
    """The candidates within noise of the best, in the order in which they are used if there is time.

    First those that can be fine-tuned deeper in the time, and among equally deep ones that with the most weights, so
    networks side by side before a single one. A linear classifier does not tell which network is best after
    fine-tuning, and size is the better guide: with equally good probes on flowers, the log loss after fine-tuning is
    0.156 with Lite0 and 0.146 with Lite1, and deeper 0.122 and 0.114.

    Args:
        selection: the outcome of the search.
        inspected: the images.
        seconds: time left.
        depths: to choose from.
        training: see ``seconds_of``.

    Source: "Back to the Basics on Predicting Transfer Performance", arXiv 2510.06448: a static ranking by size predicts
    the accuracy after fine-tuning better than transferability scores.
    """
    efforts = list(dict.fromkeys(depth.effort for depth in depths))

    def reach(place: int) -> int:
        """0 without fine-tuning, else the number of the deepest effort that fits."""
        speed = selection.near[place].speed
        fitting = [depth.effort for depth in depths if seconds_of(depth, inspected, speed, training) <= seconds]
        return max((1 + efforts.index(effort) for effort in fitting), default=0)

    reaches = {place: reach(place) for place in range(len(selection.near))}

    def order(place: int) -> tuple[int, int, int]:
        size = selection.near[place].candidate.parameters if reaches[place] else 0
        return -reaches[place], -size, place

    def why(place: int) -> str:
        if reaches[place] > reaches[0]:
            return "there is time to fine-tune it" + (" deeper" if reaches[0] else "")
        return "it has more weights, which helps in fine-tuning"

    names: list[EffortName] = ["probe", *efforts]
    return [Preferred(place, why(place), names[reaches[place]]) for place in sorted(reaches, key=order)]


def seconds_of(
    depth: Depth | None, inspected: Inspected, speed: Speed, training: FineTuningTime = in_one_process
) -> float:
    """Seconds that a run takes after the search, estimated before its engines are measured.

    Args:
        depth: of the fine-tuning; None for a linear classifier.
        inspected: the images.
        speed: of the backbone.
        training: how long fine-tuning takes that takes one process so many seconds.
    """
    train = len(inspected.keys["train"])
    held_out = inspected.num_images - train
    if depth is None:
        return inspected.num_images * speed.whole + FIXED_SECONDS
    share = SHARES[EFFORTS[depth.effort].depths[0]]
    epochs = least_epochs(train, depth.epochs)
    steps = train * epochs * (1 - share) * TRAINING_COST * speed.forward
    again = held_out + min(MAX_REFERENCES_FINE_TUNED, train)  # evaluated with the fine-tuned network
    return training(train * depth.views * speed.whole + steps) + (held_out + again) * speed.whole + FIXED_SECONDS
