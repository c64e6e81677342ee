"""Imports of other libraries leave environment variables and Python's random generator as they were.

test_process_state.py imports every public name in a new process.
"""

from __future__ import annotations

import os
import random

import pytest

from headstart.import_effects import restored_after_import


def test_what_is_set_removed_or_changed_inside_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "1")
    monkeypatch.setenv("B", "1")
    generator = random.getstate()
    with restored_after_import():
        os.environ["A"] = "2"
        del os.environ["B"]
        os.environ["C"] = "3"
        random.random()
    assert (os.environ["A"], os.environ["B"], os.environ.get("C")) == ("1", "1", None)
    assert random.getstate() == generator


def test_an_error_inside_restores_too() -> None:
    def failing() -> None:
        with restored_after_import():
            os.environ["D"] = "3"
            raise ImportError

    with pytest.raises(ImportError):
        failing()
    assert "D" not in os.environ
