"""Everything that a run reads from a cache, before and after damage to its files, with a tiny network."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from damage import DAMAGES, files_of

from headstart.backbone.pixel_net import ActivationNet, FeatureNet
from headstart.backbone.split import SplittableBackbone
from headstart.backbone.weights import random_backbone
from headstart.cache.entries import cache_entries
from headstart.cache.verify import verify_cache
from headstart.data.augment import Augmentation
from headstart.data.pixel_cache import PixelReader
from headstart.data.scan import scan
from headstart.engine.measure import measure_engines
from headstart.engine.torch_engine import TorchEngine
from headstart.features.activations import Activations, ImageFiles, Views
from headstart.features.extract import compute_features
from headstart.progress import Progress

SIDE = 32


class Reading:
    """Everything that a run reads from a cache, for a few images and a tiny network.

    Args:
        files: the images.
    """

    def __init__(self, files: list[str]) -> None:
        self.files = files
        self.net = FeatureNet(random_backbone("test_resnet", image_size=SIDE))
        backbone = self.net.backbone
        split = SplittableBackbone(backbone.module, height=SIDE, width=SIDE)
        boundary = next(b for b in split.boundaries if b.name == "layer2")
        self.inner = ActivationNet(backbone, boundary.name, split.prefix(boundary.name))
        self.shape = boundary.shape
        self.engine = TorchEngine(self.inner, torch.device("cpu"))

    def read(self, cache: Path, progress: Progress | None = None) -> list[np.ndarray]:
        """File facts, pixels, calibration of the engine plan, features and activations; damage must not change them."""
        size = self.net.backbone.preprocessing
        scanned = scan(self.files, preprocessing=size, cache=cache, progress=progress)
        sources = dict(zip(scanned.keys, self.files, strict=True))
        pixels = PixelReader(size, sources, cache=cache, progress=progress).read(scanned.keys)
        plan = measure_engines(self.net, pixels, count=1000, device="cpu", cache=cache, progress=progress)
        found = [scanned.facts, pixels, *(plan.means[name].numpy() for name in sorted(plan.means))]
        for exact in (True, False):
            features = compute_features(
                self.net,
                scanned.keys,
                sources=sources,
                engines=plan,
                sample=pixels,
                exact=exact,
                device="cpu",
                cache=cache,
                progress=progress,
            )
            found.append(features.read(scanned.keys))
        made = Activations(
            self.inner,
            ImageFiles(self.files, scanned.keys),
            shape=self.shape,
            engine=self.engine,
            views=Views(2, 0, Augmentation()),
            cache=cache,
            progress=progress,
        )
        made.prepare(progress)
        return [*found, made.read_half([(image, view) for image in range(len(self.files)) for view in (0, 1)])]


def tally(reading: Reading, sound: Path, work: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Damages copies of a cache, one fault each, and reads them.

    Args:
        reading: the values to read.
        sound: the undamaged cache.
        work: a folder for the copies.
        count: number of faults.
        seed: random seed of the faults.

    Returns:
        Outcome -> count: "the same numbers", or the error with the kind of damage and the file.
    """
    expected = reading.read(sound)
    rng = np.random.default_rng(seed)
    names = [file.relative_to(sound) for file in files_of(sound)]
    outcomes: dict[str, int] = {}
    for number in range(count):
        copy = work / str(number) / "cache"
        shutil.copytree(sound, copy)
        damage = DAMAGES[number % len(DAMAGES)]
        name = names[int(rng.integers(len(names)))]
        damage(copy / name, rng)
        if number % 2:
            before = [entry.words for entry in cache_entries(copy)]
            assert all(isinstance(word, str) for word in before)
        if number % 5 == 0:
            list(verify_cache(cache_entries(copy)))
        outcome = "the same numbers"
        try:
            for _ in range(2):  # repaired data stays valid
                given = reading.read(copy)
                if not all(np.array_equal(one, other) for one, other in zip(expected, given, strict=True)):
                    outcome = f"other numbers: {damage.__name__} of {name}"
        except Exception as error:  # any other exception is a failure
            outcome = f"{type(error).__name__}: {error}: {damage.__name__} of {name}"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        shutil.rmtree(work / str(number))
    return outcomes
