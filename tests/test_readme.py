"""The documents show every command, the README the whole tree; tests/test_docs.py runs what it shows."""

from __future__ import annotations

import re

from commands import all_commands
from documents import PAGES, ROOT, blocks_of

README = ROOT / "README.md"


def test_every_command_is_shown() -> None:
    """In the README or on a page, as a line that is run or within a sentence."""
    typed = [line for page in PAGES for own in blocks_of(page) if own.language == "sh" for line in own.commands]
    shown = {line.split()[1] for line in typed if line.startswith("headstart ")}
    shown |= {verb for page in PAGES for verb in re.findall(r"`headstart ([a-z]+)", page.read_text())}
    assert shown >= set(all_commands())


def test_the_package_carries_what_the_wheel_needs() -> None:
    assert (ROOT / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert (ROOT / "headstart" / "reports" / "templates" / "report.html").exists()
