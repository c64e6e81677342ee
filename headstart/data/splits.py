"""Train, val and test for data that come without them, and val for data that come with train and test alone.

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

DEFAULT_SHARE = 0.15
"""Share of the images for val, and for test, where no share is given."""

MIN_DRAWN_VAL = 100
"""Expected images below which no val is drawn from a given train unless a share is given: so few would choose badly,
and train would miss them. Cross-validation takes their place."""


@dataclass(frozen=True)
class SplitShares:
    """Shares of the images, each in [0, 1); train gets the rest.

    Attributes:
        val: validation images: they choose settings, calibrate, and give the score of a run without test images. None:
            ``DEFAULT_SHARE``, and of a given train only where that is at least ``MIN_DRAWN_VAL`` images.
        test: images that score the finished classifier once; None: ``DEFAULT_SHARE``.

    Raises:
        OptionError: val is not above 0, test is negative, or their sum is not below 1.
    """

    val: float | None = None
    test: float | None = None

    def __post_init__(self) -> None:
        if not (0 < self.val_share < 1 and 0 <= self.test_share < 1 and self.val_share + self.test_share < 1):
            raise OptionError(
                f"shares of val {self.val_share} and test {self.test_share}: expected val > 0 and a sum below 1."
            )

    @property
    def val_share(self) -> float:
        """``val``, or its default."""
        return DEFAULT_SHARE if self.val is None else self.val

    @property
    def test_share(self) -> float:
        """``test``, or its default."""
        return DEFAULT_SHARE if self.test is None else self.test


@dataclass(frozen=True)
class Split:
    """Which image is where.

    Attributes:
        assigned: N of "train", "val", "test", or "" for an image that is left out.
        given: whether the data came with train and with val or test.
        left_out: position -> why an image that could be read is in no split.
        leaks: pairs of positions that show the same picture on two sides; only given splits can have any.
        val_drawn: whether val was drawn from the given train.
    """

    assigned: tuple[str, ...]
    given: bool
    left_out: dict[int, str]
    leaks: tuple[DuplicatePair, ...]
    val_drawn: bool = False

    @property
    def origin(self) -> str:
        """Where the split comes from, in words: "as given with the data"."""
        if not self.given:
            return "drawn by content"
        return "as given with the data" + (", val drawn from train by content" if self.val_drawn else "")

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

    Data that come with a train split alone are drawn from as well: something must be held out. Of data that come with
    train and test alone, val is drawn from train where that gives enough images or a share is given.

    Args:
        dataset: N images.
        scanned: of the same N images, in the same order.
        duplicates: of the same scan.
        seed: another seed draws another split.
        shares: of a drawn split.

    Raises:
        DataError: the data come with splits of which none is train.
        OptionError: see ``check_shares``.
    """
    shares = shares or SplitShares()
    check_shares(dataset, shares)
    if dataset.splits is not None and "train" not in dataset.splits:
        given = ", ".join(sorted(set(dataset.splits)))
        raise DataError(f"{dataset.root}: found the splits {given} and no train; there is nothing to learn from.")
    places = _places(dataset, scanned, seed=seed)
    if dataset.splits is None or set(dataset.splits) == {"train"}:
        test, val = shares.test_share, shares.test_share + shares.val_share
        drawn = [("test" if place < test else "val" if place < val else "train") for place in places]
        assigned = [split if ok else UNUSED for split, ok in zip(drawn, scanned.usable, strict=True)]
        left_out = _separate(assigned, scanned, duplicates, dataset)
        return Split(tuple(assigned), given=False, left_out=left_out, leaks=())
    assigned = [split if ok else UNUSED for split, ok in zip(dataset.splits, scanned.usable, strict=True)]
    expected = shares.val_share * assigned.count("train")
    val_drawn = "val" not in dataset.splits and (shares.val is not None or expected >= MIN_DRAWN_VAL)
    left_out = {}
    if val_drawn:
        assigned = [
            "val" if split == "train" and place < shares.val_share else split
            for split, place in zip(assigned, places, strict=True)
        ]
        left_out = _separate(assigned, scanned, duplicates, dataset, splits=("val",))
    leaks = tuple(p for p in duplicates if _parted(assigned[p.first], assigned[p.second]))
    return Split(tuple(assigned), given=True, left_out=left_out, leaks=leaks, val_drawn=val_drawn)


def check_shares(dataset: Dataset, shares: SplitShares) -> None:
    """Checks that no share is asked for of what the data come with.

    Raises:
        OptionError: a share of val where the data come with val, or of test where they come with splits.
    """
    given = [name for name in SPLITS if name in set(dataset.splits or ())]
    if "train" not in given:
        return  # a drawn split; or data without train, which is the graver error
    own = f"{dataset.root} comes with its own split ({', '.join(given)}); leave the option out."
    if shares.val is not None and "val" in given:
        raise OptionError(f"val {shares.val}: {own}")
    if shares.test is not None and len(given) > 1:
        raise OptionError(f"test {shares.test}: {own}")


def _parted(one: str, two: str) -> bool:
    return one != two and UNUSED not in (one, two)


def _places(dataset: Dataset, scanned: Scan, *, seed: int) -> list[float]:
    """Of each image a number in [0, 1) that decides its side: by its group's name, or by its content."""
    places = []
    for position, key in enumerate(scanned.keys):
        group = dataset.groups[position] if dataset.groups else ""
        name = b"group:" + group.encode(errors="surrogateescape") if group else b"image:" + key
        places.append(_uniform(seed, name))
    return places


def _uniform(seed: int, name: bytes) -> float:
    """A number in [0, 1) that depends on the seed and the name alone."""
    digest = hashlib.blake2b(name, digest_size=8, salt=seed.to_bytes(8, "big", signed=True)).digest()
    return int.from_bytes(digest, "big") / 2**64


def _separate(
    assigned: list[str],
    scanned: Scan,
    duplicates: Sequence[DuplicatePair],
    dataset: Dataset,
    *,
    splits: Sequence[str] = ("val", "test"),
) -> dict[int, str]:
    """Takes out of drawn splits what near-identically stands in a split before them; changes ``assigned``.

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
    for split in splits:
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
            label: int(np.sum((assigned == name) & dataset.has_label(index)))
            for index, label in enumerate(dataset.classes)
        }
        for name in split.names
    }
