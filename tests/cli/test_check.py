"""``headstart check``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import main


@pytest.mark.slow
def test_check_lists_findings_and_strict_fails(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(data, tmp_path / "d")
    (tmp_path / "d" / "red" / "bad.jpg").write_bytes(b"")
    shutil.copy(data / "red" / "2.png", tmp_path / "d" / "red" / "again.jpg")
    code, out, _ = main("check", tmp_path / "d", "--image-size", 64, capsys=capsys)
    assert code == 0
    assert "61 of 62 images usable" in out
    assert "red/bad.jpg: empty file (0 bytes)" in out
    assert "red/2.png = red/again.jpg" in out or "red/again.jpg = red/2.png" in out
    assert "red/again.jpg: is PNG" in out
    assert main("check", tmp_path / "d", "--strict", "--image-size", 64, capsys=capsys)[0] == 1
