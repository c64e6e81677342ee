"""The time within which a search has to end, so that enough is left to fine-tune what it chooses."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from headstart.selection.results import Speed

TAKEN = 0.85
"""Share of their estimate that runs take whose engines were not measured yet; the plan of the steps decides later."""


@dataclass
class TimeLimit:
    """When a search has to end.

    Fine-tuning gains more than the choice of a backbone, so most of the time is kept for it.

    Attributes:
        ends: on the monotonic clock, in seconds: the end of the whole run.
        to_fine_tune: speed of a backbone -> seconds that the shortest run that fine-tunes it takes after the search.
        to_fit: the same where nothing is fine-tuned.
        deepest: the same of deep fine-tuning.
        most_kept: seconds that are kept for a deeper fine-tuning than the shortest, at most.
        fine_tunes: whether there is time for fine-tuning.
        gain: how many times as fast as in the search a forward pass is in fine-tuning, which may compute in bfloat16.
    """

    ends: float
    to_fine_tune: Callable[[Speed], float]
    to_fit: Callable[[Speed], float]
    deepest: Callable[[Speed], float]
    most_kept: float = 0.0
    fine_tunes: bool = True
    gain: float = 1.0

    def begin(self, speed: Speed) -> None:
        """Determines whether a backbone of that speed can be fine-tuned; if not, no time is kept for it."""
        self.fine_tunes = time.monotonic() + self.to_fine_tune(self._gained(speed)) <= self.ends

    def needed_after(self, speed: Speed) -> float:
        """Seconds that are kept for the run with a backbone after the search."""
        speed = self._gained(speed)
        if not self.fine_tunes:
            return self.to_fit(speed)
        return max(self.to_fine_tune(speed), min(self.deepest(speed), self.most_kept))

    def _gained(self, speed: Speed) -> Speed:
        return Speed(speed.reading, speed.forward / self.gain)

    def allows(self, seconds: float, speed: Speed, *, share: float = TAKEN) -> bool:
        """Whether something that takes some seconds fits, with the run of a backbone of that speed after it.

        Args:
            seconds: that it takes.
            speed: of the backbone.
            share: of the estimated time of the run that is kept for it.
        """
        return time.monotonic() + seconds + share * self.needed_after(speed) <= self.ends
