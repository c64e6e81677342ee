"""Out-of-distribution detection: the distance of an image's features to those of training images.

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
"""Training images that are kept, at most."""

MAX_REFERENCES_FINE_TUNED = 500
"""Likewise where the network has changed, and they must go through it once more."""

NUMBERS = 1_500_000
"""Numbers that they may have together (3 MB): fewer images where features are long."""

MIN_REFERENCES = 50
"""Training images below which there is nothing to go by."""

MIN_INLIERS = 20
"""Usual images that were not learnt from below which no distance keeps ``INLIER_SHARE`` of the next ones."""

FOLDS = 5
"""Parts of the usual images, each of which is judged by the others."""

NEIGHBOUR = 5
"""The distance is that to the fifth nearest."""

STRONG = 0.95
"""Share of all numbers of the training images' features beyond which they are cut off: fine-tuning makes those that
tell its classes apart so strong that a cosine sees little else. Of hot dogs shown to flowers tuned behind ``blocks.4``
that finds 97 % instead of 45 % (docs/results/2026-11-23-calibration.md)."""

FAR = 2.0
"""Of 5 and of 20 hot dogs among 3,119 flowers, 5 and 16 lie beyond, with 9 and 8 flowers
(docs/results/2026-11-23-data-check.md)."""

COMPARED = 20_000
"""Images of a class that each of it is compared with, at most."""

TINY = np.float32(1e-12)

INLIER_SHARE = 0.95
"""Share of the usual pictures that is to be taken for usual."""

Features = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OodDetector:
    """What usual pictures look like.

    Attributes:
        references: (R, D) float16 features of training images, of length 1.
        inlier_distances: (Q,) float32 ascending, distances of held-out in-distribution images.
        limits: (2,) float32, what features are cut off at below and above, before they are brought to length 1; None
            of models that were made before there was such a thing.

    Source: Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022; cutting off: Sun, Guo
    and Li, "ReAct: Out-of-distribution Detection With Rectified Activations", NeurIPS 2021.
    """

    references: Halves
    inlier_distances: npt.NDArray[np.float32]
    limits: npt.NDArray[np.float32] | None = None

    def outlier_scores(self, features: Features) -> Scores:
        """Share of the usual pictures, and of this one, that are nearer to what was learnt.

        Args:
            features: (N, D) float32.

        Returns:
            (N,) float64 in [0, 1); beyond ``INLIER_SHARE`` a picture is taken for something else altogether.
        """
        return conformal_scores(self.inlier_distances, self.distances(features))

    def distances(
        self, features: Features, *, parts: tuple[Parts, Parts] | None = None, rank: float = NEIGHBOUR
    ) -> Scores:
        """(N,) float64, 1 - cosine to the reference that is the fifth nearest.

        Args:
            features: (N, D) float32.
            parts: (N,) and (R,) numbers of the parts that the images and the references belong to: an image is not
                compared with itself, with near copies or with its group. None: with all references.
            rank: in place of 5; between two whole numbers, between the distances of both.

        Returns:
            Infinite where too few references are left.
        """
        return _distances(self._known, _cut_off(features, self.limits), parts=parts, rank=rank)

    def similarities(self, features: Features) -> Features:
        """(N, D) float32 -> (N, R) cosines to each of the references."""
        return unit(_cut_off(features, self.limits)) @ self._known.T

    @cached_property
    def _known(self) -> Features:
        """(R, D) the references to compute with: predictions come in many small batches."""
        return self.references.astype(np.float32)

    def with_inlier_distances(self, distances: Scores) -> OodDetector | None:
        """The same references, and what images that were not learnt from say is usual.

        Args:
            distances: (N,) of these images.

        Returns:
            None where they are too few for any promise.
        """
        return replace(self, inlier_distances=_quantiles(distances)) if len(distances) >= MIN_INLIERS else None


def conformal_scores(usual: npt.NDArray[np.floating[Any]], distances: Scores) -> Scores:
    """(N,) share of the usual images, and of the one that is judged, that lie nearer.

    At least ``INLIER_SHARE`` of images like the usual ones have a score of ``INLIER_SHARE`` or less.

    Args:
        usual: (Q,) ascending distances of usual images that were not learnt from.
        distances: (N,) to judge.
    """
    # Both rounded as a model file keeps them: an image at the distance of a usual one lies no farther.
    nearer = np.searchsorted(usual.astype(np.float32), distances.astype(np.float32))
    return np.asarray(nearer / (len(usual) + 1))


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
    """Places of the training images to keep, drawn by their content.

    Args:
        keys: N content hashes.
        length: of one image's features.
        most: images at the most.
    """
    count = min(most, max(MIN_REFERENCES, NUMBERS // length))
    return sorted(sorted(range(len(keys)), key=lambda i: keys[i])[:count])


def make_ood_detector(references: Features) -> OodDetector | None:
    """References without usual distances yet, see ``OodDetector.with_inlier_distances``.

    Args:
        references: (R, D) float32 features of training images.

    Returns:
        None where they are too few.
    """
    if len(references) < MIN_REFERENCES:
        return None
    limits = _limits(references)
    return OodDetector(unit(_cut_off(references, limits)).astype(np.float16), np.empty(0, np.float32), limits)


def held_out_distances(learnt: Features, held_out: Features, *, references: int) -> Scores:
    """(N,) distances of images that a fold left out to those that it learnt from, in ``typical_distance`` of the fold.

    Each fine-tuned network spreads its features in its own way, so that distances of two networks cannot be compared
    as they are. A fold also has fewer images near each other than the finished model: the rank of the neighbour is
    lower by as much.

    Args:
        learnt: (L, D) float32 features of images that the fold learnt from, at most ``references``.
        held_out: (N, D) float32 features of the others, by the same network.
        references: images that the finished model keeps.
    """
    limits = _limits(learnt)
    known = OodDetector(unit(_cut_off(learnt, limits)).astype(np.float16), np.empty(0, np.float32), limits)
    rank = max(1.0, NEIGHBOUR * len(learnt) / references)
    return known.distances(held_out, rank=rank) / typical_distance(known, learnt, rank=rank)


def typical_distance(known: OodDetector, references: Features, *, rank: float = NEIGHBOUR) -> float:
    """The median distance of the references to each other, of each without itself.

    Args:
        known: made of the references.
        references: (R, D) float32, their features.
        rank: of the neighbour.
    """
    each = np.arange(len(references))
    distances = known.distances(references, parts=(each, each), rank=rank)
    return max(float(np.median(distances)), float(TINY))


def _limits(features: Features) -> npt.NDArray[np.float32]:
    """(2,) where strong features are cut off; where nearly all are 0, at the middle of those that are not."""
    low, high = np.quantile(features, [1 - STRONG, STRONG])
    if high <= 0 <= low:
        strong = np.abs(features[features != 0])
        high = float(np.median(strong)) if len(strong) else 1.0
        low = -high
    return np.array([min(low, 0.0), max(high, 0.0)], np.float32)


def _cut_off(features: Features, limits: npt.NDArray[np.float32] | None) -> Features:
    return features if limits is None else np.clip(features, *limits)


def find_outliers(features: Features, labels: Labels) -> dict[int, float]:
    """Images that are unlike all others of their own class; of several labels to an image, unlike all others.

    Args:
        features: (N, D) float32.
        labels: see ``training.losses``.

    Returns:
        Position -> how many times as far from the fifth nearest as is usual (the median over all images), the
        strangest first: those that lie beyond the third quartile by more than ``FAR`` times the distance of the
        quartiles. Classes of under six images have none.
    """
    far = np.full(len(features), np.nan)
    groups = (
        [np.arange(len(labels))] if is_multi_label(labels) else [np.flatnonzero(labels == i) for i in np.unique(labels)]
    )
    for own in groups:
        if len(own) > NEIGHBOUR:
            known = (
                own if len(own) <= COMPARED else np.sort(np.random.default_rng(0).choice(own, COMPARED, replace=False))
            )
            inside = np.isin(own, known)
            references = unit(features[known])
            each = np.arange(len(references))
            far[own[inside]] = _distances(references, features[own[inside]], parts=(each, each))
            far[own[~inside]] = _distances(references, features[own[~inside]])
    judged = far[~np.isnan(far)]
    if len(judged) < MIN_REFERENCES:
        return {}
    low, usual, high = np.quantile(judged, [0.25, 0.5, 0.75])
    found = np.flatnonzero(far > high + FAR * (high - low))
    return {int(i): float(far[i] / max(usual, TINY)) for i in found[np.argsort(-far[found], kind="stable")]}


def _distances(
    known: Features, features: Features, *, parts: tuple[Parts, Parts] | None = None, rank: float = NEIGHBOUR
) -> Scores:
    """See ``OodDetector.distances``; where no image has ``rank`` references: to the farthest."""
    found = []
    usable = len(known)
    if parts is not None and len(features):
        usable -= _fewest_in_common(*parts)
    for start in range(0, len(features), MAX_REFERENCES):
        cosines = unit(features[start : start + MAX_REFERENCES]) @ known.T
        if parts is not None:
            cosines[parts[0][start : start + MAX_REFERENCES, None] == parts[1]] = -np.inf
        low, high = (max(1, min(place, usable)) for place in (math.floor(rank), math.ceil(rank)))
        ranked = np.partition(cosines, sorted({-low, -high}), axis=1)
        near, far = (1 - ranked[:, -place].astype(np.float64) for place in (low, high))
        found.append(near if low == high else near + (rank - math.floor(rank)) * (far - near))
    return np.concatenate(found) if found else np.empty(0)


def _fewest_in_common(parts: Parts, references: Parts) -> int:
    """The least number of references that lie in the part of an image, over all images."""
    names, counts = np.unique(references, return_counts=True)
    place = np.searchsorted(names, parts).clip(max=len(names) - 1)
    return int(np.where(names[place] == parts, counts[place], 0).min())


def _quantiles(distances: Scores) -> npt.NDArray[np.float32]:
    """Ascending; of very many, quantiles at equal steps."""
    if len(distances) > MAX_REFERENCES:
        distances = np.quantile(distances, np.linspace(0, 1, MAX_REFERENCES + 1))
    return np.sort(distances).astype(np.float32)


def unit(features: Features) -> Features:
    """(N, D) float32, each row of length 1."""
    return np.asarray(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), TINY))
