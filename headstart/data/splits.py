"""Splits into train, val and test: given with the data, or drawn by content hash.

A drawn split assigns each image by a hash of the seed and the image's content (or the name of its group) and nothing
else, so that adding images never moves an old one. The shares hold within each class on average only, as for any
independent draw.

Near-identical images could be drawn into different splits, and the score would be too high. Moving one of them would
break the first rule, so one is excluded instead: train keeps its images, then val, then test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from headstart.data.dataset import Dataset
from headstart.data.duplicates import DuplicatePair
from headstart.data.image_table import SPLITS
from headstart.data.scan import Scan
from headstart.errors import DataError, OptionError

UNUSED = ""
"""The split of an excluded image."""

DEFAULT_SHARE = 0.15
"""Default share of val, and of test."""

MIN_DRAWN_VAL = 100
"""Expected validation images below which none are drawn from a given train, unless a share is given. So few would
choose settings badly, and training needs them; cross-validation takes their place."""


@dataclass(frozen=True)
class SplitShares:
    """Shares of the images in a drawn split, each in [0, 1); train gets the rest.

    Attributes:
        val: share of validation images, which choose settings and calibrate. None: ``DEFAULT_SHARE``; with a given
            train, only if that is at least ``MIN_DRAWN_VAL`` images.
        test: share of test images, which score the finished classifier once. None: ``DEFAULT_SHARE``.

    Raises:
        OptionError: val is not above 0, test is negative, or their sum is 1 or more.
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
    """The split of each image.

    Attributes:
        assigned: N of "train", "val", "test", or "" for an excluded image.
        given: whether the data came with train, and with val or test.
        left_out: position -> why a readable image is excluded.
        leaks: near-identical pairs divided between two splits; only given splits can have any.
        val_drawn: whether val was drawn from the given train.
    """

    assigned: tuple[str, ...]
    given: bool
    left_out: dict[int, str]
    leaks: tuple[DuplicatePair, ...]
    val_drawn: bool = False

    @property
    def origin(self) -> str:
        """Where the split comes from, in words, such as "as given with the data"."""
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
        """Split name -> number of images, in the order train, val, test."""
        return {name: self.assigned.count(name) for name in self.names}


@dataclass(frozen=True)
class SplitInput:
    """What a split rule decides from; all fields describe the same N images.

    Attributes:
        dataset: with the given splits and groups, if any.
        scanned: which images are usable.
        duplicates: pairs of positions.
        draws: N numbers in [0, 1), each from the seed and the image's content or group.
        shares: of val and test.
    """

    dataset: Dataset
    scanned: Scan
    duplicates: Sequence[DuplicatePair]
    draws: Sequence[float]
    shares: SplitShares


Rule = Callable[[SplitInput], Split | None]


def make_split(
    dataset: Dataset,
    scanned: Scan,
    duplicates: Sequence[DuplicatePair],
    *,
    seed: int = 0,
    shares: SplitShares | None = None,
) -> Split:
    """Splits a data set by the first rule of ``RULES`` that applies; unreadable images are in no split.

    Args:
        dataset: N images.
        scanned: facts of the same N images.
        duplicates: of the same scan.
        seed: of a drawn split.
        shares: of a drawn split; default: 15 % val and 15 % test.

    Raises:
        DataError: the data come with splits, but without train.
        OptionError: see ``check_shares``.
    """
    shares = shares or SplitShares()
    check_shares(dataset, shares)
    if dataset.splits is not None and "train" not in dataset.splits:
        given = ", ".join(sorted(set(dataset.splits)))
        raise DataError(
            f"{dataset.root}: found the splits {given}, but no split named train. Rename one of them to train."
        )
    source = SplitInput(dataset, scanned, duplicates, _draws(dataset, scanned, seed=seed), shares)
    return next(split for rule in RULES if (split := rule(source)) is not None)


def _drawn(source: SplitInput) -> Split | None:
    """Train, val and test drawn by content: for data without splits, or with train alone."""
    given = source.dataset.splits
    if given is not None and set(given) != {"train"}:
        return None
    assigned = _usable_only(source.scanned, [drawn_split(draw, source.shares) for draw in source.draws])
    excluded = _separate(assigned, source)
    return Split(tuple(assigned), given=False, left_out=excluded, leaks=())


def _given_without_val(source: SplitInput) -> Split | None:
    """Train and test as given, val drawn from train: if that gives enough images, or if a share is asked for."""
    if "val" in (source.dataset.splits or ()):
        return None
    assigned = _usable_only(source.scanned, source.dataset.splits or ())
    if not draws_val(assigned.count("train"), source.shares):
        return None
    pairs = zip(assigned, source.draws, strict=True)
    assigned = ["val" if split == "train" and draw < source.shares.val_share else split for split, draw in pairs]
    excluded = _separate(assigned, source, splits=("val",))
    return Split(tuple(assigned), True, excluded, _leaks(assigned, source.duplicates), val_drawn=True)


def _given(source: SplitInput) -> Split | None:
    """The splits as given with the data."""
    assigned = _usable_only(source.scanned, source.dataset.splits or ())
    return Split(tuple(assigned), True, {}, _leaks(assigned, source.duplicates))


RULES: tuple[Rule, ...] = (_drawn, _given_without_val, _given)
"""Registry of split rules: each returns None where it does not apply."""


def drawn_split(draw: float, shares: SplitShares) -> str:
    """The split of an image of data without splits, see ``draw``."""
    if draw < shares.test_share:
        return "test"
    return "val" if draw < shares.test_share + shares.val_share else "train"


def draws_val(num_train: int, shares: SplitShares) -> bool:
    """Whether val is drawn from a given train: if that gives enough images, or if a share is asked for."""
    return shares.val is not None or shares.val_share * num_train >= MIN_DRAWN_VAL


def check_shares(dataset: Dataset, shares: SplitShares) -> None:
    """Checks that no share is given for a split that the data come with; see ``check_given_shares``."""
    check_given_shares(dataset.root, set(dataset.splits or ()), shares)


def check_given_shares(root: object, splits: Collection[str], shares: SplitShares) -> None:
    """Checks that no share is given for a split that the data come with.

    Args:
        root: the data, for the message.
        splits: that they come with.
        shares: as given.

    Raises:
        OptionError: a share of val for data with val, or a share of test for data with splits.
    """
    given = [name for name in SPLITS if name in splits]
    if "train" not in given:
        return  # a drawn split; or data without train, which is reported as such
    reason = f"{root} already has the splits ({', '.join(given)}); leave the option out."
    if shares.val is not None and "val" in given:
        raise OptionError(f"val {shares.val}: {reason}")
    if shares.test is not None and len(given) > 1:
        raise OptionError(f"test {shares.test}: {reason}")


def _usable_only(scanned: Scan, splits: Sequence[str]) -> list[str]:
    return [split if ok else UNUSED for split, ok in zip(splits, scanned.usable, strict=True)]


def _leaks(assigned: Sequence[str], duplicates: Sequence[DuplicatePair]) -> tuple[DuplicatePair, ...]:
    """Near-identical pairs that are divided between two splits."""
    return tuple(pair for pair in duplicates if _divided(assigned[pair.first], assigned[pair.second]))


def _divided(one: str, two: str) -> bool:
    return one != two and UNUSED not in (one, two)


def _draws(dataset: Dataset, scanned: Scan, *, seed: int) -> list[float]:
    """For each image a number in [0, 1): from the name of its group, or from its content."""
    draws = []
    for position, key in enumerate(scanned.keys):
        draws.append(draw(key, dataset.groups[position] if dataset.groups else "", seed=seed))
    return draws


def draw(key: bytes, group: str = "", *, seed: int) -> float:
    """A number in [0, 1) that depends on the seed and an image's content, or the name of its group, and nothing else.

    Args:
        key: content hash of the image.
        group: name of its group; "" for none.
        seed: of the split.
    """
    name = b"group:" + group.encode(errors="surrogateescape") if group else b"image:" + key
    digest = hashlib.blake2b(name, digest_size=8, salt=seed.to_bytes(8, "big", signed=True)).digest()
    return int.from_bytes(digest, "big") / 2**64


def _separate(assigned: list[str], source: SplitInput, *, splits: Sequence[str] = ("val", "test")) -> dict[int, str]:
    """Excludes images of drawn splits that are near-identical to an image of an earlier split; changes ``assigned``.

    An image in the same split, or one that is excluded itself, excludes no other. Byte-identical files are drawn into
    the same split unless their groups differ.

    Returns:
        Position -> reason.
    """
    scanned, dataset = source.scanned, source.dataset
    places: dict[bytes, list[int]] = {}
    alike: dict[bytes, set[bytes]] = {}
    for position in np.flatnonzero(scanned.usable).tolist():
        places.setdefault(scanned.keys[position], []).append(position)
    for pair in source.duplicates:
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
    """Split name -> class name -> number of images; a multi-label image counts for each of its labels."""
    assigned = np.array(split.assigned)
    return {
        name: {
            label: int(np.sum((assigned == name) & dataset.has_label(index)))
            for index, label in enumerate(dataset.classes)
        }
        for name in split.names
    }
