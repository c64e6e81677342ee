"""The mutation tester: it changes what is there, in place, and sees whether a test fails."""

from __future__ import annotations

import sys
import time
import types
from pathlib import Path

import pytest
from mutation import MODULES, ROOT, _in_a_fork, mutants_of, put_in

SOURCE = '''
"""Docstring."""
from dataclasses import dataclass
from functools import cache

LEAST = 5

@dataclass(frozen=True)
class Pair:
    first: int
    second: int = 2

    @property
    def sum(self) -> int:
        return self.first + self.second

@cache
def enough(number: int) -> bool:
    if number < 0:
        raise ValueError(f"{number}: below 0")
    return number >= LEAST and not number == 7
'''


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    own = types.ModuleType("mutated_for_tests")
    own.__file__ = "mutated_for_tests.py"
    monkeypatch.setitem(sys.modules, own.__name__, own)
    exec(compile(SOURCE, own.__file__, "exec"), own.__dict__)
    return own


def test_a_module_has_a_mutant_for_each_small_change_and_none_of_its_words() -> None:
    changes = [(own.line, own.change) for own in mutants_of(SOURCE)]
    assert changes == [
        (6, "5 -> 6"),
        (11, "2 -> 3"),
        (15, "returns None"),
        (15, "Add -> Sub"),
        (19, "condition negated"),
        (19, "Lt -> LtE"),
        (19, "0 -> 1"),
        (20, "does not raise"),
        (21, "returns None"),
        (21, "And -> Or"),
        (21, "GtE -> Gt"),
        (21, "Eq -> NotEq"),
        (21, "7 -> 8"),
    ]
    assert len({own.source for own in mutants_of(SOURCE)}) == len(changes)


def test_every_mutant_changes_what_is_there(module: types.ModuleType) -> None:
    """Also of what others hold already: a function that is cached, a class, a property."""
    pair, enough, cleared = module.Pair(1), module.enough, module.enough.cache_clear

    def facts() -> list[object]:
        cleared()
        found: list[object] = [module.Pair(1).second, pair.sum, module.LEAST]
        for number in (-1, 0, 4, 5, 6, 7, 8):
            try:
                found.append(enough(number))
            except ValueError:
                found.append("refused")
        return found

    expected = facts()
    for mutant in mutants_of(SOURCE):
        put_in(module, mutant.source)
        assert facts() != expected, mutant.change
    put_in(module, SOURCE)
    assert facts() == expected


def test_a_fork_returns_its_result_and_is_killed_after_a_timeout() -> None:
    assert _in_a_fork(lambda: [1, "é"], 20) == [1, "é"]
    assert _in_a_fork(lambda: sys.exit(1), 20) is None
    assert _in_a_fork(lambda: time.sleep(60), 0.2) is None


def test_the_modules_and_their_tests_are_there() -> None:
    for name, files in MODULES.items():
        assert (ROOT / "headstart" / f"{name}.py").exists(), name
        for file in files:
            assert (Path(__file__).parent / file).exists(), file
