"""Findings about images in shards: equal files, probable label errors, and outliers of a sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from headstart.data.dataset import Dataset
from headstart.data.duplicates import DuplicatePair, connected_parts
from headstart.data.finding import Finding
from headstart.data.inspection import by_severity
from headstart.distributed.sharded_features import ShardedFeatures
from headstart.progress import Progress
from headstart.training.losses import Parts
from headstart.trust.feature_findings import inspect_features

MOST_CHECKED: Final = 20_000
"""Default number of images whose labels are checked: their features are in memory, and are fitted ten times."""


def shard_findings(
    sharded: ShardedFeatures, strength: float, *, seed: int, most_checked: int, progress: Progress
) -> tuple[Finding, ...]:
    """What is wrong with the images of shards, most severe first.

    Files with equal bytes are looked for among all images. Labels and outliers are checked on a sample, the images with
    the smallest content hashes.

    Args:
        sharded: features and labels.
        strength: inverse strength of the L2 penalty of the mean loss: C of a fit, times its number of images.
        seed: of the cross-validation folds.
        most_checked: images of the sample at most; 0: labels and outliers are not checked.
        progress: receives the number of fits done.
    """
    found = list(_equal_files(sharded))
    places = sharded.first_by_content(np.ones(len(sharded), dtype=bool), most_checked)
    if len(places):
        found += _sampled(sharded, places, c=strength / len(places), seed=seed, progress=progress)
    return by_severity(found)


def _equal_files(sharded: ShardedFeatures) -> Iterator[Finding]:
    """Images with the same content hash: with the same label, or with different ones."""
    ordered = np.lexsort(sharded.keys.T[::-1])
    equal = (sharded.keys[ordered[1:]] == sharded.keys[ordered[:-1]]).all(axis=1)
    first = ordered[np.maximum.accumulate(np.where(np.r_[True, ~equal], np.arange(len(ordered)), 0))][1:][equal]
    other = ordered[1:][equal]
    differ = sharded.labels[first] != sharded.labels[other]
    differ = differ.any(axis=1) if sharded.multi_label else differ
    for wanted, kind, severity, words in (
        (differ, "conflicting-labels", "serious", "pair(s) of files with equal bytes have different labels"),
        (~differ, "duplicate", "note", "pair(s) of files have equal bytes, within a class"),
    ):
        if wanted.any():
            order = np.argsort(first[wanted], kind="stable")
            pairs = _names(sharded, first[wanted][order], other[wanted][order])
            items = tuple(f"{one} = {two}" for one, two in pairs)
            yield Finding(kind, severity, f"{len(items):,} {words}", items, tuple(pairs))  # type: ignore[arg-type]


def _names(
    sharded: ShardedFeatures, first: npt.NDArray[np.int64], other: npt.NDArray[np.int64]
) -> list[tuple[str, str]]:
    """Paths of pairs of places."""
    places = np.unique(np.concatenate([first, other]))
    path = dict(zip(places.tolist(), sharded.paths(places), strict=True))
    return [(path[one], path[two]) for one, two in zip(first.tolist(), other.tolist(), strict=True)]


def _sampled(
    sharded: ShardedFeatures, places: npt.NDArray[np.int64], *, c: float, seed: int, progress: Progress
) -> list[Finding]:
    """Probable label errors and outliers among some images, in ascending order of their places."""
    sample = Dataset(
        str(sharded.folder),
        str(sharded.folder),
        tuple(sharded.paths(places)),
        sharded.labels[places],
        sharded.classes,
        groups=None if sharded.groups is None else tuple(sharded.groups[place] for place in places),
    )
    parts = _parts(sample, sharded.keys[places])
    features = sharded.read(places)
    found = inspect_features(sample, range(len(sample)), features, c=c, seed=seed, together=parts, progress=progress)
    if len(places) == len(sharded):
        return found
    of = f"{len(places):,} of {len(sharded):,} images, drawn by content, were checked"
    return [replace(finding, message=f"{finding.message} ({of})") for finding in found]


def _parts(sample: Dataset, keys: npt.NDArray[np.uint8]) -> Parts | None:
    """Numbers of parts that cross-validation does not divide: groups, and files with equal bytes."""
    first: dict[bytes, int] = {}
    firsts = [first.setdefault(keys[place].tobytes(), place) for place in range(len(keys))]
    equal = [DuplicatePair(one, place, exact=True) for place, one in enumerate(firsts) if one != place]
    if sample.groups is None and not equal:
        return None
    return connected_parts(range(len(sample)), sample.groups, equal)
