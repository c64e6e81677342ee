"""Messages, pages, docstrings, comments and names of tests contain no word of the deny list."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from deny_list import denied_words
from documents import ROOT

import headstart

OTHERS = ("tests", "benchmarks", "scripts", "examples")
"""Folders with other sources."""

PACKAGE = Path(headstart.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [*MODULES, *(path for name in OTHERS for path in sorted((ROOT / name).rglob("*.py")))]
SHOWN = sorted(path for kind in ("html", "js", "md", "ts") for path in PACKAGE.rglob(f"*.{kind}"))
"""Pages, their scripts, and templates of the report and the model card."""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_message_contains_a_word_of_the_deny_list(path: Path) -> None:
    found = {line: words for line, text in messages(path.read_text(encoding="utf-8")) if (words := denied_words(text))}
    assert found == {}


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_page_and_no_template_contains_a_word_of_the_deny_list(path: Path) -> None:
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    assert {number: words for number, line in lines if (words := denied_words(line))} == {}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_or_comment_contains_a_word_of_the_deny_list(path: Path) -> None:
    texts = documentation(path.read_text(encoding="utf-8"))
    assert {line: words for line, text in texts if (words := denied_words(text))} == {}


def documentation(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring, also of constants and fields, of each comment, and of each test's name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, " ".join(node.value.value.split())
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def messages(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each string of several words that is no docstring; "_" stands for a value in it."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    passed = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings
    passed |= {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if (
            isinstance(node, (ast.Constant, ast.JoinedStr))
            and id(node) not in passed
            and " " in (text := text_of(node))
        ):
            yield node.lineno, text


def text_of(node: ast.expr) -> str:
    """The text of a string; "" for a value that is no text."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else "_" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_words_in_messages_are_found() -> None:
    source = '''def f(x):
    """Told."""
    print(x, f"the {x} pictures")
    text = "it is told" if x else "is done " "anew"
    raise ValueError(text)
'''
    assert sorted(messages(source)) == [(3, "the _ pictures"), (4, "is done anew"), (4, "it is told")]
    assert denied_words("the _ pictures") == ["'pictures': write 'image'"]


def test_words_in_docstrings_comments_and_names_are_found() -> None:
    source = '"""A module."""\n\nX = 1\n"""Told\nof its\nown."""\n\ndef test_it_is_told():\n    f()  # all of them\n'
    texts = sorted(documentation(source))
    assert texts == [(1, "A module."), (4, "Told of its own."), (8, "test it is told"), (9, "# all of them")]
    assert [len(denied_words(text)) for _, text in texts] == [0, 2, 1, 1]
