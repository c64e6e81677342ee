"""The event stream of a run, and what consumes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headstart.errors import WriteError
from headstart.runs import events
from headstart.runs.events import (
    EpochEnded,
    Event,
    EventData,
    EventStream,
    Message,
    PlanLine,
    ProgressConsumer,
    RunFinished,
    RungJudged,
    StepDone,
    Validated,
    throttled,
)
from headstart.runs.log import RunLog, log_size, read_log
from headstart.runs.tensorboard import TensorBoardWriter


class Recorded:
    """A ``Progress`` that notes every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def say(self, text: str) -> None:
        self.calls.append(("say", text))

    @contextmanager
    def task(self, name: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        self.calls.append(("begin", name, total, unit))
        yield lambda count: self.calls.append(("advance", name, count))
        self.calls.append(("end", name))


def test_consumers_receive_every_event_in_order_and_the_first_one_first() -> None:
    seen: list[tuple[str, str]] = []
    stream = EventStream([lambda event: seen.append(("second", event.kind))])
    stream.add(lambda event: seen.append(("third", event.kind)))
    stream.add(lambda event: seen.append(("first", event.kind)), first=True)
    stream.emit(PlanLine("a line"))
    stream.say("a sentence")
    assert seen == [(who, kind) for kind in ("plan", "message") for who in ("first", "second", "third")]


def test_a_progress_receives_messages_and_nested_tasks() -> None:
    shown = Recorded()
    stream = EventStream([ProgressConsumer(shown)])
    with stream.task("outer", 10) as outer:
        outer(4)
        with stream.task("inner", 2, "steps") as inner:
            inner(1)
            stream.say("between")
            inner(1)
        outer(6)
    assert shown.calls == [
        ("begin", "outer", 10, "images"),
        ("advance", "outer", 4),
        ("begin", "inner", 2, "steps"),
        ("advance", "inner", 1),
        ("say", "between"),
        ("advance", "inner", 1),
        ("end", "inner"),
        ("advance", "outer", 6),
        ("end", "outer"),
    ]


def test_a_task_that_fails_ends_for_every_consumer() -> None:
    shown, seen = Recorded(), list[Event]()
    stream = EventStream([ProgressConsumer(shown), seen.append])
    with pytest.raises(RuntimeError), stream.task("work", 10):
        raise RuntimeError
    assert shown.calls == [("begin", "work", 10, "images"), ("end", "work")]
    assert [(event["began"], event["ended"]) for event in seen] == [(True, False), (False, True)]


def test_progress_has_the_time_left_once_there_is_an_estimate() -> None:
    seen: list[Event] = []
    stream = EventStream([seen.append])
    with stream.task("work", 10) as advance:
        stream.use_estimate(lambda: 42.0)
        advance(5)
    assert [event["left"] for event in seen] == [None, 42.0, 42.0]


def test_a_listener_is_not_flooded_with_progress_and_misses_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Event] = []
    stream = EventStream([throttled(seen.append)])
    with stream.task("work", 1000) as advance:
        for _ in range(1000):
            advance(1)
        stream.say("a sentence")
    assert [event.kind for event in seen].count("message") == 1
    assert seen[0]["began"]
    assert seen[-1]["ended"]
    assert seen[-1]["done"] == 1000
    assert len(seen) < 20
    monkeypatch.setattr(events, "THROTTLE", 0.0)
    with stream.task("work", 10) as advance:
        for _ in range(10):
            advance(1)
    assert [event["done"] for event in seen[-12:]] == [0, *range(1, 11), 10]


def test_every_kind_of_event_has_one_class() -> None:
    kinds = [data.kind for data in EventData.__subclasses__()]
    assert len(kinds) == len(set(kinds))
    assert all(f'"{kind}"' in (Event.__doc__ or "") for kind in kinds)


def test_the_log_keeps_events_as_lines_but_for_what_is_fleeting(tmp_path: Path) -> None:
    stream = EventStream([RunLog(tmp_path)])
    stream.emit(EpochEnded("probe", 0, 0.5, 0.75))
    size = log_size(tmp_path)
    stream.emit(StepDone("probe", {"step": 1}))
    stream.emit(Message("a sentence"))
    with stream.task("work", 1):
        pass
    assert log_size(tmp_path) == size
    stream.emit(RungJudged({"name": "probe", "correct": 3}))
    first, second = read_log(tmp_path)
    assert (first["event"], first["stage"], first["accuracy"]) == ("epoch", "probe", 0.75)
    assert {name: second[name] for name in ("event", "name", "correct")} == {
        "event": "rung",
        "name": "probe",
        "correct": 3,
    }
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [first, second]
    RunLog(tmp_path, size=size)  # of a run that is resumed from a checkpoint after the first line
    assert read_log(tmp_path) == [first]


def test_an_event_is_logged_or_not_as_its_class_declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = EventStream([RunLog(tmp_path)])
    monkeypatch.setattr(RungJudged, "is_logged", False)
    monkeypatch.setattr(Message, "is_logged", True)
    stream.emit(RungJudged({"name": "probe"}))
    stream.say("a sentence")
    assert [entry["event"] for entry in read_log(tmp_path)] == ["message"]


def test_a_full_disk_ends_a_run_but_for_the_line_that_says_it_has_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RunLog(tmp_path)
    monkeypatch.setattr(log, "_append", lambda _entry: (_ for _ in ()).throw(WriteError("full")))
    stream = EventStream([log])
    with pytest.raises(WriteError):
        stream.emit(PlanLine("a line"))
    stream.emit(RunFinished("run", "probe", {}, {}))


def test_tensorboard_has_the_curves_of_a_resumed_run_from_the_beginning(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    before = EventStream([RunLog(tmp_path)])
    before.emit(EpochEnded("probe", 0, 0.5, 0.75))
    writer = TensorBoardWriter(tmp_path)
    stream = EventStream([writer])
    stream.emit(Validated("probe", 0, 0.5, 3, 0.7))
    stream.emit(RunFinished("run", "probe", {}, {}))
    (file,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    content = file.read_bytes()
    for name in (b"probe/train_loss", b"probe/train_accuracy", b"probe/val_log_loss", b"probe/val_accuracy"):
        assert name in content
