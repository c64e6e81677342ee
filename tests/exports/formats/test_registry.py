"""The registry of export formats."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headstart.errors import ExportError
from headstart.exports.formats.interface import ExportFormat, WriteRequest, WrittenFiles
from headstart.exports.formats.registry import FORMATS, format_of, open_export


def test_a_format_in_the_registry_opens_files_of_its_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(request: WriteRequest) -> WrittenFiles:
        raise NotImplementedError

    opened: list[Path] = []
    new = ExportFormat("new", ".new", write, lambda file: opened.append(file))  # type: ignore[arg-type,return-value]
    file = tmp_path / "model.NEW"
    file.write_bytes(b"")
    with pytest.raises(ExportError, match=r"ending in \.onnx or \.pt2"):
        open_export(file)
    monkeypatch.setitem(FORMATS, "new", new)
    open_export(file)
    assert opened == [file]
    assert format_of(file) is new


def test_each_format_is_registered_under_its_name_with_a_unique_suffix() -> None:
    assert all(name == one.name for name, one in FORMATS.items())
    assert len({one.suffix for one in FORMATS.values()}) == len(FORMATS)


def test_opening_an_onnx_file_imports_neither_pytorch_nor_the_model() -> None:
    script = "import sys, headstart.exports.formats.registry; print([m for m in ('torch', 'onnx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
