"""LoRA, and tuning of biases and norms, of vision transformers: counts, merging, proof and resuming.

    python benchmarks/parameter_efficient.py [ARCHITECTURE ...]

Random weights, a random head and random activations: nothing is said about accuracy. The last three blocks of each
network are trained for a few steps, once without and once with a stop, and the logits before and after merging are
compared.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import torch
from torch import Tensor

from headstart.backbone.split import SplittableBackbone
from headstart.backbone.weights import random_backbone
from headstart.training.finetune import FineTuneResult, FineTuneSettings, fine_tune
from headstart.training.frozen_proof import digests_of, tensors_of
from headstart.training.heads import linear_head
from headstart.training.sampling import Samples
from headstart.training.suffix_classifier import SuffixClassifier
from headstart.training.suffix_evaluation import logits_of
from headstart.training.training_step import FineTuneCheckpoint, TrainingStep
from headstart.training.tuning import Tuning, trained_counts

BOUNDARY, NUM_IMAGES, CLASSES, EPOCHS, STOP_AFTER = "blocks.8", 16, 3, 4, 5
TUNINGS = (Tuning(), Tuning("bias-norm"), Tuning("lora"))


class Held:
    """Random activations in memory."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.rows = torch.randn(NUM_IMAGES, *shape, generator=torch.Generator().manual_seed(0))

    def read(self, rows: list[tuple[int, int]]) -> Tensor:
        return torch.stack([self.rows[image] for image, _ in rows])

    def read_half(self, rows: list[tuple[int, int]]) -> np.ndarray:
        return self.read(rows).numpy()


class Stopped(Exception):
    """Ends a training after some steps."""


def measure(architecture: str, tuning: Tuning) -> str:
    """One row of the table."""
    module = random_backbone(architecture, seed=1).module
    untrained = SplittableBackbone(module, height=224, width=224)
    boundary = next(b for b in untrained.boundaries if b.name == BOUNDARY)
    labels = np.arange(NUM_IMAGES) % CLASSES
    samples = Samples(Held(boundary.shape), labels, [bytes([i]) * 16 for i in range(NUM_IMAGES)], 1)
    length = untrained.boundaries[-1].shape[0]
    lr = 1e-4 if tuning.method == "full" else 1e-3
    settings = FineTuneSettings(epochs=EPOCHS, lr=lr, batch_size=8, tuning=tuning)

    def train(**given: object) -> tuple[SplittableBackbone, FineTuneResult]:
        split = untrained.copied()
        head = linear_head(np.random.default_rng(0).normal(size=(CLASSES, length)) / 4, np.zeros(CLASSES))
        return split, fine_tune(split, boundary.name, head, samples, None, settings, **given)  # type: ignore[arg-type]

    before = digests_of(tensors_of(module))
    counted = sum(trained_counts(untrained, boundary.name, tuning).values())
    started = time.perf_counter()
    with unmerged_logits(samples) as unmerged:
        split, found = train()
    seconds = (time.perf_counter() - started) / (EPOCHS * NUM_IMAGES / settings.batch_size)
    kept: list[FineTuneCheckpoint] = []

    def stop(done: TrainingStep) -> None:
        if done.step == STOP_AFTER:
            kept.append(done.checkpoint())
            raise Stopped

    with suppress(Stopped):
        train(on_step=stop)
    again, _ = train(start=kept[0])
    resumed = all(torch.equal(t, again.module.state_dict()[n]) for n, t in split.module.state_dict().items())
    merged = logits_of(split, boundary.name, samples, found.head)
    plain = logits_of(untrained, boundary.name, samples, found.head)
    difference = np.abs(merged - unmerged[0]).max()
    frozen = sum(found.frozen[name] == digest for name, digest in before.items() if name in found.frozen)
    trained = sum(tensor.numel() for name, tensor in kept[0].tensors.items() if name.startswith("live/backbone."))
    return (
        f"| {architecture} from {boundary.name} | {tuning.method} | {counted:,} | {trained:,} | "
        f"{difference:.1e} | {np.abs(merged - plain).max():.2f} | {frozen} of {len(before)} | "
        f"{'yes' if resumed else 'NO'} | {1e3 * seconds:.0f} ms |"
    )


@contextmanager
def unmerged_logits(samples: Samples) -> Iterator[list[np.ndarray]]:
    """Context in which logits are recorded right before updates are merged."""
    recorded: list[np.ndarray] = []
    merge = SuffixClassifier.merge

    def noting(classifier: SuffixClassifier) -> None:
        with torch.no_grad():
            recorded.append(classifier(samples.activations.read([(i, 0) for i in range(NUM_IMAGES)])).double().numpy())
        merge(classifier)

    SuffixClassifier.merge = noting  # type: ignore[method-assign]
    try:
        yield recorded
    finally:
        SuffixClassifier.merge = merge  # type: ignore[method-assign]


if __name__ == "__main__":
    print("| network | trained | counted | in the optimizer | merging | training | frozen tensors | resumed | step |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in sys.argv[1:] or ["vit_tiny_patch16_224", "vit_small_patch16_224"]:
        for tuning in TUNINGS:
            print(measure(name, tuning), flush=True)
