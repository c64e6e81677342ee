"""Writing the report of a run again."""

from __future__ import annotations

from headstart.training.former_options import with_current_names
from headstart.verbs.report import FORMER_HEAD_KEYS


def test_the_head_of_a_run_of_an_earlier_version_is_read() -> None:
    former = {"known": 1000, "new": ["a"], "remembered": 30, "imagined": True}
    assert with_current_names(former, FORMER_HEAD_KEYS) == {
        "old_classes": 1000,
        "new": ["a"],
        "rehearsal_samples": 30,
        "is_synthesised": True,
    }
    assert with_current_names({"old_classes": 2}, FORMER_HEAD_KEYS) == {"old_classes": 2}
