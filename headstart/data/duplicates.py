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

from headstart.data.scan import GREY, THUMB, Scan

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

_BLOCK_ELEMENTS = 4_000_000
_EXHAUSTIVE_BELOW = 100_000
_BANDS = 4


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


def find_duplicates(scan: Scan) -> list[DuplicatePair]:
    """All pairs of identical or near-identical usable images, in order of position.

    Of k byte-identical files, k - 1 pairs are returned, each with the first of them, and only the first is compared
    with other images. Up to 100,000 images all pairs are compared; beyond, only pairs that share one of four 16-bit
    bands of the hash, which finds all pairs that differ in up to three bits and most others.
    """
    first_of: dict[bytes, int] = {}
    pairs: list[DuplicatePair] = []
    for position in np.flatnonzero(scan.usable).tolist():
        original = first_of.setdefault(scan.keys[position], position)
        if original != position:
            pairs.append(DuplicatePair(original, position, exact=True))
    unique = np.fromiter(first_of.values(), dtype=np.int64, count=len(first_of))
    hashes, thumbs, greys = (scan.facts[name][unique] for name in ("phash", "thumb", "grey"))
    limit = _largest_difference(thumbs)
    for left, right in _candidates(hashes):
        difference = _thumb_difference(thumbs, left, right)
        same = difference <= limit
        near = ~same & (difference <= WORTH_A_TRY * limit) & (limit == MAX_DIFFERENCE)
        for place in np.flatnonzero(near):
            same[place] = _difference_without_margins(greys[left[place]], greys[right[place]]) <= limit
        pairs += [
            DuplicatePair(int(min(a, b)), int(max(a, b)), exact=False)
            for a, b in zip(unique[left[same]], unique[right[same]], strict=True)
        ]
    return sorted(set(pairs), key=lambda pair: (pair.first, pair.second))


def _largest_difference(thumbs: npt.NDArray[Any]) -> float:
    """The limit for thumbnails of this data set, 0-255."""
    if len(thumbs) < _TYPICAL_FROM:
        return MAX_DIFFERENCE
    left, right = np.random.default_rng(0).integers(0, len(thumbs), (2, _TYPICAL_PAIRS))
    apart = left != right
    typical = float(np.median(_thumb_difference(thumbs, left[apart], right[apart])))
    return min(MAX_DIFFERENCE, SHARE_OF_TYPICAL * typical)


def _candidates(
    hashes: npt.NDArray[np.uint64],
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Pairs of positions whose hashes differ in at most ``MAX_BITS`` bits, in blocks."""
    if len(hashes) <= _EXHAUSTIVE_BELOW:
        yield from _close(hashes, np.arange(len(hashes)))
        return
    for band in range(_BANDS):
        values = (hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(values, kind="stable")
        starts = np.flatnonzero(np.diff(values[order], prepend=values[order[0]] + np.uint64(1)))
        for members in np.split(order, starts[1:]):
            if len(members) > 1:
                yield from _close(hashes, members)


def _close(
    hashes: npt.NDArray[np.uint64], members: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    chosen = hashes[members]
    step = max(1, _BLOCK_ELEMENTS // len(members))
    for start in range(0, len(members), step):
        block = chosen[start : start + step]
        bits = np.bitwise_count(block[:, None] ^ chosen[None, start:])
        left, right = np.nonzero(bits <= MAX_BITS)
        later = right > left
        if later.any():
            yield members[start + left[later]], members[start + right[later]]


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
