"""The examples in docstrings of public names, and whether they run as shown."""

from __future__ import annotations

import doctest
import importlib
import re

from public_names import SUBMODULES

import headstart as hs

NUMBER = re.compile(r"\d+(\.\d+)?")


class AnyNumbers(doctest.OutputChecker):
    """Compares output word by word; numbers depend on the data and may differ."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return super().check_output(NUMBER.sub("0", want), NUMBER.sub("0", got), optionflags)


def has_example(docstring: str | None) -> bool:
    """Whether a docstring has a section "Examples" with a statement that is not skipped."""
    section = re.search(r"^ *Examples:\n(.*)", docstring or "", re.MULTILINE | re.DOTALL)
    statements = doctest.DocTestParser().get_examples(section[1]) if section else []
    return any(doctest.SKIP not in statement.options for statement in statements)


def examples_of(value: object, name: str) -> list[doctest.DocTest]:
    """The examples of a function, or of a class and its methods. Only ``hs`` is defined in them."""
    found = doctest.DocTestFinder(exclude_empty=True).find(value, name, module=False, globs={"hs": hs})
    return [test for test in found if not all(doctest.SKIP in statement.options for statement in test.examples)]


def public_examples() -> list[doctest.DocTest]:
    """The examples of all public names, each once."""
    found: dict[str, doctest.DocTest] = {}
    for module in [hs, *(importlib.import_module(f"headstart.{name}") for name in SUBMODULES)]:
        for value in (getattr(module, name) for name in getattr(module, "__all__", [])):
            name = f"{getattr(value, '__module__', module.__name__)}.{getattr(value, '__qualname__', '')}"
            found |= {test.name: test for test in examples_of(value, name)}
    return list(found.values())


def failure_of(test: doctest.DocTest) -> str:
    """Report of the first statement whose output differs from the docstring; "" if there is none."""
    report: list[str] = []
    runner = doctest.DocTestRunner(AnyNumbers(), verbose=False, optionflags=doctest.FAIL_FAST)
    runner.run(test, out=report.append)
    return "".join(report)
