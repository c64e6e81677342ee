"""Small random images for tests, generated when needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (40, 170, 60), "red": (200, 50, 40)}


def random_image(
    seed: int, colour: tuple[int, int, int] = (120, 120, 120), size: tuple[int, int] = (48, 40)
) -> Image.Image:
    """A coloured image of 6 x 6 random patches; images of different seeds are no near-duplicates."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(-110, 110, (6, 6, 3)) + np.array(colour)
    small = Image.fromarray(patches.clip(0, 255).astype(np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def write_classes(folder: Path, counts: dict[str, int], *, first_seed: int = 0) -> Path:
    """Writes ``folder/<class>/<n>.png``; a class named as in COLOURS has that colour."""
    seed = first_seed
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            colour = COLOURS.get(name, list(COLOURS.values())[number % 3])
            random_image(seed, colour).save(folder / name / f"{i}.png")
            seed += 1
    return folder


def mislabel(folder: Path, one: str, other: str, count: int) -> Path:
    """Swaps every third image of two classes, so that a linear probe leaves errors for fine-tuning to correct."""
    for i in range(0, count, 3):
        first, second = folder / one / f"{i}.png", folder / other / f"{i}.png"
        held = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(held)
    return folder


def write_grouped_table(folder: Path) -> Path:
    """Writes ``folder/t.csv``: three classes with label errors, and seven groups spread over all classes."""
    data = mislabel(write_classes(folder / "d", dict.fromkeys(COLOURS, 60)), "blue", "red", 40)
    rows = [
        f"{path.relative_to(folder)},{path.parent.name},site {i % 7}"
        for i, path in enumerate(sorted(data.rglob("*.png")))
    ]
    (folder / "t.csv").write_text("\n".join(["path,label,group", *rows]))
    return folder / "t.csv"


def write_mixtures(folder: Path, count: int, *, first_seed: int = 0) -> list[tuple[str, tuple[str, ...]]]:
    """Writes ``folder/<n>.png``: images with zero to three stripes in COLOURS; returns (name, colours) of each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        shown = [name for place, name in enumerate(COLOURS) if i >> place & 1]
        image = random_image(first_seed + i)
        for place, name in enumerate(shown):
            image.paste(random_image(first_seed + i, COLOURS[name]).crop((0, 0, 16, 40)), (16 * place, 0))
        image.save(folder / f"{i}.png")
        rows.append((f"{i}.png", tuple(shown)))
    return rows


def write_12_bits(folder: Path, counts: dict[str, int]) -> Path:
    """Writes ``folder/<class>/<n>.png``: 12-bit grey images in 16-bit files, as microscopes write them."""
    seed = 0
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            grey = np.asarray(random_image(seed, (60 + 80 * number,) * 3).convert("L")).astype(np.uint16)
            Image.fromarray(grey * 16).save(folder / name / f"{i}.png")
            seed += 1
    return folder
