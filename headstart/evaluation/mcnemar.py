"""McNemar's test: compares two classifiers on the same images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.evaluation.metrics import Z_95
from headstart.figures import count_text
from headstart.import_effects import import_quietly


@dataclass(frozen=True)
class Paired:
    """Paired comparison of classifiers A (the first) and B (the second).

    Attributes:
        name: of the evaluated set.
        count: number of images.
        both: images that both predict correctly.
        first: images that only A predicts correctly.
        second: images that only B predicts correctly.
        difference: accuracy of B minus accuracy of A, -1 to 1.
        low: lower end of the 95 % interval of the difference.
        high: upper end of that interval.
        p: p-value of McNemar's exact two-sided test.
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
        """In words: "val accuracy: A 92.2 % (507/550), B 94.4 % (519/550); B - A = +2.2 points, ..."."""
        verdict = "not significant" if self.p >= 0.05 else "significant"
        first, second = self.both + self.first, self.both + self.second
        return (
            f"{self.name} accuracy: A {count_text(first, self.count)}, B {count_text(second, self.count)}; only A "
            f"correct on {self.first:,}, only B on {self.second:,}; B - A = {100 * self.difference:+.1f} points, 95 % "
            f"CI {100 * self.low:+.1f} to {100 * self.high:+.1f}, p = {self.p:.2g}: {verdict}"
        )

    def as_json(self) -> dict[str, Any]:
        """The attributes as a JSON document."""
        return asdict(self)


def paired(name: str, first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> Paired:
    """Compares two classifiers image by image.

    Args:
        name: of the evaluated set.
        first: (N,) whether A predicts each image correctly.
        second: (N,) likewise for B.

    Source: McNemar, Psychometrika 1947; the interval is Bonett and Price's (Statistics in Medicine 2012), which also
    holds for few differences.
    """
    binomtest = import_quietly("scipy.stats").binomtest  # a second of CPU time that loading a model does not need

    count = len(first)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differ = only_first + only_second
    p = float(binomtest(only_second, differ, 0.5).pvalue) if differ else 1.0
    one, two = (only_first + 1) / (count + 2), (only_second + 1) / (count + 2)
    half = Z_95 * float(np.sqrt((one + two - (two - one) ** 2) / (count + 2)))
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
