"""Five flowers: MobileNetV2 with a deep head, cut at an inner layer, unfrozen at its end, and extended.

    python examples/flowers.py [FOLDER] [--weights mobilenetv2_100.pth]

FOLDER has one folder for each class, or train and val above them. docs/tutorials/flowers.md explains each step.
"""

from __future__ import annotations

from collections.abc import Sequence

from side_by_side import Row, Tutorial, arguments, side_by_side

import headstart as hs

TUTORIAL = Tutorial(
    title="Five flowers with MobileNetV2: heads, an inner layer, the last layers, and classes added to ImageNet's",
    backbone="mobilenetv2_100",
    known="no accuracy is stated; 20 % held out",
    traps=[
        "it predicts from a shuffled generator, so no prediction matches its file; here each prediction names its file."
    ],
    stand_in="flowers",
)


def main(given: Sequence[str] | None = None) -> list[Row]:
    """Runs the example."""
    chosen = arguments(TUTORIAL, __doc__, given)
    epochs = {"head_epochs": 2 if chosen.short else 10}
    cut = {"cut": "blocks.6", "head": "conv128-flatten" if chosen.short else "conv1280-flatten", "head_lr": 1e-3}
    ways = {
        "tutorial: a deep head, 1024-512-0.2": {"head": "1024-512-0.2"} | epochs,
        "tutorial: cut at an inner layer, convolution head": cut | epochs,
        "tutorial: the last layers unfrozen": {"effort": "quick", "unfreeze": "conv_head", "views": 1}
        | ({"epochs": 1} if chosen.short else {}),
        "tutorial: added to ImageNet's 1,000 classes": {"extend": "pretrained"},
        "Headstart's defaults": {"effort": "probe" if chosen.short else "standard"},
    }
    rows = side_by_side(TUTORIAL, ways, chosen)
    among = rows[3].run.results[f"{rows[3].scores.name}, new classes only"]
    print(f"Added to ImageNet's classes, among the five: {among.sentence}")
    folder = hs.open_data(chosen.data)
    for prediction in hs.load(rows[-1].run.model_path).predict(folder.files()[:: max(1, len(folder) // 5)]):
        print(f"  {prediction.path}: {prediction.label} {prediction.probability:.2f}")
    return rows


if __name__ == "__main__":
    main()
