"""The journal: nothing acknowledged is lost, a torn line is removed, everything can be undone after a restart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headstart.errors import LabelError, OutputError
from headstart.labelling.journal import Journal
from headstart.labelling.label_state import Answer, LabelChange, LabelClass


def labelled(path: str, name: str = "rose", before: Answer | None = None) -> LabelChange:
    return LabelChange(f"label {path}", {path: (before, Answer("label", (name,), "grid", "2026-12-01T00:00:00Z"))})


def test_a_change_is_in_the_file_before_do_returns_and_survives_without_close(tmp_path: Path) -> None:
    file = tmp_path / "j.jsonl"
    journal = Journal(file)
    journal.do(labelled("a.jpg"))
    assert json.loads(file.read_text())["text"] == "label a.jpg"
    assert Journal(file).state.answers["a.jpg"].labels == ("rose",)


@pytest.mark.parametrize("lost", [1, 5, 30])
def test_a_torn_last_line_is_ignored_and_the_next_change_starts_a_new_line(tmp_path: Path, lost: int) -> None:
    file = tmp_path / "j.jsonl"
    journal = Journal(file)
    journal.do(labelled("a.jpg"))
    journal.do(labelled("b.jpg"))
    journal.close()
    file.write_bytes(file.read_bytes()[:-lost])
    again = Journal(file)
    assert list(again.state.answers) == ["a.jpg"]
    again.do(labelled("c.jpg"))
    assert list(Journal(file).state.answers) == ["a.jpg", "c.jpg"]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "j.jsonl"
    journal = Journal(file)
    for name in "abc":
        journal.do(labelled(name))
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + b'{"text": "x", "answers": 3}\n' + lines[2])
    with pytest.raises(LabelError, match="line 2: damaged"):
        Journal(file)
    for damage in (b"3", b"[]", b"null", b"[" * 100_000, b'"undo"', b'{"undo": 1, "event": 1}{'):
        file.write_bytes(lines[0] + damage + b"\n" + lines[2])
        with pytest.raises(LabelError, match="line 2: damaged"):
            Journal(file)


def test_a_hundred_and_fifty_steps_are_undone_and_redone_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "j.jsonl"
    journal = Journal(file)
    for number in range(150):
        journal.do(labelled(f"{number}.jpg"))
    again = Journal(file)
    for _ in range(150):
        again.undo()
    assert again.state.answers == {}
    third = Journal(file)
    assert (len(third.done), len(third.undone)) == (0, 150)
    for _ in range(150):
        third.redo()
    assert len(third.state.answers) == 150


def test_a_new_change_forgets_what_was_undone_and_a_quiet_one_does_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.do(labelled("a"))
    journal.undo()
    journal.do(LabelChange("draw", blind=((), ("b",))), quiet=True)
    assert len(journal.undone) == 1
    journal.do(labelled("c"))
    assert journal.undone == []
    assert [change.text for change in journal.done] == ["label c"]


def test_every_part_of_a_change_is_undone(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    change = LabelChange(
        "all",
        {"a": (None, Answer("skip"))},
        {"a": ((), ("rose",))},
        ((), (LabelClass("rose", "1"),)),
        ((), ("b",)),
    )
    journal.do(change)
    state = Journal(tmp_path / "j.jsonl").state
    assert (state.answers["a"].kind, state.rejected, state.names, state.blind) == (
        "skip",
        {"a": ("rose",)},
        ["rose"],
        ("b",),
    )
    journal.undo()
    state = journal.state
    assert (state.answers, state.rejected, state.names, state.blind) == ({}, {}, [], ())


def test_a_change_that_cannot_be_written_leaves_state_and_file_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "j.jsonl"
    journal = Journal(file)
    journal.do(labelled("a"))
    before = file.read_bytes()

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            journal.do(labelled("b"))
    assert (list(journal.state.answers), file.read_bytes()) == (["a"], before)
    journal.do(labelled("c"))
    assert list(Journal(file).state.answers) == ["a", "c"]
