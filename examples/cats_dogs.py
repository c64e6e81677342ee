"""Cats and dogs: the Keras guide to transfer learning, Xception at 150 x 150, and Headstart's defaults.

    python examples/cats_dogs.py [FOLDER] [--weights legacy_xception.pth]

FOLDER has one folder for each class, or train and val above them. docs/tutorials/cats-dogs.md explains each step.
"""

from __future__ import annotations

from collections.abc import Sequence

from side_by_side import Row, Tutorial, arguments, side_by_side

TUTORIAL = Tutorial(
    title="Keras guide, transfer learning and fine-tuning: cats and dogs",
    backbone="legacy_xception",
    known="after the head 97.38 at best, 97.12 at last; after fine-tuning 98.67 at best, 98.45 at last (val)",
    traps=[
        "the best epoch of a curve is optimistic; here test images are scored separately, if there are any.",
        "the frozen network is run again in every epoch; here it is run once for each view of an image.",
    ],
    stand_in="cats_dogs",
)


def main(given: Sequence[str] | None = None) -> list[Row]:
    """Runs the example."""
    chosen = arguments(TUTORIAL, __doc__, given)
    head = {"image_size": 150, "head": "0.2", "single_logit": True, "head_lr": 1e-3, "views": 1 if chosen.short else 4}
    head["head_epochs"] = 3 if chosen.short else 20
    everything = {"effort": "quick", "unfreeze": "all", "lr": 1e-5, "epochs": 1 if chosen.short else 10}
    ways = {
        "tutorial: dropout and one logit on frozen features": head,
        "tutorial: then everything at 1e-5": head | everything,
        "Headstart's defaults": {"effort": "probe" if chosen.short else "standard"},
    }
    return side_by_side(TUTORIAL, ways, chosen)


if __name__ == "__main__":
    main()
