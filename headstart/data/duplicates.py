"""Duplicate detection: byte-identical and near-identical images, by perceptual hash and thumbnail.

Two images are near-identical if their 64-bit perceptual hashes differ in at most ``MAX_BITS`` bits, and their
thumbnails by at most ``MAX_DIFFERENCE`` on average, possibly after a margin is cropped from one of them. The hash alone
would match any two blank or blurred images, the thumbnail alone any two sunsets. Without margins, an image that lost
3 % at two sides is found in two cases of three (docs/results/2026-11-23-data-check.md).

If all images look alike (digits, scans, parts under a fixed camera), similarity is less meaningful: the limit is then
``SHARE_OF_TYPICAL`` of the typical difference in this data set, without margins.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.data.finding import Finding
from headstart.data.hamming import affordable_bits, close_pairs, num_values
from headstart.data.scan import GREY, THUMB, Scan
from headstart.progress import Progress, SilentProgress

MAX_BITS = 14
"""Largest number of different bits of two 64-bit perceptual hashes."""

MAX_DIFFERENCE = 12.0
"""Largest mean absolute difference of two 16 x 16 thumbnails over pixels and channels, 0-255."""

SHARE_OF_TYPICAL = 0.18
"""Two photographs typically differ by 65 to 68 (median over random pairs), so that ``MAX_DIFFERENCE`` applies; two of
scikit-learn's digits by 18. Measured: docs/results/2026-11-23-data-check.md."""

MARGINS = (0.0, 0.015, 0.03, 0.045)
"""Margins that are tried at each end, as shares of a side."""

MOST_CUT = 0.075
"""Largest sum of both margins, as a share of a side."""

WORTH_A_TRY = 2.25
"""Multiple of the limit up to which pairs are compared again with margins."""

_TYPICAL_FROM = 4
_TYPICAL_PAIRS = 20_000

_BLOCK_ELEMENTS = 1_000_000

SEARCHED_BY_BANDS = 10_000
"""Number of images from which the hashes are searched by bands, which finds the same pairs sooner."""

MOST_CANDIDATES = 100_000_000
"""Pairs of similar hashes, at most, whose thumbnails are compared: about five minutes."""

REPORTED_FROM = 100_000
"""Number of images from which a finding says what was compared."""


@dataclass(frozen=True)
class DuplicatePair:
    """Two positions in a scan, ``first < second``, of identical or near-identical images.

    Attributes:
        first: position of one file.
        second: position of the other.
        exact: whether the files are equal byte for byte.
    """

    first: int
    second: int
    exact: bool


@dataclass(frozen=True)
class DuplicateSearch:
    """Pairs of identical or near-identical images, and which images were compared.

    Attributes:
        pairs: in order of position.
        num_images: images with different bytes.
        most_bits: largest number of different bits of two hashes whose images were compared; ``MAX_BITS`` unless very
            many images are alike; -1 if only identical files were looked for.
    """

    pairs: tuple[DuplicatePair, ...]
    num_images: int
    most_bits: int

    @property
    def is_complete(self) -> bool:
        """Whether every pair within the limits was found."""
        return self.most_bits == MAX_BITS

    def findings(self) -> list[Finding]:
        """What was compared, if that is not all, or if the images are many."""
        if self.is_complete and self.num_images < REPORTED_FROM:
            return []
        if self.is_complete:
            message = f"near-identical images were looked for among all {self.num_images:,} different images"
            return [Finding("duplicate-search", "note", message)]
        searched = "only identical files were looked for"
        if self.most_bits >= 0:
            searched = (
                "near-identical ones were looked for only among those whose hashes differ in at most "
                f"{self.most_bits} of 64 bits, not {MAX_BITS}"
            )
        message = f"very many of the {self.num_images:,} images are alike: {searched}"
        return [Finding("duplicate-search", "warning", message)]


def connected_parts(
    places: Sequence[int], groups: Sequence[str] | None, duplicates: Sequence[DuplicatePair]
) -> npt.NDArray[np.int64]:
    """(N,) part numbers: images of one group and near-identical images are in one part (connected components).

    Args:
        places: positions of N images in the data.
        groups: name of the group of each image of the data, "" for none; None without groups.
        duplicates: of the data.
    """
    from scipy.sparse import coo_array  # slow imports that a scan does not need
    from scipy.sparse.csgraph import connected_components

    number = {place: index for index, place in enumerate(places)}
    first: dict[str, int] = {}
    ties = [(first.setdefault(groups[p], i), i) for p, i in number.items() if groups[p]] if groups else []
    ties += [(number[d.first], number[d.second]) for d in duplicates if d.first in number and d.second in number]
    one, two = np.array(ties, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(one)), (one, two)), shape=(len(places), len(places)))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def find_duplicates(scan: Scan, progress: Progress | None = None) -> DuplicateSearch:
    """All pairs of identical or near-identical usable images.

    Of k byte-identical files, k - 1 pairs are returned, each with the first of them, and only the first is compared
    with other images. If so many hashes are alike that confirming each pair by thumbnail would take hours
    (``MOST_CANDIDATES``), only pairs with fewer different bits are compared, see ``DuplicateSearch.most_bits``.

    Args:
        scan: of the images.
        progress: receives a step for each value of the hashes' bands.
    """
    first_of: dict[bytes, int] = {}
    pairs: list[DuplicatePair] = []
    for position in np.flatnonzero(scan.usable).tolist():
        original = first_of.setdefault(scan.keys[position], position)
        if original != position:
            pairs.append(DuplicatePair(original, position, exact=True))
    unique = np.fromiter(first_of.values(), dtype=np.int64, count=len(first_of))
    hashes, thumbs, greys = np.ascontiguousarray(scan.facts["phash"][unique]), scan.facts["thumb"], scan.facts["grey"]
    limit = _largest_difference(thumbs, unique)
    most_bits = affordable_bits(hashes, MAX_BITS, MOST_CANDIDATES)
    for left, right in _candidates(hashes, most_bits, progress or SilentProgress()):
        left, right = unique[left], unique[right]
        difference = _thumb_difference(thumbs, left, right)
        same = difference <= limit
        near = ~same & (difference <= WORTH_A_TRY * limit) & (limit == MAX_DIFFERENCE)
        for place in np.flatnonzero(near):
            same[place] = _difference_without_margins(greys[left[place]], greys[right[place]]) <= limit
        pairs += [
            DuplicatePair(int(min(a, b)), int(max(a, b)), exact=False)
            for a, b in zip(left[same], right[same], strict=True)
        ]
    ordered = sorted(set(pairs), key=lambda pair: (pair.first, pair.second))
    return DuplicateSearch(tuple(ordered), len(unique), most_bits)


def _largest_difference(thumbs: npt.NDArray[Any], unique: npt.NDArray[np.int64]) -> float:
    """The limit for thumbnails of this data set, 0-255.

    Args:
        thumbs: of all images.
        unique: positions of the images that differ.
    """
    if len(unique) < _TYPICAL_FROM:
        return MAX_DIFFERENCE
    left, right = np.random.default_rng(0).integers(0, len(unique), (2, _TYPICAL_PAIRS))
    apart = left != right
    typical = float(np.median(_thumb_difference(thumbs, unique[left[apart]], unique[right[apart]])))
    return min(MAX_DIFFERENCE, SHARE_OF_TYPICAL * typical)


def _candidates(
    hashes: npt.NDArray[np.uint64], most_bits: int, progress: Progress
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Pairs of positions whose hashes differ in at most ``most_bits`` bits, in blocks."""
    if len(hashes) < SEARCHED_BY_BANDS:
        yield from _compared(hashes, most_bits)
        return
    steps = num_values(len(hashes), most_bits)
    with progress.task("Looking for near-identical images", steps, unit="steps") as advance:
        yield from close_pairs(hashes, most_bits, advance)


def _compared(
    hashes: npt.NDArray[np.uint64], most_bits: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Compares each hash with all others."""
    step = max(1, _BLOCK_ELEMENTS // max(1, len(hashes)))
    for start in range(0, len(hashes), step):
        bits = np.bitwise_count(hashes[start : start + step, None] ^ hashes[None, start:])
        left, right = np.divmod(np.flatnonzero(bits <= most_bits), len(hashes) - start)
        later = right > left
        if later.any():
            yield start + left[later], start + right[later]


def _thumb_difference(
    thumbs: npt.NDArray[Any], left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """(pairs,) float64, 0-255. In blocks: if all images look alike there may be millions of pairs."""
    out = np.empty(len(left))
    for start in range(0, len(left), 4096):
        piece = slice(start, start + 4096)
        gap = thumbs[left[piece]].astype(np.int16) - thumbs[right[piece]].astype(np.int16)
        out[piece] = np.abs(gap).mean(axis=(1, 2, 3))
    return out


def _difference_without_margins(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """Smallest mean difference, 0-255, of two grey thumbnails, one of them with margins cropped."""
    windows, least = _windows(), np.inf
    for cut, whole in ((one, other), (other, one)):
        target = windows[0] @ whole.astype(np.float32) @ windows[0].T
        across = cut.astype(np.float32) @ windows.transpose(0, 2, 1)  # (windows, GREY, THUMB)
        tried = windows[:, None] @ across[None]
        least = min(least, float(np.abs(tried - target).mean(axis=(2, 3)).min()))
    return least


@cache
def _windows() -> npt.NDArray[np.float32]:
    """(windows, THUMB, GREY): each averages the rest of a side of GREY pixels to THUMB; the first has no margin."""
    found = []
    for start, end in itertools.product(MARGINS, MARGINS):
        if start + end <= MOST_CUT:
            edges = np.linspace(start * GREY, (1 - end) * GREY, THUMB + 1)
            pixel = np.arange(GREY)
            overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
            found.append(overlap.clip(min=0) / np.diff(edges)[:, None])
    return np.array(found, dtype=np.float32)
