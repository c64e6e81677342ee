"""Queues of a session: which images to ask for, and which to confirm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import numpy as np
import numpy.typing as npt

from headstart.concurrency import ignored_warnings
from headstart.import_effects import import_quietly
from headstart.labelling.clusters import Numbers
from headstart.labelling.vectors import Vectors

Chances = npt.NDArray[np.float32]

PER_QUESTION: Final = 10
"""Uncertain images that each question is chosen from. Five, ten and twenty need about as many labels
(docs/results/2026-12-01-labelling.md)."""

SUGGESTED_FROM: Final = 0.5
"""Probability from which on an image counts as suggested for a class."""


@final
@dataclass(frozen=True)
class Candidates:
    """Images that may be asked for or confirmed: unlabelled, usable, the first of their stacks, and not blind.

    Attributes:
        images: (n,) numbers.
        classes: names.
        chances: (n, classes) probabilities; 0 for classes that were rejected for an image.
        multi_label: whether an image may have any number of labels.
    """

    images: Numbers
    classes: tuple[str, ...]
    chances: Chances
    multi_label: bool = False

    def predicted(self) -> dict[str, Numbers]:
        """Class -> places of the images predicted as it, most certain first."""
        if not len(self.images) or not self.classes:
            return dict.fromkeys(self.classes, np.empty(0, np.int64))
        order = np.argsort(-self.chances, axis=0, kind="stable")
        if self.multi_label:
            places = [o[self.chances[o, c] >= SUGGESTED_FROM] for c, o in enumerate(order.T)]
        else:
            best = np.where(self.chances.max(axis=1) > 0, self.chances.argmax(axis=1), -1)
            places = [o[best[o] == c] for c, o in enumerate(order.T)]
        return dict(zip(self.classes, places, strict=True))

    def uncertainty(self) -> npt.NDArray[np.float32]:
        """(n,) 0-1: one minus the margin between the two most probable classes; of several labels the least certain."""
        if self.multi_label:
            return np.asarray((1 - np.abs(2 * self.chances - 1)).max(axis=1))
        top = np.partition(self.chances, -2, axis=1)[:, -2:]
        return np.asarray(1 - (top[:, 1] - top[:, 0]))


def informative(candidates: Candidates, vectors: Vectors, count: int, seed: int = 0) -> list[int]:
    """Images to ask for: among the most uncertain, one for each of ``count`` clusters, so that they differ.

    Args:
        candidates: with probabilities of at least two classes, or several labels.
        vectors: (N, D) of all images.
        count: number of images.
        seed: of k-means.
    """
    doubt = candidates.uncertainty()
    considered = np.argsort(-doubt, kind="stable")[: PER_QUESTION * count]
    images = candidates.images[considered]
    if len(images) <= count:
        return [int(image) for image in images]
    means = import_quietly("sklearn.cluster").KMeans(count, n_init=1, random_state=seed)
    with ignored_warnings():  # fewer different images than questions
        distances = means.fit(vectors[images], sample_weight=doubt[considered] + 1e-3).transform(vectors[images])
    chosen = np.unique(distances.argmin(axis=0))
    return [int(image) for image in images[chosen]]


def to_confirm(
    candidates: Candidates, vectors: Vectors, label: str | None, count: int
) -> tuple[str | None, int, list[int]]:
    """A page of images predicted as one class: the most certain, similar ones next to each other.

    Args:
        candidates: see there.
        vectors: (N, D) of all images.
        label: the class; None for the one whose page is most certain on average.
        count: images of a page.

    Returns:
        The class (None without any image), the number of images predicted as it, and the page.
    """
    predicted = candidates.predicted()
    if label is None:
        place = {name: number for number, name in enumerate(candidates.classes)}
        sums = {
            name: float(candidates.chances[places[:count], place[name]].sum())
            for name, places in predicted.items()
            if len(places)
        }
        label = max(sums, key=lambda name: sums[name], default=None)
    if label is None:
        return None, 0, []
    places = predicted.get(label, np.empty(0, np.int64))
    page = candidates.images[places[:count]]
    return label, len(places), [int(image) for image in page[_similar_order(vectors[page])]]


def _similar_order(vectors: Vectors) -> Numbers:
    """An order in which similar vectors are next to each other (leaves of a hierarchical clustering)."""
    if len(vectors) < 3:
        return np.arange(len(vectors))
    hierarchy = import_quietly("scipy.cluster.hierarchy")
    return np.asarray(hierarchy.leaves_list(hierarchy.linkage(vectors, "average")), np.int64)
