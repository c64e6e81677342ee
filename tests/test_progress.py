"""What a long task shows while it works."""

from __future__ import annotations

import io
import re
import sys
import threading
import time

import pytest

from headstart import progress
from headstart.progress import CLEAR_LINE, TerminalProgress, _Task, call_repeatedly


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHOWN_AFTER", 0.02)
    monkeypatch.setattr(progress, "REDRAW_EVERY", 0.01)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.1)


def waited_for(stream: io.StringIO, text: str) -> str:
    """What was written, once ``text`` is in it."""
    ends = time.monotonic() + 10.0
    while text not in stream.getvalue() and time.monotonic() < ends:
        time.sleep(0.005)
    return stream.getvalue()


def test_a_task_without_updates_writes_lines_without_a_terminal(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    with TerminalProgress().task("Drawing the map", 1, "steps"):
        assert "Drawing the map: 0 s" in waited_for(written, "Drawing the map")
        assert "steps" not in written.getvalue()


def test_lines_show_progress_at_long_intervals(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    with TerminalProgress().task("Fine-tuning", 1200) as advance:
        advance(300)
        text = waited_for(written, "left")
        assert "Fine-tuning: 300 of 1,200 images" in text
        for _ in range(20):
            advance(1)
        assert written.getvalue().count("\n") <= 3


def test_a_short_task_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    with TerminalProgress().task("Reading", 10) as advance:
        advance(10)
    assert written.getvalue() == ""


def test_the_innermost_of_nested_tasks_is_shown(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    shown = TerminalProgress()
    with shown.task("outer", 2), shown.task("inner", 2):
        assert "outer" not in waited_for(written, "inner")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar_appears_without_updates_and_is_removed_at_the_end(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Terminal()
    monkeypatch.setattr(sys, "stderr", written)
    shown = TerminalProgress()
    with shown.task("outer", 1, "steps"):
        waited_for(written, "outer, 0 s")
        with shown.task("inner", 10) as advance:
            advance(5)
            assert "inner [###############---------------] 5/10, " in waited_for(written, "inner")
            shown.say("A message.")
    assert f"{CLEAR_LINE}A message.\n" in written.getvalue()
    assert written.getvalue().endswith((CLEAR_LINE, "A message.\n"))


@pytest.mark.parametrize("width", [20, 60, 200])
def test_a_bar_fits_into_one_line_of_the_terminal(width: int) -> None:
    task = _Task("Fine-tuning from blocks.6", 1200, "images", time.monotonic() - 12, done=320)
    assert len(task.bar(width)) < width
    if width == 200:
        assert re.fullmatch(
            r"Fine-tuning from blocks\.6 \[#{8}-{22}\] 320/1,200, 27 images/s, 12 s, about 33 s left", task.bar(width)
        )


def test_heartbeats_end_with_the_block() -> None:
    beats: list[float] = []
    with call_repeatedly(lambda: beats.append(time.monotonic()), 0.005):
        ends = time.monotonic() + 10.0
        while len(beats) < 3 and time.monotonic() < ends:
            time.sleep(0.005)
    count = len(beats)
    assert count >= 3
    time.sleep(0.03)
    assert len(beats) == count
    assert not [thread for thread in threading.enumerate() if thread.name == "headstart-progress"]
