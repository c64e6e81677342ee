"""Time estimates of a run: expected from measured speeds, and corrected while the run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from headstart.progress import Progress

CORRECT_FROM = 1.3
"""Factor by which a new estimate of the total time must differ from the reported one to be reported, or its inverse."""

MIN_CORRECTION = 10.0
"""Minimum difference in seconds for a report, and minimum seconds between two reports."""

MIN_SHARE = 0.05
"""Fraction of a step's work after which its measured speed replaces the estimate."""

DRIFT = (0.25, 8.0)
"""Minimum and maximum of the factor (measured by expected time) applied to later steps."""


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Attributes:
        name: name of the step.
        seconds: expected duration, from measured speeds.
        task: name of the ``Progress`` tasks that measure the progress of the step; "" for none.
        units: total number of units of those tasks.
        optional: whether the step runs only if the step before it improved the model.
    """

    name: str
    seconds: float
    task: str = ""
    units: int = 0
    optional: bool = False


@dataclass
class _Measured:
    """What was measured of a step: units done, seconds spent in its tasks, and seconds in all once it has ended."""

    done: int = 0
    busy: float = 0.0
    spent: float | None = None


@final
class Timetable:
    """The steps of a run and the time left; a ``Progress`` that measures tasks and passes them on.

    Args:
        steps: in their order.
        progress: receives tasks, messages and corrections.
        clock: monotonic clock, in seconds.
    """

    def __init__(
        self, steps: Sequence[Step], progress: Progress, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.steps, self._progress, self._clock = tuple(steps), progress, clock
        self._measured = [_Measured() for _ in self.steps]
        self._begun = self._step_begun = self._reported_at = clock()
        self._place = -1
        self._reported = self.seconds

    @property
    def seconds(self) -> float:
        """Expected for all steps that are not optional."""
        return sum(step.seconds for step in self.steps if not step.optional)

    def begin(self, name: str) -> None:
        """Ends the current step and begins another; steps between them are skipped."""
        self._end_step()
        if self._place < 0:
            self._begun = self._reported_at = self._clock()
        self._place = next(place for place, step in enumerate(self.steps) if step.name == name)
        self._step_begun = self._clock()
        self._correct()

    def end(self) -> None:
        """Ends the last step."""
        self._end_step()
        self._place = len(self.steps)

    def left(self) -> float:
        """Estimated seconds left; optional steps count once they have begun."""
        drift = self._drift()
        later = sum(step.seconds * drift for step in self.steps[self._place + 1 :] if not step.optional)
        return later + self._left_of_step(drift)

    def say(self, text: str) -> None:
        """See ``Progress``."""
        self._progress.say(text)

    @contextmanager
    def task(self, name: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """See ``Progress``; units of a step's task measure its speed."""
        place = self._current()
        is_measured = place is not None and self.steps[place].task == name
        last = self._clock()
        with self._progress.task(name, total, unit) as advance:

            def count(units: int) -> None:
                nonlocal last
                advance(units)
                if is_measured and place is not None:
                    now, measured = self._clock(), self._measured[place]
                    measured.done += units
                    measured.busy += now - last
                    last = now
                self._correct()

            yield count

    def _current(self) -> int | None:
        return self._place if 0 <= self._place < len(self.steps) else None

    def _end_step(self) -> None:
        place = self._current()
        if place is not None:
            self._measured[place].spent = self._clock() - self._step_begun

    def _has_speed(self, place: int) -> bool:
        """Whether enough of a step was measured to go by its speed."""
        step, measured = self.steps[place], self._measured[place]
        return bool(step.units) and measured.done >= MIN_SHARE * step.units and measured.busy > 0

    def _left_of_step(self, drift: float) -> float:
        place = self._current()
        if place is None:
            return 0.0
        step, measured = self.steps[place], self._measured[place]
        if self._has_speed(place):
            return max(0, step.units - measured.done) * measured.busy / measured.done
        return max(0.0, step.seconds * drift - (self._clock() - self._step_begun))

    def _drift(self) -> float:
        """Factor by which later steps are expected to take longer than planned.

        Each step has a fixed cost, so the estimates of later steps have the same weight as the times of earlier steps.
        """
        pairs = zip(self.steps, self._measured, strict=True)
        taken = [(measured.spent, step.seconds) for step, measured in pairs if measured.spent is not None]
        place = self._current()
        if place is not None and self._has_speed(place):
            whole = self._clock() - self._step_begun + self._left_of_step(1.0)
            taken.append((whole, self.steps[place].seconds))
        later = sum(step.seconds for step in self.steps[max(0, self._place) :] if not step.optional)
        weight = max(later, MIN_CORRECTION)
        actual = weight + sum(spent for spent, _ in taken)
        expected = weight + sum(seconds for _, seconds in taken)
        return min(max(actual / expected, DRIFT[0]), DRIFT[1])

    def _correct(self) -> None:
        """Reports a new estimate where the reported one no longer holds."""
        now = self._clock()
        if self._place < 0 or now - self._reported_at < MIN_CORRECTION:
            return
        left = self.left()
        whole = now - self._begun + left
        factor = whole / max(self._reported, 1e-9)
        if (factor > CORRECT_FROM or factor < 1 / CORRECT_FROM) and abs(whole - self._reported) > MIN_CORRECTION:
            before, self._reported, self._reported_at = self._reported, whole, now
            self._progress.say(
                f"New time estimate: about {left:.0f} s left, {whole:.0f} s in total instead of {before:.0f} s."
            )
