"""An export is complete or not there, as a file and as a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headstart.errors import OutputError
from headstart.exports.destination import check_destination, size_of, whole_or_nothing
from headstart.exports.formats.interface import ExportFormat
from headstart.exports.formats.onnx import FORMAT as ONNX

FOLDER = ExportFormat("stub", "-stub", ONNX.write, ONNX.reader, marker="stub.json")


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def write(path: Path, text: str) -> None:
    with whole_or_nothing(path, is_folder=True) as partial:
        (partial / FOLDER.marker).write_text(text)
        (partial / text).write_text("x")


def test_a_folder_is_complete_and_replaces_one_of_the_same_format(tmp_path: Path) -> None:
    folder = check_destination(tmp_path / "new" / "model-stub", FOLDER)
    write(folder, "first")
    assert size_of(folder) == len("first") + 1
    write(check_destination(folder, FOLDER), "second")
    assert names(tmp_path) == ["new", "new/model-stub", "new/model-stub/second", "new/model-stub/stub.json"]


@pytest.mark.parametrize("form", [FOLDER, ONNX])
def test_after_an_error_nothing_is_there_and_what_was_there_stays(tmp_path: Path, form: ExportFormat) -> None:
    def fail(path: Path) -> None:
        with whole_or_nothing(path, is_folder=bool(form.marker)) as partial:
            (partial / "half" if form.marker else partial).write_text("x")
            raise KeyError

    with pytest.raises(KeyError):
        fail(tmp_path / "new" / "model.onnx")
    assert names(tmp_path) == []
    write(tmp_path / "model-stub", "first")
    before = names(tmp_path)
    with pytest.raises(KeyError):
        fail(tmp_path / "model-stub")
    assert names(tmp_path) == before


def test_a_folder_with_something_else_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x")
    with pytest.raises(OutputError, match="notes: is not empty, and not an export to stub"):
        check_destination(tmp_path / "notes", FOLDER)
    with pytest.raises(OutputError, match="notes: is not empty, and not an export to stub"):
        check_destination(tmp_path / "new" / ".." / "notes", FOLDER)
    with pytest.raises(OutputError, match=r"a\.txt: is a file; stub is written as a folder"):
        check_destination(tmp_path / "notes" / "a.txt", FOLDER)


def test_what_a_killed_export_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder = tmp_path / "model-stub"
    for left in (f".model-stub.{gone.pid}.partial", f".model.{gone.pid}.partial.onnx", f".other.{gone.pid}.partial"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "half").write_text("x")
    (tmp_path / f".model-stub.{os.getppid()}.partial").mkdir()
    old = tmp_path / f".model-stub.{gone.pid}.old"
    old.mkdir()
    (old / FOLDER.marker).write_text("old")
    with pytest.raises(KeyError), whole_or_nothing(folder, is_folder=True):
        raise KeyError
    assert (folder / FOLDER.marker).read_text() == "old", "killed between two renames: the old folder is there again"
    write(folder, "first")
    with whole_or_nothing(tmp_path / "model.onnx", is_folder=False) as partial:
        partial.write_text("x")
    left = {f".other.{gone.pid}.partial", f".model-stub.{os.getppid()}.partial"}
    assert {path.name for path in tmp_path.iterdir()} == {"model-stub", "model.onnx", *left}
