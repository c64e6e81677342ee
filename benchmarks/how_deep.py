"""How deep to fine-tune: the same training behind ever earlier freeze boundaries, on several data sets.

    python benchmarks/how_deep.py OUT FOLDER [FOLDER ...] [--depths blocks.6 blocks.5 blocks.3 all] [--seeds 0]

Every depth is a run (``OUT/NAME-DEPTH-SEED``) with the epochs that effort "quick" gives; its rung is kept whatever it
gave. Judged on val; with under 100 such images by cross-validation on the training images as well. One JSON line for
each depth as it ends, and a table at the end.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import headstart as hs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--depths", nargs="+", default=["blocks.6", "blocks.5", "blocks.3", "all"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--val", type=float, default=0.3, help="share of a data set without splits")
    given = parser.parse_args()
    rows = []
    for data in given.data:
        for seed in given.seeds:
            for depth in given.depths:
                choices = {"effort": "quick", "unfreeze": depth, "seed": seed, "val": given.val, "test": 0.0}
                run = hs.train(data, out=given.out / f"{data.name}-{depth}-{seed}", **choices)
                probe, rung = run.rungs[1], run.rungs[2]
                row = {"data": data.name, "seed": seed, "depth": depth, "probe": asdict(probe), "rung": asdict(rung)}
                print(json.dumps(row), flush=True)
                rows.append((data.name, seed, depth, probe, rung))
    print(f"{'data':<14}{'seed':>5} {'from':<10}{'probe':>8}{'tuned':>8}{'of':>6}{'p':>9}{'epochs':>8}{'seconds':>9}")
    for name, seed, depth, probe, rung in rows:
        print(
            f"{name:<14}{seed:>5} {depth:<10}{probe.correct:>8}{rung.correct:>8}{rung.count:>6}{rung.p:>9.2g}"
            f"{rung.epochs:>8}{rung.seconds:>9.0f}"
        )


if __name__ == "__main__":
    main()
