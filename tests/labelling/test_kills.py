"""A labelling process that is killed at random moments: no acknowledged label is lost, none is there twice."""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path

import pytest
from labelling_sessions import write_names

from headstart.labelling import LabellingSession

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from labelling_sessions import named_session, open_images
from test_kills import IMAGES, steps
with named_session(Path(sys.argv[2])) as session:
    print(*(Path(session.address(image)).name for image in range(IMAGES)), flush=True)
    for step in steps(int(sys.argv[3])):
        if isinstance(step, str):
            getattr(session, step)()
        else:
            session.act({"do": "label", "images": [step[0]], "label": step[1]})
        print("done", flush=True)
"""

IMAGES = 120


def steps(run: int) -> Iterator[tuple[int, str] | str]:
    """What a process does: image and class, "undo" or "redo". No image gets the class that it has: that is no step."""
    for turn in count():
        yield turn % IMAGES, f"class {turn % 7} of run {run}"
        if turn % 10 == 9:
            yield from ("undo", "redo")


def after(before: dict[str, str], names: Sequence[str], run: int, done: int) -> dict[str, str]:
    """Image -> class after some steps of a run."""
    labels, last, undone = dict(before), ("", ""), ""
    for step in islice(steps(run), done):
        if step == "undo":
            undone = labels.pop(last[0])
            labels |= {last[0]: last[1]} if last[1] else {}
        elif step == "redo":
            labels[last[0]] = undone
        else:
            name = names[int(step[0])]
            last, labels[name] = (name, labels.get(name, "")), step[1]
    return labels


def labels_of(folder: Path) -> dict[str, str]:
    """Image -> class in the table, after the session was opened again; no image may be there twice."""
    session = LabellingSession.open(folder)
    session.close()
    with open(session.files.table, newline="") as file:
        rows = [(Path(row["path"]).name, row["label"]) for row in csv.DictReader(file)]
    assert len({path for path, _ in rows}) == len(rows)
    return dict(rows)


def kill_at(folder: Path, run: int, seconds: float) -> tuple[list[str], int]:
    """Runs the script for some time after it is ready and kills it.

    Returns:
        Names of the images, and the number of steps that were acknowledged.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    support = str(Path(__file__).parents[1] / "support")
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, support, str(folder), str(run)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        names = process.stdout.readline().split()
        time.sleep(seconds)
        process.kill()
        return names, process.stdout.read().count("done\n")


def kill_and_check(folder: Path, times: int) -> None:
    write_names(folder, {"blue": 40, "green": 40, "red": 40})
    moments, labels = random.Random(0), dict[str, str]()
    for run in range(times):
        names, done = kill_at(folder, run, moments.uniform(0, 1.5))
        found = labels_of(folder)
        # the step after the last acknowledged one may be in the journal
        assert found in (after(labels, names, run, done), after(labels, names, run, done + 1))
        labels = found


@pytest.mark.slow
def test_three_kills_lose_nothing(tmp_path: Path) -> None:
    kill_and_check(tmp_path / "photos", 3)


@pytest.mark.exhaustive
def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    kill_and_check(tmp_path / "photos", 20)


def test_a_lost_line_of_the_journal_is_seen(tmp_path: Path) -> None:
    folder = write_names(tmp_path / "photos", {"blue": 3})
    session = LabellingSession.open(folder)
    list(session._images.extend(sorted(map(str, folder.iterdir()))))
    for image in range(3):
        session.act({"do": "label", "images": [image], "label": f"class {image}"})
    session._file_lock.release()  # killed
    assert labels_of(folder) == {f"blue-{image}.jpg": f"class {image}" for image in range(3)}
    journal = session.files.journal
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]))
    session.files.table.unlink()
    assert len(labels_of(folder)) < 3
