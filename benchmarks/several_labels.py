"""Several labels to an image: what CutMix and label smoothing do to them, on flowers pasted four to an image.

    python benchmarks/several_labels.py OUT FLOWERS [--epochs 6] [--unfreeze blocks.5]

Writes ``OUT/mosaic.csv`` and its images (1,500 to learn from, 400 to judge, each of one to three kinds of flower),
and a run for each setting. One JSON line for each as it ends, and a table at the end.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from pathlib import Path

from PIL import Image

import headstart as hs

SETTINGS = {
    "neither": {"label_smoothing": 0.0, "cutmix": 0.0},
    "cutmix": {"label_smoothing": 0.0, "cutmix": 0.5},
    "smoothing": {"label_smoothing": 0.1, "cutmix": 0.0},
    "both": {"label_smoothing": 0.1, "cutmix": 0.5},
}
PLACES = [(0, 0), (224, 0), (0, 224), (224, 224)]


def write_mosaics(folder: Path, flowers: Path) -> Path:
    """A table with a column of 0 and 1 for each kind."""
    chance = random.Random(1)
    rows = []
    kinds = sorted(kind.name for kind in (flowers / "train").iterdir() if kind.is_dir())
    for split, count in (("train", 1500), ("val", 400)):
        files = {kind: sorted((flowers / split / kind).iterdir()) for kind in kinds}
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            shown = chance.sample(kinds, chance.choice([1, 2, 2, 3]))
            tiles = shown + [chance.choice(shown) for _ in range(4 - len(shown))]
            canvas = Image.new("RGB", (448, 448))
            for place, kind in zip(chance.sample(PLACES, 4), tiles, strict=True):
                canvas.paste(Image.open(chance.choice(files[kind])).convert("RGB").resize((224, 224)), place)
            canvas.save(folder / split / f"{number}.jpg", quality=90)
            rows.append([f"{split}/{number}.jpg", *(int(kind in shown) for kind in kinds), split])
    with open(folder / "mosaic.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", *kinds, "split"], *rows])
    return folder / "mosaic.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("flowers", type=Path)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--unfreeze", default="blocks.5")
    given = parser.parse_args()
    table = write_mosaics(given.out, given.flowers)
    rows = []
    for name, own in SETTINGS.items():
        run = hs.train(
            table,
            out=given.out / "runs" / name,
            effort="standard",
            unfreeze=given.unfreeze,
            epochs=given.epochs,
            **own,
        )
        scores, rung = run.scores, run.rungs[-1]
        row = {
            "setting": name,
            "map": scores.mean_average_precision,
            "low": scores.map_low,
            "high": scores.map_high,
            "log_loss": rung.log_loss,
            "seconds": rung.seconds,
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    print(f"{'setting':<12}{'mAP':>8}{'95 % interval':>16}{'log loss':>10}{'seconds':>9}")
    for row in rows:
        interval = f"{100 * row['low']:.1f}-{100 * row['high']:.1f}"
        print(
            f"{row['setting']:<12}{100 * row['map']:>8.1f}{interval:>16}{row['log_loss']:>10.3f}{row['seconds']:>9.0f}"
        )


if __name__ == "__main__":
    main()
