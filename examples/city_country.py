"""City or country: 72 photographs, ResNet-50, weights from a local file, and the same result every time.

    python examples/city_country.py [FOLDER] [--weights resnet50.pth]

FOLDER has train and val above one folder for each class. docs/tutorials/city-country.md explains each step.
"""

from __future__ import annotations

from collections.abc import Sequence

from side_by_side import Row, Tutorial, arguments, side_by_side

import headstart as hs

TUTORIAL = Tutorial(
    title="City or country: 72 training photographs, 20 for validation",
    backbone="resnet50",
    known="train 78 %, val 90 % (18 of 20, so 70-97 %)",
    traps=[
        "20 images are few: an accuracy without its interval claims too much.",
        "val above train is normal: train is averaged while the model learns, with dropout (curves.svg).",
    ],
    stand_in="urban_rural",
)


def main(given: Sequence[str] | None = None) -> list[Row]:
    """Runs the example."""
    chosen = arguments(TUTORIAL, __doc__, given)
    head = {"head": "0.2", "head_lr": 1e-3, "head_epochs": 5 if chosen.short else 20, "seed": 42}
    ways = {
        "tutorial: softmax on pooled features": head,
        "tutorial: the same again, same seed": head,
        "Headstart's defaults": {"effort": "probe" if chosen.short else "standard", "seed": 42},
    }
    rows = side_by_side(TUTORIAL, ways, chosen)
    first, second = (hs.load(row.run.model_path).head.state_dict() for row in rows[:2])
    same = all(tensor.equal(second[name]) for name, tensor in first.items())
    print(f"Same seed, same weights to the last bit: {'yes' if same else 'no'}")
    return rows


if __name__ == "__main__":
    main()
