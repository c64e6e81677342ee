"""Results of a search among candidates, for the run folder, the report and a comparison."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from headstart.evaluation.comparison import Compared
from headstart.selection.candidates import Candidate


@dataclass(frozen=True)
class CandidateResult:
    """How a candidate did in the last round that it took part in.

    Attributes:
        architecture: of the candidate, and so the following.
        image_size: side of its input in pixels.
        fit: how an image is fitted into it, see ``data.preprocessing.Fit``.
        source: where the weights come from, in words.
        parameters: number of weights.
        gmacs: multiply-accumulate operations for one image, in billions.
        license: of its weights.
        images: training images that it was evaluated on.
        correct: of them, classified correctly in cross-validation.
        low: lower end of the 95 % Wilson interval of this accuracy, 0-1.
        high: upper end of this interval.
        log_loss: mean over the images, in nats.
        seconds: time that its features and fits took in this search.
        decision: what was decided and why, in words.
    """

    architecture: str
    image_size: int
    fit: str
    source: str
    parameters: int
    gmacs: float
    license: str
    images: int
    correct: int
    low: float
    high: float
    log_loss: float
    seconds: float
    decision: str

    def is_of(self, candidate: Candidate) -> bool:
        """Whether this is how a candidate did."""
        return (self.architecture, self.image_size, self.fit, self.source) == (
            candidate.architecture,
            candidate.image_size,
            candidate.fit,
            candidate.source,
        )

    def compared(self) -> Compared:
        """As a row of a comparison."""
        name = f"{self.architecture}, {self.image_size} pixels" + ("" if self.fit == "auto" else f", {self.fit}")
        figures = (self.correct, self.images, self.low, self.high, self.log_loss, self.seconds)
        return Compared("backbones", name, *figures, epochs=0, run="")


@dataclass(frozen=True)
class Speed:
    """How long one image takes on this machine.

    Attributes:
        reading: seconds to read, decode and resize it.
        forward: seconds of a forward pass.
    """

    reading: float
    forward: float

    @property
    def whole(self) -> float:
        """Seconds to read and featurise it."""
        return self.reading + self.forward


@dataclass(frozen=True)
class Near:
    """A candidate that may be used: as good as the best one, or as the best single network, within noise.

    Attributes:
        candidate: see ``candidates.Candidate``.
        speed: on this machine.
        is_within_noise: whether it is as good as the best of all candidates.
    """

    candidate: Candidate
    speed: Speed
    is_within_noise: bool = True


@dataclass(frozen=True)
class Selection:
    """The outcome of a search.

    Attributes:
        results: of everything that was evaluated, the one that is chosen first; none if there are too few images.
        near: the candidates that may be used, the best first.
        stopped: why the search ended before the last round; "" if it did not.
        skipped: what was not tried for lack of time, each with the time that it would have taken.
    """

    results: tuple[CandidateResult, ...]
    near: tuple[Near, ...]
    stopped: str = ""
    skipped: tuple[str, ...] = ()

    @property
    def log_loss(self) -> float:
        """Of the best candidate in cross-validation; infinite if nothing was compared."""
        return self.results[0].log_loss if self.results else math.inf

    def with_chosen(self, place: int, why: str) -> Selection:
        """The selection with another candidate chosen.

        Args:
            place: of the candidate in ``near``.
            why: the reason, as the end of a sentence about it.
        """
        near, best = self.near[place], self.results[0]
        chosen = near.candidate
        ours = next(result for result in self.results if result.is_of(chosen))
        noise = "within noise, and " if near.is_within_noise else ""
        decision = f"not chosen: {chosen.architecture} is used, {noise or 'because '}{why}"
        others = [replace(best, decision=decision), *self.results[1:]]
        found = replace(ours, decision=f"chosen: {noise.replace(',', ' of the best,')}{why}")
        return replace(self, results=(found, *(result for result in others if not result.is_of(chosen))))

    def as_json(self) -> dict[str, Any]:
        """A JSON document without paths."""
        return {
            "chosen": self.results[0].architecture if self.results else self.near[0].candidate.architecture,
            "stopped": self.stopped,
            "skipped": list(self.skipped),
            "candidates": [asdict(result) for result in self.results],
        }
