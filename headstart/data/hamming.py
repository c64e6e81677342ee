"""All pairs of 64-bit hashes that differ in few bits, found exactly: by bands of bits (multi-index hashing).

Two hashes that differ in at most r bits differ in few bits of at least one of several bands. Only hashes that are so
close in a band are compared as a whole, in blocks: at a million hashes and 14 bits one pair in eighteen.

Source: Norouzi, Punjani and Fleet, "Fast Exact Search in Hamming Space with Multi-Index Hashing", 2014.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from headstart.concurrency import usable_cpus

BITS: Final = 64

BLOCK: Final = 1 << 16
"""Pairs that are compared at once; their differences fit into the cache of a processor."""

VALUES: Final = 64
"""Values of a band that one task compares."""

CALL_COST: Final = 60_000
"""Time that a value of a band takes besides its pairs, in pairs."""

SAMPLE: Final = 4096
"""Hashes among which close pairs are counted to estimate their number among all."""

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Band:
    """Some bits of the hashes, in which two close ones may differ in at most ``radius`` bits.

    Attributes:
        shift: its lowest bit.
        width: number of bits.
        radius: at least 0.
    """

    shift: int
    width: int
    radius: int

    def of(self, hashes: Hashes) -> Hashes:
        """The bits of the band."""
        return np.asarray((hashes >> np.uint64(self.shift)) & np.uint64((1 << self.width) - 1))

    def masks(self) -> npt.NDArray[np.int64]:
        """What the values of two close hashes may differ by, and 0."""
        bits = [
            sum(1 << bit for bit in chosen)
            for count in range(self.radius + 1)
            for chosen in itertools.combinations(range(self.width), count)
        ]
        return np.array(bits, np.int64)


def close_pairs(
    hashes: Hashes, most_bits: int, advance: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[Places, Places]]:
    """Every pair of positions whose hashes differ in at most ``most_bits`` bits, once, in blocks.

    Args:
        hashes: (N,) uint64.
        most_bits: below 64; -1: no pair is close.
        advance: receives the steps done, see ``num_values``.

    Yields:
        (K,) positions ``left`` and ``right``, ``left < right``.
    """
    bands = _bands(len(hashes), most_bits)
    with ThreadPoolExecutor(threads := usable_cpus()) as pool:
        for number, band in enumerate(bands):
            search = _search(hashes, band, bands[:number], most_bits)
            starts = range(0, 1 << band.width, VALUES)
            for first in range(0, len(starts), 4 * threads):  # a few at a time: found pairs wait in memory
                for left, right in pool.map(search, starts[first : first + 4 * threads]):
                    advance(min(VALUES, 1 << band.width))
                    if len(left):
                        yield np.minimum(left, right), np.maximum(left, right)


def num_values(count: int, most_bits: int) -> int:
    """Steps of ``close_pairs`` for so many hashes: values of all bands."""
    return sum(1 << band.width for band in _bands(count, most_bits))


def _bands(count: int, most_bits: int) -> list[_Band]:
    """The cheapest division into bands for so many hashes; those with a radius below 0 need no search."""
    return min((_divided(number, most_bits) for number in range(2, 9)), key=lambda bands: _cost(count, bands))


def _divided(number: int, most_bits: int) -> list[_Band]:
    """That many bands, whose radii are such that two hashes that are farther apart in each differ in more bits."""
    widths = [BITS // number + (place < BITS % number) for place in range(number)]
    radii = [(most_bits + 1) // number - 1 + (place < (most_bits + 1) % number) for place in range(number)]
    radii.sort()  # the widest band has the smallest
    shifts = itertools.accumulate(widths, initial=0)
    return [_Band(s, w, r) for s, w, r in zip(shifts, widths, radii, strict=False) if r >= 0]


def _cost(count: int, bands: list[_Band]) -> float:
    """Pairs that are compared, and what handling the values of the bands takes, in pairs."""
    near = [sum(math.comb(band.width, i) for i in range(band.radius + 1)) / (1 << band.width) for band in bands]
    return sum(count**2 / 2 * share + CALL_COST * (1 << band.width) for share, band in zip(near, bands, strict=True))


def _search(hashes: Hashes, band: _Band, before: list[_Band], most_bits: int) -> Callable[[int], tuple[Places, Places]]:
    """First of ``VALUES`` values of a band -> the close pairs with the smaller value among them.

    Args:
        hashes: all.
        band: whose values are compared.
        before: bands that were searched; what is close in one is left out.
        most_bits: see ``close_pairs``.
    """
    values = band.of(hashes)
    order = np.argsort(values, kind="stable")
    ordered = hashes[order]
    starts = np.searchsorted(values[order], np.arange((1 << band.width) + 1, dtype=np.uint64))
    masks = band.masks()

    def search(first: int) -> tuple[Places, Places]:
        found = [
            pair
            for value in range(first, min(first + VALUES, 1 << band.width))
            if starts[value] < starts[value + 1]
            for pair in _near_value(ordered, starts, masks, value, most_bits)
        ]
        left, right = (np.concatenate([np.empty(0, np.int64), *(pair[side] for pair in found)]) for side in (0, 1))
        if before and len(left):
            differ = ordered[left] ^ ordered[right]
            new = np.all([np.bitwise_count(one.of(differ)) > one.radius for one in before], axis=0)
            left, right = left[new], right[new]
        return order[left], order[right]

    return search


def _near_value(
    ordered: Hashes, starts: Places, masks: npt.NDArray[np.int64], value: int, most_bits: int
) -> Iterator[tuple[Places, Places]]:
    """Close pairs of hashes with this value and hashes with it or a larger value nearby; places in ``ordered``."""
    near = value ^ masks
    near = near[near >= value]
    sizes = starts[near + 1] - starts[near]
    ends = np.cumsum(sizes)
    right = np.arange(ends[-1]) + np.repeat(starts[near] - (ends - sizes), sizes)
    begin, end = int(starts[value]), int(starts[value + 1])
    others = ordered[right]
    step = max(1, BLOCK // len(right))
    for start in range(begin, end, step):
        block = ordered[start : min(start + step, end)]
        close = np.bitwise_count(block[:, None] ^ others[None]) <= most_bits
        rows, columns = np.divmod(np.flatnonzero(close), len(others))  # 20 times as fast as nonzero of two dimensions
        left, other = start + rows, right[columns]
        once = other > left  # hashes with the same value meet twice, others once
        if once.any():
            yield left[once], other[once]


def affordable_bits(hashes: Hashes, most_bits: int, most_pairs: int) -> int:
    """The largest number of bits, up to ``most_bits``, in which about ``most_pairs`` pairs at most do not differ more.

    Estimated from a fixed sample of the hashes; among few hashes it is always ``most_bits``. -1: even equal hashes
    make more pairs.
    """
    count = len(hashes)
    if count * (count - 1) // 2 <= most_pairs:
        return most_bits
    sample = hashes if count <= SAMPLE else np.random.default_rng(0).choice(hashes, SAMPLE, replace=False)
    histogram = np.zeros(BITS + 1, np.int64)
    for place in range(len(sample)):
        histogram += np.bincount(np.bitwise_count(sample[place + 1 :] ^ sample[place]), minlength=BITS + 1)
    expected = np.cumsum(histogram) * (count / len(sample)) ** 2
    return min(most_bits, int(np.searchsorted(expected, most_pairs, side="right")) - 1)
