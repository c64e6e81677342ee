"""Stacks: near-duplicates of one image, which are shown once and labelled together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from headstart.data.duplicates import DuplicatePair


@final
@dataclass(frozen=True)
class Stacks:
    """N images in stacks.

    Attributes:
        first: (N,) int64: number of the first image of the stack of each image; an image without near-duplicates is
            the first of a stack of one.
        others: first image -> the other images of its stack.
    """

    first: npt.NDArray[np.int64]
    others: dict[int, list[int]]

    @classmethod
    def of_pairs(cls, count: int, pairs: Sequence[DuplicatePair]) -> Stacks:
        """Each image that is in no stack yet becomes the first of one, with its near-duplicates in no stack yet.

        All images of a stack are thereby near-duplicates of its first image: a chain of slowly changing images, such as
        frames of a video, is not one stack.

        Args:
            count: N.
            pairs: in order of position.
        """
        first = np.arange(count)
        near: dict[int, list[int]] = {}
        for pair in pairs:
            near.setdefault(pair.first, []).append(pair.second)
        taken: set[int] = set()
        others: dict[int, list[int]] = {}
        for start in sorted(near):
            if start not in taken and (found := [image for image in near[start] if image not in taken]):
                others[start] = found
                taken.update(found)
                first[found] = start
        return cls(first, others)

    def members(self, image: int) -> list[int]:
        """All images of the stack of an image; the image alone if it was listed later."""
        if image >= len(self.first):
            return [image]
        start = int(self.first[image])
        return [start, *self.others.get(start, [])]

    def size(self, image: int) -> int:
        """Number of images in the stack of an image."""
        return len(self.members(image)) if image < len(self.first) else 1

    def first_images(self, count: int) -> list[int]:
        """Images that are shown among the first ``count``; those that were listed later are shown too."""
        known = min(count, len(self.first))
        shown = np.flatnonzero(self.first[:known] == np.arange(known))
        return [*shown.tolist(), *range(known, count)]

    def is_first(self, image: int) -> bool:
        """Whether an image is shown."""
        return image >= len(self.first) or int(self.first[image]) == image
