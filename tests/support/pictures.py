"""Small pictures, made where they are needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (40, 170, 60), "red": (200, 50, 40)}


def picture(seed: int, colour: tuple[int, int, int] = (120, 120, 120), size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A coloured picture with eight large random patches: no two seeds are near-identical."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(-110, 110, (6, 6, 3)) + np.array(colour)
    small = Image.fromarray(patches.clip(0, 255).astype(np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def write_classes(folder: Path, counts: dict[str, int], *, first_seed: int = 0) -> Path:
    """``folder/<class>/<n>.png``; classes of one of the names in COLOURS have that colour."""
    seed = first_seed
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            colour = COLOURS.get(name, list(COLOURS.values())[number % 3])
            picture(seed, colour).save(folder / name / f"{i}.png")
            seed += 1
    return folder


def mislabel(folder: Path, one: str, other: str, count: int) -> Path:
    """Every third of two classes' pictures changes places, so that a probe leaves something to mend."""
    for i in range(0, count, 3):
        first, second = folder / one / f"{i}.png", folder / other / f"{i}.png"
        held = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(held)
    return folder


def write_grouped_table(folder: Path) -> Path:
    """``folder/t.csv``: images of three classes, some mislabelled, of seven groups that are spread over all classes."""
    data = mislabel(write_classes(folder / "d", dict.fromkeys(COLOURS, 60)), "blue", "red", 40)
    rows = [
        f"{path.relative_to(folder)},{path.parent.name},site {i % 7}"
        for i, path in enumerate(sorted(data.rglob("*.png")))
    ]
    (folder / "t.csv").write_text("\n".join(["path,label,group", *rows]))
    return folder / "t.csv"


def write_mixtures(folder: Path, count: int, *, first_seed: int = 0) -> list[tuple[str, tuple[str, ...]]]:
    """``folder/<n>.png``: pictures that show none, one, two or all of COLOURS, a stripe each; (name, colours)."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        shown = [name for place, name in enumerate(COLOURS) if i >> place & 1]
        image = picture(first_seed + i)
        for place, name in enumerate(shown):
            image.paste(picture(first_seed + i, COLOURS[name]).crop((0, 0, 16, 40)), (16 * place, 0))
        image.save(folder / f"{i}.png")
        rows.append((f"{i}.png", tuple(shown)))
    return rows


def write_12_bits(folder: Path, counts: dict[str, int]) -> Path:
    """``folder/<class>/<n>.png``: grey pictures whose 12 bits lie in files of 16, as microscopes write them."""
    seed = 0
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            grey = np.asarray(picture(seed, (60 + 80 * number,) * 3).convert("L")).astype(np.uint16)
            Image.fromarray(grey * 16).save(folder / name / f"{i}.png")
            seed += 1
    return folder
