"""Pairs of close hashes: all are found, each once, whatever the number of bands."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from headstart.data import hamming
from headstart.data.hamming import affordable_bits, close_pairs, num_values


def hashes_with_neighbours(count: int, seed: int = 0) -> np.ndarray:
    """Random hashes, of which each tenth is followed by one that differs in up to 20 bits."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 2**63, count, np.uint64) * np.uint64(2) + rng.integers(0, 2, count, np.uint64)
    for place in range(0, count - 1, 10):
        flipped = rng.permutation(64)[: rng.integers(0, 21)].tolist()
        found[place + 1] = found[place] ^ np.uint64(sum(1 << bit for bit in flipped))
    return found


def pairs_of(hashes: np.ndarray, most_bits: int, *advance: Callable[[int], None]) -> list[tuple[int, int]]:
    blocks = close_pairs(hashes, most_bits, *advance)
    return [pair for left, right in blocks for pair in zip(left.tolist(), right.tolist(), strict=True)]


def by_brute_force(hashes: np.ndarray, most_bits: int) -> set[tuple[int, int]]:
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None])
    return {(one, other) for one, other in np.argwhere(bits <= most_bits).tolist() if one < other}


@pytest.mark.parametrize("most_bits", [-1, 0, 1, 3, 7, 14, 20])
@pytest.mark.parametrize("number", [6, 8])
def test_every_close_pair_is_found_once(most_bits: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "_bands", lambda count, bits: hamming._divided(number, bits))
    hashes, steps = hashes_with_neighbours(400), list[int]()
    pairs = pairs_of(hashes, most_bits, steps.append)
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == by_brute_force(hashes, most_bits)
    assert sum(steps) == num_values(400, most_bits)


def test_a_band_that_searches_one_bit_less_would_lose_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The radii are as small as they may be: the sum of radius + 1 is the number of bits + 1."""
    for number in range(2, 9):
        for most_bits in range(20):
            assert sum(band.radius + 1 for band in hamming._divided(number, most_bits)) == most_bits + 1
    hashes = hashes_with_neighbours(400)
    less = [hamming._Band(b.shift, b.width, b.radius - 1) for b in hamming._divided(8, 14)]
    monkeypatch.setattr(hamming, "_bands", lambda count, bits: [band for band in less if band.radius >= 0])
    found = set(pairs_of(hashes, 14))
    assert found < by_brute_force(hashes, 14)


def test_more_hashes_have_wider_bands() -> None:
    widths = [hamming._bands(count, 14)[-1].width for count in (1000, 100_000, 10_000_000)]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_the_number_of_bits_is_what_the_pairs_allow() -> None:
    random = hashes_with_neighbours(600)
    assert affordable_bits(random, 14, 1000) == 14
    alike = random & np.uint64(0xFFF)
    bits = affordable_bits(alike, 14, 30_000)
    assert 0 < bits < 14
    assert len(by_brute_force(alike, bits)) <= 30_000 < len(by_brute_force(alike, bits + 1))
    assert affordable_bits(np.zeros(600, np.uint64), 14, 30_000) == -1
    assert affordable_bits(np.zeros(50, np.uint64), 14, 30_000) == 14


def test_the_number_of_pairs_is_estimated_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    alike = hashes_with_neighbours(1000) & np.uint64(0xFFF)
    whole = affordable_bits(alike, 14, 50_000)
    monkeypatch.setattr(hamming, "SAMPLE", 300)
    assert affordable_bits(alike, 14, 50_000) == whole


@pytest.mark.slow
def test_20_000_hashes_give_what_comparing_all_gives() -> None:
    hashes = hashes_with_neighbours(20_000, seed=3)
    found = set(pairs_of(hashes, 14))
    expected = set()
    for place in range(len(hashes)):
        near = np.flatnonzero(np.bitwise_count(hashes[place + 1 :] ^ hashes[place]) <= 14)
        expected |= {(place, place + 1 + other) for other in near.tolist()}
    assert found == expected
    assert len(found) > 1000
