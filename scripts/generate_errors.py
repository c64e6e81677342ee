"""Writes ``docs/errors.md``, the table of errors, from the docstrings in ``headstart/errors.py``.

    python scripts/generate_errors.py

A test compares the page with the docstrings.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from headstart import errors
from headstart.errors import HeadstartError

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"

HEAD = """# Errors

Every error that Headstart raises on purpose is a `HeadstartError`; the classes are in `headstart.errors`. The command
line prints the message as one line and exits with status 1.

```python
import headstart as hs
from headstart.errors import DataError

try:
    hs.train("no-such-folder/")
except DataError as error:
    print(error)
```

| error | when | what to do |
|---|---|---|
"""


def tree(base: type[HeadstartError] = HeadstartError, level: int = 0) -> Iterator[tuple[int, type[HeadstartError]]]:
    """Level and class, parents before their children, in the order of the source."""
    yield level, base
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child, level + 1)


def parts(error: type[HeadstartError]) -> tuple[str, str]:
    """When an error is raised, and what to do."""
    text = inspect.cleandoc(error.__doc__ or "").replace("``", "`")
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    remedy = next(paragraph for paragraph in paragraphs if paragraph.startswith("Remedy: "))
    remedy = remedy.removeprefix("Remedy: ")
    return paragraphs[0], remedy[0].upper() + remedy[1:]


def page() -> str:
    """The page's text."""
    rows = []
    for level, error in tree():
        when, remedy = parts(error)
        rows.append(f"| {'&nbsp;&nbsp;' * level}`{error.__name__}` | {when} | {remedy} |")
    return HEAD + "\n".join(re.sub(r" +", " ", row) for row in rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
