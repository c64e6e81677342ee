"""Queues of a session: which images to ask for, and which to confirm."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
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

CERTAIN_EVERY, FAR_EVERY = 5, 20
"""Every how many questions one checks a group that only the classifier has an opinion on, and one is far from all
labels. A tenth of the questions far from labels needs a quarter more labels (docs/results/2026-12-01-labelling.md)."""

SAMPLE: Final = 1_000
"""Images that the most distant ones are searched among, at most."""

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

    def without(self, images: Collection[int]) -> Candidates:
        """All but some images."""
        if not images:
            return self
        kept = ~np.isin(self.images, list(images))
        return replace(self, images=self.images[kept], chances=self.chances[kept])

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


def unchecked(
    candidates: Candidates, groups: Numbers, is_familiar: npt.NDArray[np.bool_], certain: float
) -> int | None:
    """An image of the largest group whose class only the classifier knows: a class without a name may be there.

    The classifier is certain about images of such a group, but no person labelled an image of it as that class.

    Args:
        candidates: with probabilities.
        groups: (n,) number of the group of each candidate.
        is_familiar: (n,) whether the group has a label of the predicted class.
        certain: probability from which on the classifier is certain.

    Returns:
        The most certain one; None if there is no such group.
    """
    best = candidates.chances.max(axis=1, initial=0)
    places = np.flatnonzero((best >= certain) & ~is_familiar & (groups >= 0))
    if not len(places):
        return None
    largest = np.bincount(groups[places]).argmax()
    inside = places[groups[places] == largest]
    return int(candidates.images[inside[best[inside].argmax()]])


def far_from_labels(images: Numbers, labelled: Numbers, vectors: Vectors, seed: int) -> int | None:
    """The image that brings a label nearest to the most images that are far from all labels (a greedy k-medoids step).

    Args:
        images: unlabelled ones.
        labelled: labelled ones, at least one.
        vectors: (N, D) of all images.
        seed: of the sample of ``images``.

    Returns:
        None without an unlabelled image.
    """
    if not len(images):
        return None
    if len(images) > SAMPLE:
        images = np.sort(np.random.default_rng(seed).choice(images, SAMPLE, replace=False))
    distance = import_quietly("scipy.spatial.distance").cdist
    nearest = distance(vectors[images], vectors[labelled]).min(axis=1)
    gain = np.maximum(nearest - distance(vectors[images], vectors[images]), 0).sum(axis=1)
    return int(images[gain.argmax()])


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
