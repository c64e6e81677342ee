"""Search for close perceptual hashes: time and memory by number of hashes, and recall against comparing all.

    python benchmarks/near_duplicates.py [--hashes 20000 100000 1000000]

The hashes are random; each thousandth has a neighbour that differs in 0 to 14 bits. Up to 20,000 the pairs are compared
with those of brute force. Beyond, the planted pairs are looked for.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from headstart.data.duplicates import MAX_BITS, MOST_CANDIDATES
from headstart.data.hamming import affordable_bits, close_pairs


def hashes(count: int) -> tuple[np.ndarray, set[tuple[int, int]]]:
    """Hashes, and the planted pairs."""
    rng = np.random.default_rng(0)
    found = rng.integers(0, 2**63, count, np.uint64) * np.uint64(2) + rng.integers(0, 2, count, np.uint64)
    for place in range(0, count - 1, 1000):
        flipped = rng.permutation(64)[: place // 1000 % (MAX_BITS + 1)].tolist()
        found[place + 1] = found[place] ^ np.uint64(sum(1 << bit for bit in flipped))
    return found, {(place, place + 1) for place in range(0, count - 1, 1000)}


def by_brute_force(given: np.ndarray) -> set[tuple[int, int]]:
    pairs = set[tuple[int, int]]()
    for place in range(len(given)):
        near = np.flatnonzero(np.bitwise_count(given[place + 1 :] ^ given[place]) <= MAX_BITS)
        pairs |= {(place, place + 1 + other) for other in near.tolist()}
    return pairs


def measure(count: int) -> None:
    given, planted = hashes(count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.monotonic(), time.process_time()
    bits = affordable_bits(given, MAX_BITS, MOST_CANDIDATES)
    num_pairs, pairs = 0, set[tuple[int, int]]()
    for left, right in close_pairs(given, bits):
        num_pairs += len(left)
        chosen = np.ones(len(left), dtype=bool) if count <= 20_000 else left % 1000 == 0
        pairs |= set(zip(left[chosen].tolist(), right[chosen].tolist(), strict=True))
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    expected = by_brute_force(given) if count <= 20_000 else planted
    print(
        f"{count:,} hashes: {seconds:.1f} s, {cpu:.1f} s of processors, {memory:.0f} MiB; {num_pairs:,} pairs up to "
        f"{bits} bits; recall {len(pairs & expected) / len(expected):.4f} of {len(expected):,}",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hashes", type=int, nargs="*", default=[20_000, 100_000, 1_000_000])
    for number in parser.parse_args().hashes:
        measure(number)
