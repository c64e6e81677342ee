"""``headstart export`` and ``verify``: what is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import main


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "torch", "--quantize", "int8"], "int8"),
        (["--out", "model.bin"], ".onnx"),
        (["--data", "gone"], "gone: no such folder or table"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    options: list[str], words: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = main("export", run, *options, capsys=capsys)
    assert (code, out) == (1, "")
    assert words in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_export_is_not_verified(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = main("verify", tmp_path / "gone.onnx", data, capsys=capsys)
    assert (code, "gone.onnx: no such file" in err) == (1, True)
    code, _, err = main("verify", run / "model.safetensors", data, capsys=capsys)
    assert (code, "model.safetensors" in err) == (1, True)
