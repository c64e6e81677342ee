"""The registry of data checks, and findings of earlier versions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from random_images import write_classes

from headstart.data import checks, inspection, quality
from headstart.data.finding import OLD_KINDS, Finding
from headstart.data.inspection import inspect
from headstart.trust import feature_findings

ROOT = Path(checks.__file__).parents[2]
MAKERS = ("Finding", "image_finding", "_pair_finding")
"""Functions whose first argument is the code of a finding."""

GIVEN = {
    "kind": set(),  # a parameter of the functions above
    "finding.kind": set(),  # of a finding that is made again
    "issue.kind": {rule.kind for rule in (*quality.RULES, quality._BLANK)},
    "WRONG_LABEL": {feature_findings.WRONG_LABEL},
    "OUTLIER": {feature_findings.OUTLIER},
}
"""Codes that are not written where the finding is made."""


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


def codes_in(source: str) -> Iterator[str]:
    """Codes of the findings that a module makes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKERS and node.args:
            code = node.args[0]
            yield from [code.value] if isinstance(code, ast.Constant) else sorted(GIVEN[ast.unparse(code)])


def codes_on(page: str) -> set[str]:
    """Codes in the first column of a page's table of findings."""
    rows = re.findall(r"^\| (`.+?) \| (?:serious|warning|note)(?:, or note)? \|", page, re.MULTILINE)
    return {code for row in rows for code in re.findall(r"`([\w-]+)`", row)}


def test_the_page_explains_every_finding_that_can_be_made_and_no_other() -> None:
    made = {code for file in (ROOT / "headstart").rglob("*.py") for code in codes_in(file.read_text())}
    assert {"damaged-archive", "wrong-label", "blank", "leak"} <= made
    assert codes_on((ROOT / "docs" / "how-to" / "check-data.md").read_text()) == made


def test_a_finding_that_the_page_lacks_is_seen() -> None:
    assert list(codes_in('found.append(Finding("new-code", "note", message))')) == ["new-code"]
    assert codes_on("| `a`, `b-c` | note | words |\n| `no-code` | is no severity |") == {"a", "b-c"}
    with pytest.raises(KeyError, match="other"):
        list(codes_in("Finding(other, 'note', message)"))
