"""Results of a search among candidates, for the run folder, the report and a comparison."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from headstart.evaluation.comparison import Compared


@dataclass(frozen=True)
class CandidateResult:
    """How a candidate did in the last round that it took part in.

    Attributes:
        architecture: of the candidate, and so the following.
        image_size: side of its input in pixels.
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

    def compared(self) -> Compared:
        """As a row of a comparison."""
        name = f"{self.architecture}, {self.image_size} pixels"
        figures = (self.correct, self.images, self.low, self.high, self.log_loss, self.seconds)
        return Compared("backbones", name, *figures, epochs=0, run="")


@dataclass(frozen=True)
class Selection:
    """The outcome of a search.

    Attributes:
        chosen: its position among the candidates, in the order in which they were given.
        results: of all candidates, the best first.
        stopped: why the search ended before the last round; "" if it did not.
    """

    chosen: int
    results: tuple[CandidateResult, ...]
    stopped: str = ""

    def as_json(self) -> dict[str, Any]:
        """A JSON document without paths."""
        return {
            "chosen": self.results[0].architecture,
            "stopped": self.stopped,
            "candidates": [asdict(result) for result in self.results],
        }
