"""Write ``docs/notebooks/`` from the tutorial pages: a code cell for each Python block, Markdown for the rest.

    python scripts/generate_notebooks.py

The pages are executed by the tests, and a test compares the notebooks with them. Notebooks hold no outputs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted((DOCS / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


def notebook_of(page: Path) -> Path:
    """The notebook that belongs to a page."""
    return DOCS / "notebooks" / f"{page.stem}.ipynb"


def notebook_from(markdown: str) -> dict[str, Any]:
    """A notebook in format 4.5, without outputs.

    Args:
        markdown: a page whose code is in fenced Python blocks.
    """
    parts = BLOCK.split(markdown)  # text, code, text, code, ..., text
    kinds = ["markdown" if number % 2 == 0 else "code" for number in range(len(parts))]
    cells = [_cell(kind, part.strip()) for kind, part in zip(kinds, parts, strict=True) if part.strip()]
    return {
        "cells": [cell | {"id": f"cell-{number}"} for number, cell in enumerate(cells)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cell(kind: str, source: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "metadata": {}, "source": source.splitlines(keepends=True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def text_of(page: Path) -> str:
    """The notebook's file for a page, as text."""
    return json.dumps(notebook_from(page.read_text()), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> None:
    """Writes every notebook."""
    (DOCS / "notebooks").mkdir(exist_ok=True)
    for page in PAGES:
        notebook_of(page).write_text(text_of(page))
        print(notebook_of(page).relative_to(DOCS.parent))


if __name__ == "__main__":
    main()
