"""What the documentation names exists: options, public names, files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

import headstart as hs
from headstart import cli

ROOT = Path(cli.__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def options() -> set[str]:
    commands = get_command(cli.app).commands.values()  # type: ignore[attr-defined]
    own = {name for command in commands for p in command.params for name in (*p.opts, *p.secondary_opts)}
    return own | {"--help", "--version"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_names_and_links_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    code = " ".join(re.findall(r"`[^`]+`|^    .*$", text, re.MULTILINE))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", code)) <= options()
    named = {name for name in re.findall(r"\bhs\.(\w+)", text) if name != "md"}
    assert named <= set(hs.__all__)
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_has_its_page(example: Path) -> None:
    pages = "".join(page.read_text() for page in PAGES)
    if example.name != "side_by_side.py":
        assert f"examples/{example.name}" in pages
    for page in re.findall(r"docs/[\w-]+\.md", example.read_text()):
        assert (ROOT / page).exists(), page
