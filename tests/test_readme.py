"""The README shows every command and the whole tree; tests/test_docs.py runs what it shows."""

from __future__ import annotations

from documents import ROOT, blocks_of
from typer.main import get_command

from headstart import cli

README = ROOT / "README.md"


def test_every_command_is_shown() -> None:
    elsewhere = {"demo", "push", "watch"}  # within sentences there, or on a page of their own
    lines = [line for block in blocks_of(README) if block.language == "sh" for line in block.commands]
    shown = {line.split()[1] for line in lines if line.startswith("headstart ")}
    assert shown | elsewhere == set(get_command(cli.app).commands)  # type: ignore[attr-defined]


def test_the_tree_in_the_readme_names_every_module() -> None:
    text = README.read_text()
    tree = text[text.index("## The tree") :]
    for path in (ROOT / "headstart").rglob("*.py"):
        if not path.name.startswith("__"):
            assert path.name in tree, path


def test_the_package_carries_what_the_wheel_needs() -> None:
    assert (ROOT / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert (ROOT / "headstart" / "evaluation" / "templates" / "report.html").exists()
