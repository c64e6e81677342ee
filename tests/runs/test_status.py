"""The lock of a run."""

from __future__ import annotations

import os
from pathlib import Path

from headstart.runs.status import run_lock


def test_what_a_killed_process_left_half_written_is_removed_by_the_next(tmp_path: Path) -> None:
    for name in (".run.json.9999999.partial", "checkpoints/.rung.safetensors.9999999.partial"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"{")
    (tmp_path / f".beside.{os.getppid()}.partial").write_bytes(b"")  # of a process that runs
    with run_lock(tmp_path):
        assert [file for file in tmp_path.rglob("*") if file.name.startswith(".")] == [
            tmp_path / f".beside.{os.getppid()}.partial"
        ]
