"""Activations in memory, and a small network to fine-tune on them."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from headstart.backbone.split import SplittableBackbone
from headstart.backbone.weights import random_backbone
from headstart.training.finetune import FineTuneSettings
from headstart.training.heads import linear_head
from headstart.training.sampling import Samples
from headstart.training.training_step import FineTuneCheckpoint, TrainingStep

SETTINGS = FineTuneSettings(epochs=6, lr=1e-3, batch_size=8, label_smoothing=0.1, cutmix=0.5)


class Held:
    """Activations in memory: two classes that differ in a few channels, views that differ by noise."""

    def __init__(self, shape: tuple[int, ...], labels: np.ndarray, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rows = torch.randn(len(labels), 3, *shape, generator=generator)
        second = self.rows[torch.from_numpy(labels == 1)]
        channels = second.movedim(2 if len(shape) == 3 else -1, 0)  # (C, H, W) maps, (tokens, C) sequences
        channels[: len(channels) // 2] += 1.0
        self.rows[torch.from_numpy(labels == 1)] = second

    def read(self, rows: list[tuple[int, int]]) -> Tensor:
        return torch.stack([self.rows[image, view] for image, view in rows])

    def read_half(self, rows: list[tuple[int, int]]) -> np.ndarray:
        return self.read(rows).numpy()


@cache
def never_trained(architecture: str = "test_resnet") -> SplittableBackbone:
    return SplittableBackbone(random_backbone(architecture, image_size=32, seed=3).module, height=32, width=32)


def prepared(
    architecture: str = "test_resnet", boundary: str = "layer3"
) -> tuple[SplittableBackbone, Samples, Samples, nn.Module]:
    split = never_trained(architecture).copied()
    shape = next(b.shape for b in split.boundaries if b.name == boundary)
    parts = []
    for count, views, own in ((40, 3, 1), (16, 0, 2)):
        labels = np.arange(count) % 2
        keys = [bytes([i, own, *[0] * 14]) for i in range(count)]
        parts.append(Samples(Held(shape, labels, own), labels, keys, views))
    head = linear_head(np.zeros((2, split.boundaries[-1].shape[0])), np.zeros(2))
    return split, parts[0], parts[1], head


class Stopped(Exception):
    """A fine-tuning was stopped."""


class StopAt:
    """Stops a fine-tuning after a step, with its checkpoint as it comes back from a file.

    Attributes:
        saved: the checkpoint; None until then.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self.saved: FineTuneCheckpoint | None = None

    def __call__(self, done: TrainingStep) -> None:
        if done.step == self.step:
            assert done.checkpoint is not None
            kept = done.checkpoint()
            self.saved = FineTuneCheckpoint.of(json.loads(json.dumps(kept.as_json())), kept.tensors)
            raise Stopped
