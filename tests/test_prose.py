"""Prose of the documents: line length, plain words, sizes of the landing page and of the architecture page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from deny_list import denied_words
from documents import DOCUMENTS, PAGES, RECORDS, ROOT

MAX_COLUMNS = 120
CODE = re.compile(r"^```.*?^```$|(?<=\n\n)(?: {4}[^\n]*\n+)+", re.MULTILINE | re.DOTALL)
"""Fenced and indented blocks."""


def prose(page: str) -> list[tuple[int, str]]:
    """Lines of a page outside code blocks, with their numbers."""
    without = CODE.sub(lambda block: "\n" * block[0].count("\n"), page)
    return list(enumerate(without.splitlines(), 1))


def long_lines(page: str) -> list[int]:
    """Lines of prose that are too long; a row of a table cannot be broken."""
    return [number for number, line in prose(page) if len(line) > MAX_COLUMNS and not line.lstrip().startswith("|")]


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_is_narrow_and_in_plain_words(page: Path) -> None:
    text = page.read_text()
    assert long_lines(text) == []
    words = "\n".join(re.sub(r"`[^`]*`|\]\([^)]*\)", "", line) for _, line in prose(text))
    assert denied_words(words) == []


def test_long_lines_and_odd_words_are_seen() -> None:
    page = f"# Title\n\n{'word ' * 30}\n\n    {'code ' * 30}\n\n```sh\n{'code ' * 30}\n```\n\n| {'cell ' * 30} |\n"
    assert long_lines(page) == [3]
    assert denied_words("the gravest first") != []


def test_the_landing_page_and_the_architecture_page_are_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("folder", RECORDS)
def test_an_index_lists_every_page_of_its_folder(folder: str) -> None:
    index = (ROOT / "docs" / folder / "README.md").read_text()
    pages = [page.name for page in (ROOT / "docs" / folder).glob("*.md") if page.name != "README.md"]
    assert [name for name in pages if f"({name})" not in index] == []


def test_the_site_lists_every_page_that_is_no_record() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert {
        page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.is_relative_to(ROOT / "docs")
    } <= listed


def test_no_file_refers_to_the_former_log() -> None:
    files = [
        *DOCUMENTS,
        *(path for folder in ("headstart", "tests", "examples") for path in (ROOT / folder).rglob("*.py")),
    ]
    assert [path.name for path in files if re.search(r"\bLOG" + r"\.md", path.read_text())] == []


def test_documents_that_the_code_names_exist() -> None:
    named = {
        (path.name, page)
        for path in (ROOT / "headstart").rglob("*.py")
        for page in re.findall(r"docs/[\w/-]+\.md", path.read_text())
    }
    assert named
    assert [both for both in named if not (ROOT / both[1]).exists()] == []
