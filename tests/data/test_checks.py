"""The registry of data checks, and findings of earlier versions."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from random_images import write_classes

from headstart.data import checks, inspection
from headstart.data.finding import OLD_KINDS, Finding
from headstart.data.inspection import inspect


def test_a_check_in_the_registry_is_run_with_everything_that_is_known_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_classes(tmp_path / "d", {"a": 12, "b": 12})

    def check(given: checks.CheckInput) -> list[Finding]:
        assert len(given.dataset) == len(given.scanned.keys) == len(given.split.assigned) == 24
        assert sum(given.counts["train"].values()) == given.split.sizes["train"]
        return [Finding("new", "serious", "a new check")]

    monkeypatch.setattr(inspection, "CHECKS", (*checks.CHECKS, check))
    assert "new" in [finding.kind for finding in inspect(tmp_path / "d", cache=tmp_path / "cache").findings]


def test_every_check_says_what_it_looks_for() -> None:
    assert all(check.__doc__ for check in checks.CHECKS)


@pytest.mark.parametrize(("old", "new"), OLD_KINDS.items())
def test_a_finding_of_an_earlier_version_is_read_with_its_code_of_today(old: str, new: str) -> None:
    finding = Finding(new, "note", "words", ("a: b",), (("a",),))
    assert Finding.from_json(asdict(finding)) == finding
    assert Finding.from_json(asdict(finding) | {"kind": old}) == finding
