"""The registry of export formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from headstart.errors import ExportError
from headstart.exports.formats.interface import ExportFormat, WriteRequest, WrittenFiles
from headstart.exports.formats.registry import FORMATS, format_of, open_export


def test_a_format_in_the_registry_opens_files_of_its_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(request: WriteRequest) -> WrittenFiles:
        raise NotImplementedError

    new = ExportFormat("new", ".new", write, "onnx_reader.py")
    file = tmp_path / "model.NEW"
    file.write_bytes(b"")
    with pytest.raises(ExportError, match=r"ending in \.onnx or \.pt2"):
        open_export(file)
    monkeypatch.setitem(FORMATS, "new", new)
    assert format_of(file) is new
    with pytest.raises(ExportError, match="not an ONNX file"):
        open_export(file)


def test_each_format_is_registered_under_its_name_with_a_unique_suffix() -> None:
    assert all(name == one.name for name, one in FORMATS.items())
    assert len({one.suffix for one in FORMATS.values()}) == len(FORMATS)
