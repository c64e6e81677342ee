"""Ways to fit an image into the input: probe and quick with each fit, and what training views should look like.

    python benchmarks/fit.py OUT FOLDER [FOLDER ...] [--fits crop pad squash] [--seeds 0] [--views whole] [--scale 0.35]

Every fit is a run (``OUT/NAME-FIT-VIEWS-SCALE-SEED``) that fine-tunes the last layer group; probe and rung are judged
on val. ``--views center`` takes views as crops of the input's aspect ratio for every fit, as if images were cropped to
their center in prediction too. One JSON line for each run as it ends, and a table of sums over the seeds.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import headstart as hs
from headstart.data.augment import Augmentation, views
from headstart.features import activations
from headstart.pipeline import rung_activations


def center_views(*arguments: Any, preprocessing: hs.Preprocessing, **rest: Any) -> Any:
    """Views that do not follow the fit."""
    return views(*arguments, preprocessing=replace(preprocessing, crop_mode="center"), **rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--fits", nargs="+", default=["crop", "pad", "squash"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--views", choices=["whole", "center"], default="whole")
    parser.add_argument("--scale", type=float, default=0.35, help="smallest share of the image in a view")
    parser.add_argument("--image-size", type=int, help="side of the input in pixels")
    given = parser.parse_args()
    if given.views == "center":
        activations.views = center_views  # type: ignore[assignment]
    rung_activations.Augmentation = lambda **settings: Augmentation(scale=(given.scale, 1.0), **settings)  # type: ignore[assignment,misc]
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0] * 5)
    for data in given.data:
        for fit in given.fits:
            for seed in given.seeds:
                name = f"{data.name}-{fit}-{given.views}-{given.scale:g}-{seed}"
                cache = given.out / f"cache-{given.views}"  # both kinds of views have the same keys
                options = {"effort": "quick", "unfreeze": "blocks.6", "fit": fit, "seed": seed}
                options["image_size"] = given.image_size
                if hs.open_data(data).splits is None:
                    options |= {"val": 0.3, "test": 0.0}
                run = hs.train(data, out=given.out / name, cache=cache, **options)
                probe, rung = run.rungs[1], run.rungs[2]
                print(json.dumps({"run": name, "probe": asdict(probe), "rung": asdict(rung)}), flush=True)
                row = probe.correct, probe.log_loss, rung.correct, rung.log_loss, rung.count
                sums[data.name, fit] = [a + b for a, b in zip(sums[data.name, fit], row, strict=True)]
    print(f"{'data':<14}{'fit':<8}{'probe':>7}{'loss':>8}{'tuned':>7}{'loss':>8}{'of':>7}")
    for (name, fit), (correct, loss, tuned, tuned_loss, count) in sums.items():
        n = len(given.seeds)
        print(f"{name:<14}{fit:<8}{correct:>7.0f}{loss / n:>8.3f}{tuned:>7.0f}{tuned_loss / n:>8.3f}{count:>7.0f}")


if __name__ == "__main__":
    main()
