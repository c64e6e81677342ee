"""Exported files are opened by a process in which nothing of Headstart is imported."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from small_models import small_model

from headstart.errors import ExportError
from headstart.exports import reader_process
from headstart.exports.graph import export_metadata
from headstart.exports.reader_process import OpenedExport

READER = """
import json, sys
import numpy
print("what a library prints")
def open_file(path):
    text = open(path).read()
    if text == "bad":
        raise ValueError("not for me")
    {import_}
    def run(pixels):
        if pixels.shape[1] == 1:
            raise SystemExit("no such size")
        ours = [name for name in sys.modules if name.partition(".")[0] == "headstart"]
        return [numpy.float32([[len(ours), pixels.sum()]]), numpy.float32([0.5])]
    return text, run
"""


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(reader_process, "READERS", tmp_path)
    (tmp_path / "stub.py").write_text(READER.format(import_=""))
    (tmp_path / "impure.py").write_text(READER.format(import_="import headstart"))
    (tmp_path / "file").write_text(json.dumps(asdict(export_metadata(small_model(), written_with={}))))
    return "stub.py"


def test_pixels_go_to_a_process_without_headstart_and_outputs_come_back(reader: str, tmp_path: Path) -> None:
    with OpenedExport(tmp_path / "file", reader) as opened:
        assert opened.metadata == export_metadata(small_model(), written_with={})
        for side in (2, 300):
            first, second = opened(np.ones((1, side, side, 3), np.uint8))
            assert (first.tolist(), second.tolist()) == ([[0, 3 * side * side]], [0.5])
    with OpenedExport(tmp_path / "file", "impure.py") as opened:
        assert opened(np.ones((1, 2, 2, 3), np.uint8))[0][0, 0] > 0  # so the count can fail


def test_what_is_wrong_with_a_file_or_the_process_is_an_error(reader: str, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("bad")
    with pytest.raises(ExportError, match=r"other: not for me\."):
        OpenedExport(tmp_path / "other", reader)
    with (
        OpenedExport(tmp_path / "file", reader) as opened,
        pytest.raises(ExportError, match=r"file: cannot be run in a separate process \(no such size\)"),
    ):
        opened(np.ones((1, 1, 2, 3), np.uint8))
    with pytest.raises(ExportError, match="cannot be run in a separate process"):
        OpenedExport(tmp_path / "file", "missing.py")


def test_the_process_ends_with_the_object(reader: str, tmp_path: Path) -> None:
    opened = OpenedExport(tmp_path / "file", reader, sys.executable)
    process = opened._process
    assert process.poll() is None
    del opened
    assert process.poll() is not None
