"""Draws sentences at random from help, messages, report, pages and documents, to be read as a new user would.

    python scripts/draw_sentences.py --seed 1

A sentence that is not understood at first reading is rewritten, and so are others like it.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import click

from headstart.cli import main as cli

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "headstart"
RECORDS = ("results", "decisions")
"""Folders of docs/ that are left out."""

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`*\"<])")
FEWEST_WORDS = 4


def help_texts() -> Iterator[tuple[str, str]]:
    """Command, and its description or the help of an option."""
    for name in cli.COMMANDS:
        command = cli.app.get_command(click.Context(cli.app), name)
        if command is not None:
            yield f"headstart {name}", command.help or ""
            for option in command.params:
                yield f"headstart {name} {option.opts[0]}", getattr(option, "help", None) or ""


def message_texts() -> Iterator[tuple[str, str]]:
    """Module, and each text in an expression of it that looks like a sentence; "_" stands for a value."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        strings = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "_" for part in node.values]
                yield path.relative_to(ROOT).as_posix(), "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in strings | docs:
                yield path.relative_to(ROOT).as_posix(), node.value


class _Text(HTMLParser):
    """Text between tags, without scripts, styles and Jinja's statements."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.is_code = False

    def handle_starttag(self, tag: str, _attributes: object) -> None:
        """Notes whether code follows."""
        self.is_code = tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        """Collects text."""
        if not self.is_code:
            self.found.append(re.sub(r"\{%.*?%\}", " ", re.sub(r"\{\{.*?\}\}", "_", data)))


def page_texts() -> Iterator[tuple[str, str]]:
    """File, and each text of the report's templates, the served pages and their scripts."""
    for path in sorted([*PACKAGE.rglob("*.html"), *PACKAGE.rglob("*.js")]):
        source = path.read_text(encoding="utf-8")
        if path.suffix == ".html":
            parser = _Text()
            parser.feed(source)
            texts = parser.found
        else:
            texts = [match[0][1:-1] for match in re.finditer(r"\"[^\"\n]*\"|`[^`]*`", source)]
        for text in texts:
            yield path.relative_to(ROOT).as_posix(), re.sub(r"\$\{[^}]*\}", "_", text)


def document_texts() -> Iterator[tuple[str, str]]:
    """Page, and each paragraph of prose, list item or row of a table."""
    pages = [*ROOT.glob("*.md"), *(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name not in RECORDS)]
    for page in sorted(page for page in pages if page.name != "CHANGELOG.md"):
        without_code = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        prose = re.sub(r"^(?: {4}|#).*$", "", without_code, flags=re.MULTILINE)
        for paragraph in re.split(r"\n\s*\n|\n(?=\s*[-*|] |\d\. |\|)", prose):
            yield page.relative_to(ROOT).as_posix(), paragraph


def sentences(texts: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
    """Where it is, and each sentence of at least a few words, once."""
    found = {}
    for where, text in texts:
        for sentence in SENTENCE_END.split(" ".join(text.split())):
            if len(re.findall(r"\b[a-z]+\b", sentence)) >= FEWEST_WORDS and " " in sentence:
                found.setdefault(sentence, where)
    return [(where, sentence) for sentence, where in found.items()]


def main() -> None:
    """Prints the same number of sentences of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40)
    given = parser.parse_args()
    generator = random.Random(given.seed)
    kinds = help_texts, message_texts, page_texts, document_texts
    for kind in kinds:
        drawn = sentences(kind())
        for where, sentence in generator.sample(drawn, min(given.count // len(kinds), len(drawn))):
            print(f"{where}: {sentence}")


if __name__ == "__main__":
    main()
