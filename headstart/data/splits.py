"""Train, val and test for data that come without them.

Each image is drawn by a hash of the seed and its own content (or of its group's name), and of nothing else: whatever is
added later, no old image changes sides. The price is that the shares hold within each class only on average, as for any
independent draw.

Near-identical images would otherwise be drawn apart, and a model would be examined on what it was taught. Moving one of
them would move old images when a new one arrives between them; so the one with the lesser claim is left out instead
(train keeps its images, then val, then test), and is named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headstart.data.dataset import SPLITS, Dataset
from headstart.data.duplicates import DuplicatePair
from headstart.data.scan import Scan
from headstart.errors import DataError, OptionError

UNUSED = ""
"""The split of an image that is left out."""


@dataclass(frozen=True)
class SplitShares:
    """Shares of the images, each in [0, 1); train gets the rest.

    Attributes:
        val: to choose settings by, and for the score of a run without a test split.
        test: to examine the finished classifier once.
    """

    val: float = 0.15
    test: float = 0.15

    def __post_init__(self) -> None:
        if not (0 < self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            raise OptionError(f"shares of val {self.val} and test {self.test}: expected val > 0 and a sum below 1.")


@dataclass(frozen=True)
class Split:
    """Which image is where.

    Attributes:
        assigned: N of "train", "val", "test", or "" for an image that is left out.
        given: whether the data came with it.
        left_out: position -> why an image that could be read is in no split.
        leaks: pairs of positions that show the same picture on two sides; only given splits can have any.
    """

    assigned: tuple[str, ...]
    given: bool
    left_out: dict[int, str]
    leaks: tuple[DuplicatePair, ...]

    def positions(self, name: str) -> list[int]:
        """Positions of one split's images, ascending."""
        return [i for i, split in enumerate(self.assigned) if split == name]

    @property
    def names(self) -> tuple[str, ...]:
        """The splits that hold images, in the order train, val, test."""
        return tuple(name for name in SPLITS if name in self.assigned)

    @property
    def sizes(self) -> dict[str, int]:
        """Split name -> images, in the same order."""
        return {name: self.assigned.count(name) for name in self.names}


def make_split(
    dataset: Dataset,
    scanned: Scan,
    duplicates: Sequence[DuplicatePair],
    *,
    seed: int = 0,
    shares: SplitShares | None = None,
) -> Split:
    """The data's own split where it has one, and a drawn one otherwise; unreadable images are in neither.

    Data that come with a train split alone are drawn from as well: something must be held out.

    Args:
        dataset: N images.
        scanned: of the same N images, in the same order.
        duplicates: of the same scan.
        seed: another seed draws another split.
        shares: of a drawn split.

    Raises:
        DataError: the data come with splits of which none is train.
    """
    if dataset.splits is not None and "train" not in dataset.splits:
        given = ", ".join(sorted(set(dataset.splits)))
        raise DataError(f"{dataset.root}: found the splits {given} and no train; there is nothing to learn from.")
    if dataset.splits is not None and set(dataset.splits) != {"train"}:
        assigned = [split if ok else UNUSED for split, ok in zip(dataset.splits, scanned.usable, strict=True)]
        leaks = tuple(p for p in duplicates if assigned[p.first] != assigned[p.second])
        return Split(tuple(assigned), given=True, left_out={}, leaks=leaks)
    assigned = _draw(dataset, scanned, seed=seed, shares=shares or SplitShares())
    left_out = _separate(assigned, scanned, duplicates, dataset)
    return Split(tuple(assigned), given=False, left_out=left_out, leaks=())


def _draw(dataset: Dataset, scanned: Scan, *, seed: int, shares: SplitShares) -> list[str]:
    assigned = []
    for position, usable in enumerate(scanned.usable):
        group = dataset.groups[position] if dataset.groups else ""
        name = b"group:" + group.encode(errors="surrogateescape") if group else b"image:" + scanned.keys[position]
        place = _uniform(seed, name)
        if not usable:
            assigned.append(UNUSED)
        elif place < shares.test:
            assigned.append("test")
        else:
            assigned.append("val" if place < shares.test + shares.val else "train")
    return assigned


def _uniform(seed: int, name: bytes) -> float:
    """A number in [0, 1) that depends on the seed and the name alone."""
    digest = hashlib.blake2b(name, digest_size=8, salt=seed.to_bytes(8, "big", signed=True)).digest()
    return int.from_bytes(digest, "big") / 2**64


def _separate(
    assigned: list[str], scanned: Scan, duplicates: Sequence[DuplicatePair], dataset: Dataset
) -> dict[int, str]:
    """Takes out of val and test what near-identically stands in a split before them; changes ``assigned``.

    A twin in the same split, or one that is itself left out, keeps nobody out. Byte-identical files are drawn alike
    unless their groups differ.
    """
    places: dict[bytes, list[int]] = {}
    alike: dict[bytes, set[bytes]] = {}
    for position in np.flatnonzero(scanned.usable).tolist():
        places.setdefault(scanned.keys[position], []).append(position)
    for pair in duplicates:
        one, two = scanned.keys[pair.first], scanned.keys[pair.second]
        alike.setdefault(one, {one}).add(two)
        alike.setdefault(two, {two}).add(one)
    left_out: dict[int, str] = {}
    for split in ("val", "test"):
        earlier = SPLITS[: SPLITS.index(split)]
        for position, key in enumerate(scanned.keys):
            if assigned[position] != split or key not in alike:
                continue
            twins = sorted(place for twin in alike[key] for place in places[twin] if assigned[place] in earlier)
            if twins:
                twin = dataset.paths[twins[0]]
                left_out[position] = f"drawn for {split}, but near-identical to {twin} in {assigned[twins[0]]}"
                assigned[position] = UNUSED
    return left_out


def split_counts(dataset: Dataset, split: Split) -> dict[str, dict[str, int]]:
    """Split name -> class name -> images; one with several labels counts for each."""
    assigned = np.array(split.assigned)
    return {
        name: {
            label: int(np.sum((assigned == name) & dataset.bearing(index)))
            for index, label in enumerate(dataset.classes)
        }
        for name in split.names
    }
