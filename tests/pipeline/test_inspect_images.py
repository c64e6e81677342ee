"""Images that a run cannot learn from, or that its scores cannot be trusted on."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from random_images import random_image, write_classes

import headstart as hs
from headstart.errors import DataError

pytestmark = pytest.mark.usefixtures("small_networks")

SMALL = {"image_size": 64, "device": "cpu"}


def test_data_too_small_to_learn_or_to_score_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image is left to score"):
        hs.train(
            write_classes(tmp_path / "d", {"a": 2, "b": 2}),
            out=tmp_path / "r",
            seed=3,
            val=0.01,
            test=0,
            image_size=64,
            device="cpu",
        )
    broken = write_classes(tmp_path / "e", {"a": 2, "b": 2})
    for file in broken.glob("*/*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 4 images can be read"):
        hs.train(broken, out=tmp_path / "r", **SMALL)


def test_files_that_are_all_one_image_are_an_error_that_says_so(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "d" / label).mkdir(parents=True)
        for i in range(5):
            random_image(1).save(tmp_path / "d" / label / f"{i}.png")
    with pytest.raises(DataError, match="all 10 files show the same image"):
        hs.train(tmp_path / "d", out=tmp_path / "run", image_size=64)


@pytest.mark.slow
def test_classes_of_one_group_each_are_named_in_a_warning(tmp_path: Path) -> None:
    """Whoever recognises the group knows the class: cross-validation cannot tell the one from the other."""
    data = write_classes(tmp_path / "d", {"blue": 20, "red": 20})
    rows = [[str(p.relative_to(tmp_path)), p.parent.name, f"camera of {p.parent.name}"] for p in data.rglob("*.png")]
    splits = ["val" if Path(path).stem in ("1", "2", "3") else "train" for path, *_ in rows]
    with open(tmp_path / "t.csv", "w", newline="") as file:
        head = ["path", "label", "group", "split"]
        csv.writer(file).writerows([head, *([*row, split] for row, split in zip(rows, splits, strict=True))])
    said: list[str] = []

    class Heard(hs.TerminalProgress):
        def say(self, text: str) -> None:
            said.append(text)

    hs.train(tmp_path / "t.csv", out=tmp_path / "run", image_size=64, progress=Heard())
    assert [line for line in said if "one group only" in line] == [
        "Warning: each class has training images of one group only (or near copies of one image), so cross-validation "
        "has to divide groups, and its scores are too high. Add images of other groups."
    ]
