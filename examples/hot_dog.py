"""Hot dog or not: Dive into Deep Learning's fine-tuning chapter, ResNet-50 v2, pretrained against from scratch.

    python examples/hot_dog.py [FOLDER] [--weights resnetv2_50.pth]

FOLDER has one folder for each class, or train and test above them. docs/tutorials/hot-dog.md explains each step.
"""

from __future__ import annotations

from collections.abc import Sequence

from side_by_side import Row, Tutorial, arguments, side_by_side

TUTORIAL = Tutorial(
    title="Dive into Deep Learning, fine-tuning: hot dog or not",
    backbone="resnetv2_50",
    known="fine-tuned .940, from scratch .850 (ResNet-18, 5 epochs, 800 test images)",
    traps=[
        'the "scratch" network of one edition loads ImageNet weights; --scratch here loads no weights file.',
        "its head is attached to the 1,000-way softmax; here to the pooled features.",
        "its pixels are not scaled as the weights expect; here preprocessing comes with the weights.",
    ],
    stand_in="hotdog",
)


def main(given: Sequence[str] | None = None) -> list[Row]:
    """Runs the example."""
    chosen = arguments(TUTORIAL, __doc__, given)
    epochs = {"epochs": 1, "views": 1, "image_size": 64} if chosen.short else {"epochs": 5, "views": 3}
    ways = {
        "tutorial: everything fine-tuned": {"effort": "quick", "unfreeze": "all", "lr": 5e-4} | epochs,
        "tutorial: from scratch, as long": {"effort": "quick", "scratch": True, "lr": 5e-4} | epochs,
        "Headstart's defaults": {"effort": "probe" if chosen.short else "standard"},
    }
    return side_by_side(TUTORIAL, ways, chosen)


if __name__ == "__main__":
    main()
