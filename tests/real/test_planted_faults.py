"""What the data check finds among photographs: planted faults, and the flowers' own."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from machine_speed import slowness
from photographs import Timed, photographs
from PIL import Image

from headstart.data import inspect, open_folder


@pytest.fixture(scope="module")
def flipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """Flowers as a table in which every twentieth label is wrong, and the paths with wrong labels."""
    data = open_folder(photographs("flowers"))
    rng = np.random.default_rng(0)
    wrong = rng.choice(len(data), round(0.05 * len(data)), replace=False)
    labels = data.labels.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, len(data.classes), len(wrong))) % len(data.classes)
    table = tmp_path_factory.mktemp("flipped") / "flowers.csv"
    files = data.files()
    with open(table, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        rows.writerows([files[i], data.classes[labels[i]], data.splits[i]] for i in range(len(data)))
    return table, {files[i] for i in wrong}


def test_of_flipped_labels_80_percent_are_found_at_60_percent_precision(
    command: Callable[..., Timed], flipped: tuple[Path, set[str]]
) -> None:
    table, wrong = flipped
    first = command("check", table, "--json")  # the frozen pass as well, where nothing ran before
    assert first.status == 0, first.err
    again = command("check", table, "--json")
    assert again.seconds < 15 * slowness()
    finding = next(f for f in json.loads(again.out)["findings"] if f["kind"] == "wrong-label")
    named = {path for (path,) in finding["images"]}
    assert len(named & wrong) >= 0.8 * len(wrong)
    assert len(named & wrong) >= 0.6 * len(named)


@pytest.mark.untimed
def test_the_two_flowers_in_both_train_and_val_are_named() -> None:
    leak = next(f for f in inspect(photographs("flowers")).findings if f.kind == "leak")
    exact = [pair for pair, item in zip(leak.images, leak.items, strict=True) if " = " in item]
    same = {tuple(Path(path).name for path in pair) for pair in exact}
    assert leak.severity == "serious"
    assert same == {
        ("14889392928_9742aed45b_m.jpg", "15066430311_fb57fa92b0_m.jpg"),
        ("15069459615_7e0fd61914_n.jpg", "15072973261_73e2912ef2_n.jpg"),
    }


@pytest.mark.untimed
@pytest.mark.share
def test_95_of_100_changed_copies_across_splits_are_found_and_no_stranger(tmp_path: Path) -> None:
    flowers, root = photographs("flowers"), tmp_path / "planted"
    for file in flowers.rglob("*.jpg"):
        link = root / file.relative_to(flowers)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    before = {frozenset(pair) for pair in pairs(inspect(flowers))}
    planted = set()
    for i, file in enumerate(random.Random(0).sample(sorted(flowers.glob("train/*/*.jpg")), 100)):
        copy = root / "val" / file.parent.name / f"copy{i}.jpg"
        changed(Image.open(file).convert("RGB"), i).save(copy, quality=35 if i % 4 == 1 else 90)
        planted.add(frozenset((str(file.relative_to(flowers)), str(copy.relative_to(root)))))
    found = {frozenset(pair) for pair in pairs(inspect(root))}
    assert len(found & planted) >= 95
    originals = {path: next(iter(pair - {path})) for pair in planted for path in pair if "copy" in path}
    strangers = [
        pair for pair in found - planted if frozenset(originals.get(path, path) for path in pair) not in before
    ]
    assert len(strangers) < 0.02 * len(found)


def changed(image: Image.Image, number: int) -> Image.Image:
    """Resized, recompressed, or cropped by 3 % in one of two ways."""
    width, height = image.size
    if number % 4 == 0:
        return image.resize((round(0.6 * width), round(0.6 * height)), Image.Resampling.LANCZOS)
    if number % 4 == 2:
        return image.crop((round(0.03 * width), round(0.03 * height), width, height))
    if number % 4 == 3:
        return image.crop((*(round(0.03 * side) for side in image.size), *(round(0.97 * side) for side in image.size)))
    return image


def pairs(look: object) -> list[tuple[str, str]]:
    return [(look.dataset.paths[p.first], look.dataset.paths[p.second]) for p in look.duplicates]
