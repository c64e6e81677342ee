"""The time that a run takes: expected, and corrected by what is measured."""

from __future__ import annotations

import pytest

from headstart.progress import SilentProgress
from headstart.runs.time_estimate import Step, Timetable


class Saying(SilentProgress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def timetable(said: Saying, clock: Clock) -> Timetable:
    steps = [
        Step("features", 20.0),
        Step("rung", 100.0, "Fine-tuning", 1000),
        Step("deeper", 300.0, "Fine-tuning", 1000, optional=True),
        Step("report", 10.0),
    ]
    return Timetable(steps, said, clock=clock)


def test_the_time_left_is_the_plan_as_long_as_it_holds() -> None:
    said, clock = Saying(), Clock()
    plan = timetable(said, clock)
    assert plan.seconds == plan.left() == 130.0  # what is taken only where it pays is not counted
    plan.begin("features")
    clock.now = 20.0
    plan.begin("rung")
    assert plan.left() == pytest.approx(110.0)
    with plan.task("Fine-tuning", 1000) as advance:
        for _ in range(10):
            clock.now += 10.0
            advance(100)
    assert plan.left() == pytest.approx(10.0)
    plan.begin("report")  # the optional step is passed over
    clock.now += 10.0
    plan.end()
    assert plan.left() == 0.0
    assert said.said == []


def test_a_slower_step_corrects_the_plan_once_and_what_is_left_follows_the_measured_speed() -> None:
    said, clock = Saying(), Clock()
    plan = timetable(said, clock)
    plan.begin("features")
    clock.now = 20.0
    plan.begin("rung")
    with plan.task("Fine-tuning", 700) as advance:
        for _ in range(7):
            clock.now += 30.0
            advance(100)
    assert 90.0 < plan.left() < 130.0  # 300 images at 0.3 s, and a report that takes longer too
    corrections = [text for text in said.said if text.startswith("New time estimate")]
    assert len(corrections) == 1
    assert "instead of 130 s" in corrections[0]
    left = plan.left()
    with plan.task("Other work", 10) as advance:  # whose units are not those of the step
        advance(10)
    assert plan.left() == left


def test_a_quicker_run_corrects_the_plan_too() -> None:
    said, clock = Saying(), Clock()
    plan = timetable(said, clock)
    plan.begin("features")
    clock.now = 4.0
    plan.begin("rung")
    with plan.task("Fine-tuning", 1000) as advance:
        for _ in range(10):
            clock.now += 2.0
            advance(100)
    assert any("New time estimate" in text for text in said.said)
    assert plan.left() < 7.0


def test_an_optional_step_counts_once_it_has_begun() -> None:
    said, clock = Saying(), Clock()
    plan = timetable(said, clock)
    plan.begin("features")
    clock.now = 20.0
    plan.begin("rung")
    clock.now = 120.0
    plan.begin("deeper")
    assert plan.left() == pytest.approx(310.0)
    assert "310 s left" in said.said[-1]


def test_tasks_and_sentences_are_handed_on() -> None:
    said, clock = Saying(), Clock()
    plan = timetable(said, clock)
    plan.say("a sentence")
    with plan.task("before any step", 2) as advance:
        advance(1)
    assert said.said == ["a sentence"]
