"""Reading a run folder: each log line exactly once, and the state of the run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from headstart.data.finding import Finding
from headstart.errors import RunError
from headstart.runs.events import EventStream, FindingsUpdated, MistakesFound, PlanLine
from headstart.runs.log import RunLog
from headstart.runs.status import LiveStatus, is_running, read_status, remove_status, run_lock
from headstart.serve.watch.run_reader import LogPosition, RunReader, read_tail


def written(log: Path, numbers: range) -> None:
    with open(log, "ab") as file:
        for i in numbers:
            file.write(json.dumps({"event": "plan", "text": "é" * (i % 7) + str(i)}).encode() + b"\n")


def texts(lines: tuple[tuple[LogPosition, bytes], ...]) -> list[int]:
    return [int(json.loads(line)["text"].strip("é")) for _, line in lines]


def test_a_reconnecting_reader_gets_each_line_once(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert read_tail(log, LogPosition()).lines == ()
    seen: list[int] = []
    place = LogPosition()
    for start in range(0, 600, 100):
        written(log, range(start, start + 100))
        with open(log, "ab") as file:
            file.write(b'{"event": "pl')  # a line that is being written
        tail = read_tail(log, LogPosition.read(str(place)))
        assert not tail.reset
        seen += texts(tail.lines)
        place = tail.lines[-1][0]
        with open(log, "rb+") as file:
            file.truncate(place.offset)
    assert seen == list(range(600))
    middle = read_tail(log, LogPosition()).lines[41][0]
    assert texts(read_tail(log, middle).lines) == list(range(42, 600))
    assert texts(read_tail(log, LogPosition(middle.offset)).lines) == list(range(42, 600))  # an offset alone will do


@pytest.mark.parametrize("after", ["", "nonsense", "-3", "99999999999999999999", "1e3"])
def test_an_invalid_position_is_the_start_of_the_log(after: str) -> None:
    assert LogPosition.read(after) == LogPosition()


def test_a_truncated_log_is_sent_again(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    written(log, range(10))
    place = read_tail(log, LogPosition()).lines[-1][0]
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:4]))
    assert read_tail(log, place).reset
    written(log, range(50, 80))  # longer than before by now
    tail = read_tail(log, place)
    assert tail.reset
    assert texts(tail.lines) == [0, 1, 2, 3, *range(50, 80)]


@pytest.mark.slow
def test_a_killed_run_is_distinguished_from_an_active_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    watched = RunReader(run)
    assert watched.state()["state"] == "gone"
    EventStream([RunLog(run)]).emit(PlanLine("a line"))
    script = (
        "import sys, time; from pathlib import Path; from headstart.runs.status import run_lock\n"
        "with run_lock(Path(sys.argv[1])): print('at work', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(run)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert watched.state()["state"] == "running"
        with pytest.raises(RunError, match="another process"), run_lock(run):
            pass
        process.kill()
    assert watched.state()["state"] == "stopped"
    assert watched.state()["resume"] == f"headstart train --resume {run} --watch"
    (run / "run.json").write_text("{}")
    assert watched.state()["state"] == "finished"


def test_a_run_that_has_not_begun_is_waited_for(tmp_path: Path) -> None:
    alive = [True]
    watched = RunReader(tmp_path / "run", expected=lambda: alive[0])
    assert watched.state()["state"] == "starting"
    alive[0] = False
    assert watched.state()["state"] == "gone"


def test_the_live_status_is_written_and_read(tmp_path: Path) -> None:
    noted = EventStream([LiveStatus(tmp_path)])
    noted.say("It begins.")
    with noted.task("Reading images", 10) as advance:
        advance(3)
        time.sleep(0.6)
        advance(1)
        now = read_status(tmp_path)
        assert now is not None
        assert {k: now["task"][k] for k in ("name", "done", "total", "unit")} == {
            "name": "Reading images",
            "done": 4,
            "total": 10,
            "unit": "images",
        }
        assert now["task"]["seconds"] >= 0.6
    now = read_status(tmp_path)
    assert now is not None
    assert now["task"] is None
    assert [text for _, text in now["said"]] == ["It begins."]
    with run_lock(tmp_path):
        assert is_running(tmp_path)
    remove_status(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_status_that_cannot_be_written_does_not_stop_the_run(tmp_path: Path) -> None:
    noted = EventStream([LiveStatus(tmp_path / "gone")])
    noted.say("Nobody reads this.")
    with noted.task("Reading images", 1) as advance:
        advance(1)
    assert read_status(tmp_path / "gone") is None


def test_only_images_of_the_run_are_served(tmp_path: Path) -> None:
    mistakes = {"count": 1, "of": 2, "items": [["/data/a/1.jpg", "a", "b"]]}
    EventStream([RunLog(tmp_path)]).emit(MistakesFound("probe", mistakes))
    watched = RunReader(tmp_path)
    ((_, line),) = watched.tail(LogPosition()).lines
    ((path, right, given, chance, key),) = json.loads(line)["items"]
    assert (path, right, given, chance) == ("/data/a/1.jpg", "a", "b", None)
    assert watched.image_path(key) == path
    assert RunReader(tmp_path).image_path(key) == path  # also after a restart of the server
    assert watched.image_path("/etc/passwd") is None


def test_findings_have_their_images(tmp_path: Path) -> None:
    found = Finding(
        "wrong-label", "warning", "2 labels", ("a/1.jpg: rather b", "a/2.jpg: rather b"), (("a/1.jpg",), ("a/2.jpg",))
    )
    many = Finding("duplicate", "note", "40 pairs", ("x",) * 40, (("a/3.jpg", "a/4.jpg"),) * 40)
    briefs = [own.brief(str(tmp_path / "data")) for own in (found, many, Finding("name", "note", "a name", ("b",)))]
    EventStream([RunLog(tmp_path)]).emit(FindingsUpdated(briefs))
    watched = RunReader(tmp_path)
    ((_, line),) = watched.tail(LogPosition()).lines
    first, second, third = json.loads(line)["found"]
    path, words, key = first["images"][0]
    assert (path, words) == (str(tmp_path / "data" / "a" / "1.jpg"), "a/1.jpg: rather b")
    assert watched.image_path(key) == path
    assert RunReader(tmp_path).image_path(key) == path
    assert (second["cases"], len(second["images"]), third["images"]) == (40, 24, [])
    document = {"scores": {}, "findings": [asdict(found)], "best": "probe", "seconds": {}}
    (tmp_path / "run.json").write_text(json.dumps(document | {"data": {"base": str(tmp_path / "data")}}))
    (told,) = RunReader(tmp_path).summary()["findings"]
    assert told["images"] == first["images"]
    (tmp_path / "log.jsonl").unlink()
    assert RunReader(tmp_path).image_path(key) == path


def test_a_summary_of_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has not finished"):
        RunReader(tmp_path).summary()
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(RunError, match="damaged"):
        RunReader(tmp_path).summary()
