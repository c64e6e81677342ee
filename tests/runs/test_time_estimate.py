"""The time that a run takes: expected, and corrected by what is measured."""

from __future__ import annotations

import pytest
from recorded_progress import RecordedProgress

from headstart.runs.time_estimate import Step, Timetable


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def timetable() -> tuple[Timetable, RecordedProgress, Clock]:
    """A timetable of four steps, what it says, and its clock."""
    steps = [
        Step("features", 20.0),
        Step("rung", 100.0, "Fine-tuning", 1000),
        Step("deeper", 300.0, "Fine-tuning", 1000, optional=True),
        Step("report", 10.0),
    ]
    said, clock = RecordedProgress(), Clock()
    return Timetable(steps, said, clock=clock), said, clock


def begin_fine_tuning(plan: Timetable, clock: Clock, *, at: float) -> None:
    """The features take ``at`` seconds."""
    plan.begin("features")
    clock.now = at
    plan.begin("rung")


def fine_tune(plan: Timetable, clock: Clock, *, steps: int, seconds: float) -> None:
    """So many steps of 100 images in so many seconds each."""
    with plan.task("Fine-tuning", 100 * steps) as advance:
        for _ in range(steps):
            clock.now += seconds
            advance(100)


def test_the_time_left_is_the_plan_as_long_as_it_holds() -> None:
    plan, said, clock = timetable()
    assert plan.seconds == plan.left() == 130.0  # what is taken only where it pays is not counted
    begin_fine_tuning(plan, clock, at=20.0)
    assert plan.left() == pytest.approx(110.0)
    fine_tune(plan, clock, steps=10, seconds=10.0)
    assert plan.left() == pytest.approx(10.0)
    plan.begin("report")  # the optional step is passed over
    clock.now += 10.0
    plan.end()
    assert plan.left() == 0.0
    assert said.said == []


def test_a_slower_step_corrects_the_plan_once_and_what_is_left_follows_the_measured_speed() -> None:
    plan, said, clock = timetable()
    begin_fine_tuning(plan, clock, at=20.0)
    fine_tune(plan, clock, steps=7, seconds=30.0)
    assert 90.0 < plan.left() < 130.0  # 300 images at 0.3 s, and a report that takes longer too
    corrections = [text for text in said.said if text.startswith("New time estimate")]
    assert len(corrections) == 1
    assert "instead of 130 s" in corrections[0]
    left = plan.left()
    with plan.task("Other work", 10) as advance:  # whose units are not those of the step
        advance(10)
    assert plan.left() == left


def test_a_quicker_run_corrects_the_plan_too() -> None:
    plan, said, clock = timetable()
    begin_fine_tuning(plan, clock, at=4.0)
    fine_tune(plan, clock, steps=10, seconds=2.0)
    assert any("New time estimate" in text for text in said.said)
    assert plan.left() < 7.0


def test_an_optional_step_counts_once_it_has_begun() -> None:
    plan, said, clock = timetable()
    begin_fine_tuning(plan, clock, at=20.0)
    clock.now = 120.0
    plan.begin("deeper")
    assert plan.left() == pytest.approx(310.0)
    assert "310 s left" in said.said[-1]


def test_tasks_and_sentences_are_handed_on() -> None:
    plan, said, _ = timetable()
    plan.say("a sentence")
    with plan.task("before any step", 2) as advance:
        advance(1)
    assert said.said == ["a sentence"]
