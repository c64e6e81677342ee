"""How long the steps of a run take: expected from measured speeds, and corrected while the run works."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from headstart.progress import Progress

CORRECT_FROM = 1.3
"""A new estimate of the whole time is told where it is so many times the one told before, or less than its inverse."""

WORTH_TELLING = 10.0
"""Seconds by which it must differ as well, and seconds between two corrections at least."""

SEEN = 0.05
"""Share of a step's work from which its own speed counts instead of the estimate."""

DRIFT = (0.25, 8.0)
"""Least and largest factor between what steps took and what was expected that is applied to later ones."""


@dataclass
class Step:
    """One step of a run.

    Attributes:
        name: of the step.
        seconds: expected, from measured speeds.
        task: name of the ``Progress`` tasks whose units measure how far it is; "" where nothing does.
        units: of these tasks, in all.
        optional: whether it is taken only where the one before it pays.
        done: units done.
        busy: seconds spent in these tasks.
        spent: seconds that it took, once it has ended.
    """

    name: str
    seconds: float
    task: str = ""
    units: int = 0
    optional: bool = False
    done: int = 0
    busy: float = 0.0
    spent: float | None = None


@final
class Timetable:
    """The steps of a run and the time left; a ``Progress`` that notes how fast the work goes, and hands it on.

    Args:
        steps: in their order.
        progress: told of each task, and of corrections.
        clock: seconds of a clock that never goes back.
    """

    def __init__(
        self, steps: Sequence[Step], progress: Progress, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.steps, self._progress, self._clock = list(steps), progress, clock
        self._begun = self._step_begun = self._told_at = clock()
        self._place = -1
        self._told = self.seconds

    @property
    def seconds(self) -> float:
        """Expected for all steps that are surely taken."""
        return sum(step.seconds for step in self.steps if not step.optional)

    def begin(self, name: str) -> None:
        """Ends the step under way and begins another; steps between them are not taken."""
        self._end()
        if self._place < 0:
            self._begun = self._told_at = self._clock()
        self._place = next(place for place, step in enumerate(self.steps) if step.name == name)
        self._step_begun = self._clock()
        self._correct()

    def end(self) -> None:
        """Ends the last step."""
        self._end()
        self._place = len(self.steps)

    def left(self) -> float:
        """Seconds that are left, as far as can be told; optional steps count once they have begun."""
        drift = self._drift()
        later = sum(step.seconds * drift for step in self.steps[self._place + 1 :] if not step.optional)
        return later + self._left_of_step(drift)

    def say(self, text: str) -> None:
        """See ``Progress``."""
        self._progress.say(text)

    @contextmanager
    def task(self, name: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """See ``Progress``; units of a step's own task tell how far it is."""
        step = self._step()
        counted = step is not None and step.task == name
        last = self._clock()
        with self._progress.task(name, total, unit) as advance:

            def count(units: int) -> None:
                nonlocal last
                advance(units)
                if counted and step is not None:
                    now = self._clock()
                    step.done, step.busy, last = step.done + units, step.busy + now - last, now
                self._correct()

            yield count

    def _step(self) -> Step | None:
        return self.steps[self._place] if 0 <= self._place < len(self.steps) else None

    def _end(self) -> None:
        step = self._step()
        if step is not None:
            step.spent = self._clock() - self._step_begun

    def _left_of_step(self, drift: float) -> float:
        step = self._step()
        if step is None:
            return 0.0
        if step.units and step.done >= SEEN * step.units and step.busy > 0:
            return max(0, step.units - step.done) * step.busy / step.done
        return max(0.0, step.seconds * drift - (self._clock() - self._step_begun))

    def _drift(self) -> float:
        """How many times longer than expected later steps will take.

        Each step has its own fixed costs, so the estimates of later ones weigh as much as what earlier ones took.
        """
        ended = [step for step in self.steps if step.spent is not None]
        taken = [(step.spent or 0.0, step.seconds) for step in ended]
        step = self._step()
        if step is not None and step.units and step.done >= SEEN * step.units and step.busy > 0:
            taken.append((self._clock() - self._step_begun + self._left_of_step(1.0), step.seconds))
        later = sum(step.seconds for step in self.steps[max(0, self._place) :] if not step.optional)
        trust = max(later, WORTH_TELLING)
        actual, expected = (trust + sum(pair[i] for pair in taken) for i in (0, 1))
        return min(max(actual / expected, DRIFT[0]), DRIFT[1])

    def _correct(self) -> None:
        """Tells a new estimate where the one told before no longer holds."""
        now = self._clock()
        if self._place < 0 or now - self._told_at < WORTH_TELLING:
            return
        left = self.left()
        whole = now - self._begun + left
        factor = whole / max(self._told, 1e-9)
        if (factor > CORRECT_FROM or factor < 1 / CORRECT_FROM) and abs(whole - self._told) > WORTH_TELLING:
            was, self._told, self._told_at = self._told, whole, now
            self._progress.say(
                f"Plan corrected by the speed so far: about {left:.0f} s left, {whole:.0f} s in all instead of "
                f"{was:.0f} s."
            )
