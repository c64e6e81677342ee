"""Importing and using the library leaves environment variables and Python's random generator as they were."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from headstart.import_effects import restored_after_import

SCRIPT = """
import os, random, sys
before, generator = dict(os.environ), random.getstate()
import headstart
for name in headstart.__all__:
    getattr(headstart, name)
import numpy
from headstart.training.losses import folds_of
folds_of(numpy.arange(8) % 2, 2, 0)
assert "sklearn" in sys.modules
changed = {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)}
assert not changed, changed
assert random.getstate() == generator
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere two variables are needed after the import")
def test_a_new_process_that_uses_every_public_name_has_the_same_environment() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)


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
