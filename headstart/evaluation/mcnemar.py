"""Two classifiers on the same images: where they differ, and whether that is more than chance."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

Z = 1.959964
"""Of a normal distribution, for 95 %."""


@dataclass(frozen=True)
class Paired:
    """Two classifiers, image by image.

    Attributes:
        name: of the images.
        count: of them.
        both: images that both have right.
        first: that the first alone has right.
        second: that the second alone has right.
        difference: accuracy of the second less that of the first, -1 to 1.
        low: lower end of its 95 % interval.
        high: its upper end.
        p: chance that two classifiers that are equally good differ as much (McNemar's test, exact, two sides).
    """

    name: str
    count: int
    both: int
    first: int
    second: int
    difference: float
    low: float
    high: float
    p: float

    @property
    def sentence(self) -> str:
        """In words: "val: A right in 507, B in 519 of 550; ..."."""
        won = "no more than chance would give" if self.p >= 0.05 else "more than chance would give"
        return (
            f"{self.name}: A right in {self.both + self.first:,}, B in {self.both + self.second:,} of {self.count:,}; "
            f"only A in {self.first:,}, only B in {self.second:,}: B - A = {100 * self.difference:+.1f} points "
            f"(95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f}), p = {self.p:.2g}: {won}"
        )

    def as_json(self) -> dict[str, Any]:
        """A JSON document of all that is here."""
        return asdict(self)


def paired(name: str, first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> Paired:
    """Compares two classifiers.

    Args:
        name: of the images.
        first: (N,) whether the first is right on each.
        second: (N,) likewise.

    Source: McNemar, Psychometrika 1947; the interval is Bonett and Price's (Statistics in Medicine 2012), which holds
    for few differences as well.
    """
    count = len(first)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differ = only_first + only_second
    p = float(binomtest(only_second, differ, 0.5).pvalue) if differ else 1.0
    one, two = (only_first + 1) / (count + 2), (only_second + 1) / (count + 2)
    half = Z * float(np.sqrt((one + two - (two - one) ** 2) / (count + 2)))
    return Paired(
        name,
        count,
        int((first & second).sum()),
        only_first,
        only_second,
        (only_second - only_first) / max(1, count),
        max(-1.0, two - one - half),
        min(1.0, two - one + half),
        p,
    )
