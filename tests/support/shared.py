"""What takes long to make and is only read: made by one of the processes that run the tests, read by all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def shared_folder(tmp_path_factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], None]) -> Path:
    """A folder for all processes of a test session.

    Args:
        tmp_path_factory: of pytest.
        name: of the folder.
        fill: writes its content; called once, in the process that asks first. If it fails, the next process tries.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"shared-{name}"
    with FileLock(f"{folder}.lock"):
        if not (folder / ".complete").exists():
            folder.mkdir(exist_ok=True)
            fill(folder)
            (folder / ".complete").touch()
    return folder
