"""Sampling for training by steps: labelled activations, the order of an epoch, the view that an image shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headstart.features.prefetch import ActivationSource, Row
from headstart.training.losses import Labels


@dataclass(frozen=True)
class Samples:
    """Labelled activations at one boundary.

    Attributes:
        activations: where they are read.
        labels: of N images, see ``training.losses``.
        keys: N content hashes; they determine the view that an image shows first.
        views: augmented views of each image; 0: the original images.
    """

    activations: ActivationSource
    labels: Labels
    keys: Sequence[bytes]
    views: int

    def rows(self, images: Sequence[int], epoch: int) -> list[Row]:
        """The (image, view) rows that an epoch shows of some images; views take turns from epoch to epoch."""
        if not self.views:
            return [(image, 0) for image in images]
        first = [int.from_bytes(self.keys[image][:4], "little") for image in images]
        return [(image, (offset + epoch) % self.views) for image, offset in zip(images, first, strict=True)]

    def some(self, images: npt.NDArray[np.int64]) -> Samples:
        """A subset of the images, numbered from 0."""
        source = _SubsetSource(self.activations, images)
        return Samples(source, self.labels[images], [self.keys[i] for i in images], self.views)


@dataclass(frozen=True)
class _SubsetSource:
    """A subset of a source's images, numbered from 0."""

    source: ActivationSource
    images: npt.NDArray[np.int64]

    def read(self, rows: Sequence[Row]) -> Tensor:
        return self.source.read(self._rows_of_source(rows))

    def read_half(self, rows: Sequence[Row]) -> npt.NDArray[np.float16 | np.float32]:
        return self.source.read_half(self._rows_of_source(rows))

    def _rows_of_source(self, rows: Sequence[Row]) -> list[Row]:
        return [(int(self.images[image]), view) for image, view in rows]


@dataclass(frozen=True)
class FeatureRows:
    """Features in memory as a source of activations, with one view of each image.

    Attributes:
        features: (N, ...) float32.
    """

    features: Tensor

    def read(self, rows: Sequence[Row]) -> Tensor:
        """(len(rows), ...) float32."""
        return self.features[[image for image, _ in rows]]

    def read_half(self, rows: Sequence[Row]) -> npt.NDArray[np.float16 | np.float32]:
        """See ``prefetch.ActivationSource``."""
        return self.read(rows).numpy()


@dataclass(frozen=True)
class BatchOrder:
    """The images and views of every training step.

    Attributes:
        samples: the training images.
        batch_size: images per step.
        epochs: passes over the images.
        seed: of the order.
        first_view: the view that the first epoch begins with.
    """

    samples: Samples
    batch_size: int
    epochs: int
    seed: int
    first_view: int = 0

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return math.ceil(len(self.samples.labels) / self.batch_size)

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        return self.epochs * self.per_epoch

    def images(self, epoch: int, index: int) -> npt.NDArray[np.int64]:
        """The images of step ``index`` of an epoch."""
        order = _cached_order(self.seed, epoch, len(self.samples.labels))
        return order[index * self.batch_size : (index + 1) * self.batch_size]

    def rows(self, epoch: int, index: int) -> list[Row]:
        """The (image, view) rows of step ``index`` of an epoch."""
        return self.samples.rows(self.images(epoch, index).tolist(), self.first_view + epoch)


def batch_size_for(count: int, largest: int) -> int:
    """The batch size for ``count`` images: at most ``largest``, and so small that an epoch has about eight steps."""
    return min(largest, max(4, count // 8))


def epoch_order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """The order in which an epoch shows ``count`` images: (count,) int64, a function of seed and epoch alone."""
    return np.random.default_rng((seed, 1, epoch)).permutation(count)


_cached_order = lru_cache(maxsize=2)(epoch_order)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Context in which PyTorch's generators are seeded; that of the CPU is restored afterwards."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    before = torch.default_generator.get_state()
    try:
        if torch.cuda.is_initialized() or torch.backends.mps.is_available():  # type: ignore[no-untyped-call]
            torch.manual_seed(seed)
        else:  # manual_seed formats the call stack for each kind of accelerator that is not in use: milliseconds a step
            torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.default_generator.set_state(before)
