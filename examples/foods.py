"""Eleven foods: PyImageSearch's VGG16, as features for a linear classifier, then with a new head, then fine-tuned.

    python examples/foods.py [FOLDER] [--weights vgg16.pth]

FOLDER has one folder for each class, or train, val and test above them. docs/tutorials/foods.md explains each step.
"""

from __future__ import annotations

from collections.abc import Sequence

from side_by_side import Row, Tutorial, arguments, side_by_side

TUTORIAL = Tutorial(
    title="PyImageSearch, fine-tuning with Keras: eleven foods",
    backbone="vgg16",
    known="after the head 78 %, then 87 % of 3,347 test images; weakest F1: Bread .62 to .82, Dairy .64 to .74",
    traps=[
        "the mean subtraction that it sets up is never applied; here preprocessing comes with the weights.",
        "whether to unfreeze more is left open; docs/concepts/ladder.md measures it.",
    ],
    stand_in="flowers",
)


def main(given: Sequence[str] | None = None) -> list[Row]:
    """Runs the example."""
    chosen = arguments(TUTORIAL, __doc__, given)
    head = {"pool": "auto" if chosen.short else "flatten", "head": "512-0.5", "head_epochs": 2 if chosen.short else 20}
    views = {} if chosen.short else {"views": 2}
    last = "features.24" if chosen.weights else "blocks.6"
    deeper = {"effort": "quick", "unfreeze": last, "epochs": 1 if chosen.short else 10, "lr": 1e-4}
    ways = {
        "tutorial: features into a linear SVM": {"probe": "svm"},
        "tutorial: a new head, 512 and dropout 0.5": head | views,
        "tutorial: then the last block unfrozen": head | {"views": 1 if chosen.short else 2} | deeper,
        "Headstart's defaults": {"effort": "probe" if chosen.short else "standard"},
    }
    rows = side_by_side(TUTORIAL, ways, chosen)
    print("Per class, with Headstart's defaults:")
    for c in rows[-1].scores.classes:
        print(f"  {c.label:<14} precision {c.precision:.2f}  recall {c.recall:.2f}  F1 {c.f1:.2f}  support {c.support}")
    return rows


if __name__ == "__main__":
    main()
