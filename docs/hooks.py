"""MkDocs hooks: pages at the repository's root and the examples become part of the site, and links to them work."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import headstart

ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
NAMES = "<!-- every name of headstart.__all__ -->"
"""Comment in a page that is replaced by the reference from docstrings."""

LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages at the root, the examples and the notebooks."""
    for path in (*map(ROOT.joinpath, ROOT_PAGES), *sorted((ROOT / "examples").glob("*.py"))):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links between ``docs/`` and the root are those of the repository; the site has one folder for both."""
    folder = posixpath.dirname(page.file.src_uri)
    in_repository = "" if page.file.src_uri in ROOT_PAGES else posixpath.join("docs", folder)

    def rewritten(link: re.Match[str]) -> str:
        target = link[2]
        if "://" in target or target.startswith("mailto:"):
            return link[0]
        path = posixpath.normpath(posixpath.join(in_repository, target))
        return link[1] + posixpath.relpath(path.removeprefix("docs/"), folder or os.curdir) + link[3]

    return LINK.sub(rewritten, markdown.replace(NAMES, _reference()))


def _reference() -> str:
    """An entry for each exported name: functions first, then classes."""
    names = sorted(headstart.__all__, key=lambda name: (name[0].isupper(), name))
    return "\n\n".join(f"::: headstart.{name}" for name in names)
