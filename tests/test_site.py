"""The documentation site builds strictly, works from disk, can be searched, and requests no outside address."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import opened
from documents import ROOT

import headstart as hs

pytestmark = pytest.mark.exhaustive

LOADED = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""")
"""Addresses that a browser requests when it opens a page; links that a reader follows are not among them."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_no_page_and_no_stylesheet_loads_from_an_outside_address(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    assert {address for page in pages for address in LOADED.findall(page.read_text())} == set()
    styles = [sheet.read_text() for sheet in site.rglob("*.css")]
    assert styles
    assert not [found for text in styles for found in re.findall(r"url\([\"']?https?:[^)]*\)|@import[^;]*", text)]


def test_an_outside_address_would_be_seen() -> None:
    assert LOADED.findall('<script async src="https://example.com/a.js">') == ["https://example.com/a.js"]
    assert LOADED.findall('<a href="https://example.com/">') == []


def test_search_works_from_disk_without_a_request(site: Path) -> None:
    with opened(site / "index.html") as (page, wrong):
        page.keyboard.press("/")
        page.keyboard.type("temperature scaling", delay=10)
        hit = page.locator(".md-search-result__item").first
        hit.wait_for()
        assert "calibration" in page.locator(".md-search-result__list").inner_text().lower()
        assert wrong == []


def test_every_exported_name_has_an_entry_in_the_reference(site: Path) -> None:
    text = (site / "reference" / "python.html").read_text()
    entries = re.split(r'id="headstart\.(\w+)"', text)[1:]
    entry_of = dict(zip(entries[::2], entries[1::2], strict=True))
    assert [name for name in hs.__all__ if name not in entry_of] == []
    assert [name for name in hs.__all__ if "&gt;&gt;&gt;" not in entry_of[name]] == []
