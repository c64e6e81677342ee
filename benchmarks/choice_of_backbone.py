"""How often the search chooses the best backbone, or one within noise of it, with decoys of random weights among six.

    python benchmarks/choice_of_backbone.py DATA [--seeds 10] [--images 1200]

For each seed the search of ``headstart train --minutes`` runs on part of the training images. The reference is a
cross-validation of every candidate on all training images with the same seed: a choice counts as right if it is the
best there, or if its log loss is within noise of the best one's (paired test). The decoys are the three architectures
with random weights.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from unittest.mock import patch

from safetensors.torch import save_file

from headstart.backbone.weights import random_backbone
from headstart.data.dataset import open_data
from headstart.pipeline.choose_recipe import search_images
from headstart.pipeline.inspect_images import inspected_images, run_inspection
from headstart.pipeline.load import Job
from headstart.progress import SilentProgress
from headstart.selection import search as search_module
from headstart.selection.candidates import Candidate, find_candidates, load_candidate
from headstart.selection.search import search
from headstart.training.recipe import Recipe

ARCHITECTURES = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")


def six_candidates(folder: Path) -> tuple[Candidate, ...]:
    words = ["offline"]
    for name in ARCHITECTURES:
        file = folder / f"{name}.safetensors"
        save_file(random_backbone(name, seed=0).module.state_dict(), file)
        words.append(f"{name}={file}")
    return find_candidates(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--images", type=int, default=1200, help="of the last round of the search")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = six_candidates(Path(folder))
        job = Job(open_data(given.data), Recipe(), "auto", None, SilentProgress())
        inspected = inspected_images(run_inspection(job, load_candidate(found[0]).preprocessing))
        images, right = search_images(inspected), 0
        for seed in range(given.seeds):
            with patch.object(search_module, "CHOOSE_ON", given.images):  # a max_cost of 0: the candidates alone
                chosen = search(found, images, seed=seed, max_cost=0, progress=SilentProgress()).results[0]
            on_all = search(found, images, seed=seed, drops=False, progress=SilentProgress()).results
            reference = next(r for r in on_all if (r.architecture, r.source) == (chosen.architecture, chosen.source))
            is_right = "worse than the best" not in reference.decision
            right += is_right
            means = ", ".join(f"{result.architecture} {result.log_loss:.4f}" for result in on_all)
            print(f"seed {seed}: {chosen.architecture} {'right' if is_right else 'wrong'}; on all: {means}", flush=True)
            assert chosen.architecture.endswith(".in1k"), "a decoy was chosen"
    print(f"{right} of {given.seeds} right")


if __name__ == "__main__":
    main()
