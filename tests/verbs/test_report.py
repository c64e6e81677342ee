"""Writing the report of a run again."""

from __future__ import annotations

from headstart.verbs.report import with_current_keys


def test_the_head_of_a_run_of_an_earlier_version_is_read() -> None:
    former = {"known": 1000, "new": ["a"], "remembered": 30, "imagined": True}
    assert with_current_keys(former) == {
        "old_classes": 1000,
        "new": ["a"],
        "rehearsal_samples": 30,
        "is_synthesised": True,
    }
    assert with_current_keys({"old_classes": 2}) == {"old_classes": 2}
