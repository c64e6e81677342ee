"""Out-of-distribution detection by nearest-neighbour distance (Sun et al., 2022).

The threshold is split conformal: of n held-out in-distribution images it is the distance with the first rank above
(n + 1) * ``INLIER_SHARE``. At least ``INLIER_SHARE`` of further images like these lie no farther, on average over all
draws of the n images.

Source: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; Papadopoulos et al., "Inductive
Confidence Machines for Regression", ECML 2002.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.training.losses import Labels, Parts, is_multi_label

MAX_REFERENCES = 1000
"""Training images that serve as references, at most."""

MAX_REFERENCES_FINE_TUNED = 500
"""The same for a fine-tuned network, whose references pass through the network once more."""

NUMBERS = 1_500_000
"""Numbers in all references together (3 MB): fewer images if features are long."""

MIN_REFERENCES = 50
"""Minimum number of training images for a detector."""

MIN_INLIERS = 20
"""Held-out in-distribution images below which no threshold accepts ``INLIER_SHARE`` of further ones."""

FOLDS = 5
"""Folds of cross-fitting among the held-out images."""

NEIGHBOUR = 5
"""Rank k of the nearest-neighbour distance."""

STRONG = 0.95
"""Quantile of the features at which they are clipped. Fine-tuning makes features that separate the classes so strong
that they dominate the cosine. Of hot dogs shown to a flowers model fine-tuned from ``blocks.5``, clipping finds 97 %
instead of 45 % (docs/results/2026-11-23-calibration.md)."""

FAR = 2.0
"""Outlier rule in interquartile ranges. Of 5 and of 20 hot dogs among 3,119 flowers it finds 5 and 16, with 9 and 8
flowers (docs/results/2026-11-23-data-check.md)."""

COMPARED = 20_000
"""Images of a class that each of its images is compared with, at most."""

TINY = np.float32(1e-12)

Features = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OodDetector:
    """Out-of-distribution detector: cosine distance to the k-th nearest training image.

    Attributes:
        references: (R, D) float16 features of training images, normalised to length 1.
        inlier_distances: (Q,) float32 ascending, distances of held-out in-distribution images.
        limits: (2,) float32 bounds at which features are clipped before normalisation; None for
            models of earlier versions, whose features are not clipped.

    Source: Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022; clipping: Sun, Guo
    and Li, "ReAct: Out-of-distribution Detection With Rectified Activations", NeurIPS 2021.
    """

    references: Halves
    inlier_distances: npt.NDArray[np.float32]
    limits: npt.NDArray[np.float32] | None = None

    def outlier_scores(self, features: Features) -> Scores:
        """Conformal outlier scores: the share of in-distribution images with a smaller distance.

        Args:
            features: (N, D) float32.

        Returns:
            (N,) float64 in [0, 1); an image above ``INLIER_SHARE`` counts as out-of-distribution.
        """
        return conformal_scores(self.inlier_distances, self.distances(features))

    def distances(
        self, features: Features, *, parts: tuple[Parts, Parts] | None = None, rank: float = NEIGHBOUR
    ) -> Scores:
        """(N,) float64 distances: 1 - cosine similarity to the k-th nearest reference.

        Args:
            features: (N, D) float32.
            parts: (N,) and (R,) part numbers of images and references: an image is not compared with references of
                its part (itself, near copies, its group). None: compare with all references.
            rank: k; the distance is interpolated if k is not an integer.

        Returns:
            Infinite if too few references are left.
        """
        return _distances(self._references, _clip(features, self.limits), parts=parts, rank=rank)

    def similarities(self, features: Features) -> Features:
        """(N, D) float32 -> (N, R) cosine similarities to all references."""
        return unit(_clip(features, self.limits)) @ self._references.T

    @cached_property
    def _references(self) -> Features:
        """(R, D) float32, converted once: predictions come in many small batches."""
        return self.references.astype(np.float32)

    def with_inlier_distances(self, distances: Scores) -> OodDetector | None:
        """The same references, calibrated on held-out images.

        Args:
            distances: (N,) of held-out in-distribution images.

        Returns:
            None if there are fewer than ``MIN_INLIERS``.
        """
        return replace(self, inlier_distances=_quantiles(distances)) if len(distances) >= MIN_INLIERS else None


def conformal_scores(inlier_distances: npt.NDArray[np.floating[Any]], distances: Scores) -> Scores:
    """(N,) conformal scores: rank of a distance among those of held-out in-distribution images, in [0, 1).

    At least ``INLIER_SHARE`` of further in-distribution images have a score of ``INLIER_SHARE`` or less.

    Args:
        inlier_distances: (Q,) ascending distances of held-out in-distribution images.
        distances: (N,) distances to score.
    """
    # Both rounded to float32 as in a model file, so that equal distances stay equal.
    nearer = np.searchsorted(inlier_distances.astype(np.float32), distances.astype(np.float32))
    return np.asarray(nearer / (len(inlier_distances) + 1))


def cross_fitted_scores(distances: Scores, *, together: Parts | None = None) -> Scores:
    """(N,) ``conformal_scores`` of usual images, each fifth by the distances of the others.

    Args:
        distances: (N,) of usual images.
        together: (N,) numbers of parts (groups, near copies) that the fifths do not divide; ignored where there are
            fewer than five.
    """
    scores = np.zeros(len(distances))
    names, place = np.arange(len(distances)), np.arange(len(distances))
    if together is not None and len(set(together.tolist())) >= FOLDS:
        names, place = np.unique(together, return_inverse=True)
    fifth = (np.random.default_rng(0).permutation(len(names)) % FOLDS)[place]
    for fold in range(FOLDS):
        scores[fifth == fold] = conformal_scores(np.sort(distances[fifth != fold]), distances[fifth == fold])
    return scores


def choose_references(keys: Sequence[bytes], length: int, most: int = MAX_REFERENCES) -> list[int]:
    """Positions of the training images that become references, drawn by content hash.

    Args:
        keys: N content hashes.
        length: features per image.
        most: maximum number of references.
    """
    return sorted(sorted(range(len(keys)), key=lambda i: keys[i])[: num_references(length, most)])


def num_references(length: int, most: int = MAX_REFERENCES) -> int:
    """How many training images become references, see ``choose_references``."""
    return min(most, max(MIN_REFERENCES, NUMBERS // length))


def make_ood_detector(references: Features) -> OodDetector | None:
    """A detector that is not calibrated yet, see ``OodDetector.with_inlier_distances``.

    Args:
        references: (R, D) float32 features of training images.

    Returns:
        None if there are fewer than ``MIN_REFERENCES``.
    """
    if len(references) < MIN_REFERENCES:
        return None
    limits = _limits(references)
    return OodDetector(unit(_clip(references, limits)).astype(np.float16), np.empty(0, np.float32), limits)


def held_out_distances(learnt: Features, held_out: Features, *, references: int) -> Scores:
    """(N,) distances of the held-out images of a fold to its training images, relative to its ``typical_distance``.

    Feature distances of differently fine-tuned networks are not comparable without this normalisation. A fold also has
    fewer reference images than the finished model, so the rank of the neighbour is reduced proportionally.

    Args:
        learnt: (L, D) float32 features of images that the fold learnt from, at most ``references``.
        held_out: (N, D) float32 features of the others, by the same network.
        references: images that the finished model keeps.
    """
    limits = _limits(learnt)
    fold_detector = OodDetector(unit(_clip(learnt, limits)).astype(np.float16), np.empty(0, np.float32), limits)
    rank = max(1.0, NEIGHBOUR * len(learnt) / references)
    return fold_detector.distances(held_out, rank=rank) / typical_distance(fold_detector, learnt, rank=rank)


def typical_distance(detector: OodDetector, references: Features, *, rank: float = NEIGHBOUR) -> float:
    """The median distance among the references, each compared with all others.

    Args:
        detector: made from the references.
        references: (R, D) float32 features.
        rank: see ``OodDetector.distances``.
    """
    each = np.arange(len(references))
    distances = detector.distances(references, parts=(each, each), rank=rank)
    return max(float(np.median(distances)), float(TINY))


def _limits(features: Features) -> npt.NDArray[np.float32]:
    """(2,) clipping bounds: quantiles of all features; if nearly all are 0, the median of the others."""
    low, high = np.quantile(features, [1 - STRONG, STRONG])
    if high <= 0 <= low:
        strong = np.abs(features[features != 0])
        high = float(np.median(strong)) if len(strong) else 1.0
        low = -high
    return np.array([min(low, 0.0), max(high, 0.0)], np.float32)


def _clip(features: Features, limits: npt.NDArray[np.float32] | None) -> Features:
    return features if limits is None else np.clip(features, *limits)


def find_outliers(features: Features, labels: Labels) -> dict[int, float]:
    """Outliers: images far from all others of their class, or in multi-label data from all others.

    Args:
        features: (N, D) float32.
        labels: see ``training.losses``.

    Returns:
        Position -> distance to the fifth nearest image relative to the median over all images, farthest first; of
        images beyond the third quartile by more than ``FAR`` interquartile ranges. Classes of fewer than six images
        are not judged.
    """
    far = np.full(len(features), np.nan)
    groups = (
        [np.arange(len(labels))] if is_multi_label(labels) else [np.flatnonzero(labels == i) for i in np.unique(labels)]
    )
    for members in groups:
        if len(members) > NEIGHBOUR:
            far[members] = _distances_within(features[members])
    judged = far[~np.isnan(far)]
    if len(judged) < MIN_REFERENCES:
        return {}
    low, median, high = np.quantile(judged, [0.25, 0.5, 0.75])
    found = np.flatnonzero(far > high + FAR * (high - low))
    return {int(i): float(far[i] / max(median, TINY)) for i in found[np.argsort(-far[found], kind="stable")]}


def _distances_within(features: Features) -> Scores:
    """(N,) distance of each image to the others, or to a sample of ``COMPARED`` of them."""
    count = len(features)
    sample = np.arange(count)
    if count > COMPARED:
        sample = np.sort(np.random.default_rng(0).choice(count, COMPARED, replace=False))
    is_sampled = np.isin(np.arange(count), sample)
    references, each = unit(features[sample]), np.arange(len(sample))
    found = np.empty(count)
    found[is_sampled] = _distances(references, features[is_sampled], parts=(each, each))
    found[~is_sampled] = _distances(references, features[~is_sampled])
    return found


def _distances(
    references: Features, features: Features, *, parts: tuple[Parts, Parts] | None = None, rank: float = NEIGHBOUR
) -> Scores:
    """See ``OodDetector.distances``; if no image has ``rank`` references, the distance to the farthest."""
    found = []
    usable = len(references)
    if parts is not None and len(features):
        usable -= _fewest_in_common(*parts)
    for start in range(0, len(features), MAX_REFERENCES):
        cosines = unit(features[start : start + MAX_REFERENCES]) @ references.T
        if parts is not None:
            cosines[parts[0][start : start + MAX_REFERENCES, None] == parts[1]] = -np.inf
        low, high = (max(1, min(place, usable)) for place in (math.floor(rank), math.ceil(rank)))
        ranked = np.partition(cosines, sorted({-low, -high}), axis=1)
        near, far = (1 - ranked[:, -place].astype(np.float64) for place in (low, high))
        found.append(near if low == high else near + (rank - math.floor(rank)) * (far - near))
    return np.concatenate(found) if found else np.empty(0)


def _fewest_in_common(parts: Parts, references: Parts) -> int:
    """Minimum over all images of the number of references in the image's part."""
    names, counts = np.unique(references, return_counts=True)
    place = np.searchsorted(names, parts).clip(max=len(names) - 1)
    return int(np.where(names[place] == parts, counts[place], 0).min())


def _quantiles(distances: Scores) -> npt.NDArray[np.float32]:
    """The distances, ascending; more than ``MAX_REFERENCES`` are reduced to quantiles."""
    if len(distances) > MAX_REFERENCES:
        distances = np.quantile(distances, np.linspace(0, 1, MAX_REFERENCES + 1))
    return np.sort(distances).astype(np.float32)


def unit(features: Features) -> Features:
    """(N, D) float32 with each row normalised to length 1."""
    return np.asarray(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), TINY))
