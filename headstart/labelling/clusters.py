"""Clusters of similar images, by k-means on their vectors, computed once for a session."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import numpy.typing as npt

from headstart.concurrency import ignored_warnings
from headstart.import_effects import import_quietly
from headstart.labelling.vectors import Vectors

Numbers = npt.NDArray[np.int64]

BOUNDS: Final = (4, 60)
"""Smallest and largest number of clusters."""

BATCHES_FROM: Final = 10_000
"""Images from which k-means runs on batches, which takes seconds instead of minutes."""

EXAMPLES: Final = 12
"""Images that stand for a cluster."""


def num_clusters(count: int) -> int:
    """Number of clusters for a number of images: about two thirds of its square root."""
    return min(count, max(BOUNDS[0], min(BOUNDS[1], round(2 / 3 * math.sqrt(count)))))


@final
@dataclass(frozen=True)
class Clusters:
    """N images in clusters.

    Attributes:
        members: images of each cluster, nearest to its centre first; the largest cluster first.
    """

    members: tuple[Numbers, ...]

    @classmethod
    def of_vectors(cls, vectors: Vectors, images: Numbers, seed: int) -> Clusters:
        """Clusters some of the images.

        Args:
            vectors: (N, D) of all images.
            images: numbers of those to cluster.
            seed: of k-means.
        """
        found = []
        for cluster, distance in _k_means(vectors[images], num_clusters(len(images)), seed):
            found.append(images[cluster[np.argsort(distance, kind="stable")]])
        return cls(tuple(sorted(found, key=lambda cluster: (-len(cluster), cluster[0]))))

    def cluster_of(self, count: int) -> Numbers:
        """(count,) number of the cluster of each image; -1 for an image in none."""
        found = np.full(count, -1)
        for number, cluster in enumerate(self.members):
            found[cluster] = number
        return found

    def in_turn(
        self, is_open: npt.NDArray[np.bool_], count: int, answered: npt.NDArray[np.bool_] | None = None
    ) -> list[int]:
        """Images that stand for the clusters: those nearest to each centre in turn, clusters without an answer first.

        Args:
            is_open: (N,) which images may be taken.
            count: of them, at most.
            answered: (N,) which images are answered: each is a turn that its cluster has had; default: none.
        """
        turns = []
        for number, cluster in enumerate(self.members):
            had = 0 if answered is None else int(answered[cluster].sum())
            turns += [(had + turn, number, int(image)) for turn, image in enumerate(cluster[is_open[cluster]][:count])]
        return [image for _, _, image in sorted(turns)[:count]]


def _k_means(vectors: Vectors, count: int, seed: int) -> list[tuple[Numbers, npt.NDArray[np.float32]]]:
    """Places of each cluster, and their distances to its centre."""
    if not len(vectors):
        return []
    module = import_quietly("sklearn.cluster")
    kind = module.KMeans if len(vectors) < BATCHES_FROM else module.MiniBatchKMeans
    with ignored_warnings():  # fewer different images than clusters
        fitted = kind(count, n_init=1, random_state=seed).fit(vectors)
    distance = np.linalg.norm(vectors - fitted.cluster_centers_[fitted.labels_], axis=1)
    places = [np.flatnonzero(fitted.labels_ == cluster) for cluster in range(count)]
    return [(place, distance[place]) for place in places if len(place)]
