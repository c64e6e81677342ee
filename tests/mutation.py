"""Mutation testing: each small change of a module must make one of its tests fail.

    python tests/mutation.py                           # every module of MODULES
    python tests/mutation.py serve/guard               # one of them
    python tests/mutation.py serve/guard --sample 100  # of it, a hundred drawn mutants

Everything is imported and collected once. For each mutant a fork of that process puts the changed code into the
functions that are there, and runs the tests that reach the changed line, the fastest first, until one fails. So a
mutant costs its tests, not the import of torch; and decorated functions, class bodies and constants are changed too.

Printed: the survivors, each with its line, and a table; a line of JSON for each module.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import inspect
import json
import os
import pickle
import random
import select
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

MODULES = {
    "data/splits": ["data/test_splits.py"],
    "trust/temperature": ["trust/test_temperature.py"],
    "trust/thresholds": ["trust/test_thresholds.py"],
    "trust/ood": ["trust/test_ood.py"],
    "evaluation/metrics": ["evaluation/test_metrics.py"],
    "runs/folder": ["runs/test_folder.py"],
    "cache/row_store": [
        "cache/test_row_store.py",
        "cache/test_entries.py",
        "cache/test_budget.py",
        "cli/test_cache.py",
    ],
    "cache/entries": ["cache/test_row_store.py", "cache/test_entries.py", "cache/test_budget.py", "cli/test_cache.py"],
    "cache/budget": ["cache/test_row_store.py", "cache/test_entries.py", "cache/test_budget.py", "cli/test_cache.py"],
    "cache/verify": ["cache/test_row_store.py", "cache/test_entries.py", "cache/test_budget.py", "cli/test_cache.py"],
    "serve/middleware": ["serve/test_middleware.py"],
}
"""Module -> files of its tests."""

LEAST_SECONDS = 20.0
"""What the tests of a mutant may take at least; one that takes longer, and ten times as long as without it, is dead."""

OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.And: ast.Or, ast.Or: ast.And, ast.Lt: ast.LtE, ast.LtE: ast.Lt,
    ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A changed module.

    Attributes:
        line: that was changed.
        change: in words.
        source: of the whole module.
    """

    line: int
    change: str
    source: str


def mutants_of(source: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    tree = ast.parse(source)
    found = []
    for node, change, words in _changes(tree):
        undo = change()
        found.append(Mutant(node.lineno, words, ast.unparse(ast.fix_missing_locations(tree))))
        undo()
    return sorted(found, key=lambda own: own.line)


Undo = Callable[[], None]
Change = tuple[Any, Callable[[], Undo], str]


def _changes(tree: ast.Module) -> Iterator[Change]:
    skipped = _left_alone(tree)
    for node in ast.walk(tree):
        if id(node) not in skipped:
            yield from _changes_of(node)


def _left_alone(tree: ast.Module) -> set[int]:
    """Annotations, docstrings, messages of errors, parts of formatted text, names of public things: ids of nodes."""
    roots: list[ast.AST] = []
    for node in ast.walk(tree):
        roots += [own for own in (getattr(node, "annotation", None), getattr(node, "returns", None)) if own]
        roots += getattr(node, "decorator_list", [])
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            roots.append(node)
        if isinstance(node, ast.JoinedStr):
            roots += [own for own in node.values if isinstance(own, ast.Constant)]
            roots += [own.format_spec for own in node.values if isinstance(own, ast.FormattedValue) and own.format_spec]
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            roots += [own for own in ast.walk(node.exc) if isinstance(own, ast.Constant) and isinstance(own.value, str)]
        if isinstance(node, ast.keyword) and node.arg == "strict":  # of zip: the program's own check of itself
            roots.append(node)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__all__", "Result"):
            roots.append(node)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            roots.append(node)
    return {id(own) for root in roots for own in ast.walk(root)}


def _changes_of(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in OPERATORS:
        new = OPERATORS[type(node.op)]()
        yield node, _setting(node, "op", new), f"{type(node.op).__name__} -> {type(new).__name__}"
    if isinstance(node, ast.Compare):
        for place, op in enumerate(node.ops):
            new = OPERATORS[type(op)]()
            yield node, _placing(node.ops, place, new), f"{type(op).__name__} -> {type(new).__name__}"
    if isinstance(node, ast.If | ast.While | ast.IfExp) and not isinstance(node.test, ast.Constant):
        yield node.test, _setting(node, "test", ast.UnaryOp(ast.Not(), node.test)), "condition negated"
    if isinstance(node, ast.comprehension):
        for place, test in enumerate(node.ifs):
            yield test, _placing(node.ifs, place, ast.Constant(True)), "condition of a comprehension is True"
    if isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield node, _setting(node, "value", ast.Constant(None)), "returns None"
    for name in ("value", "left", "right", "operand", "test"):
        own = getattr(node, name, None)
        if isinstance(own, ast.UnaryOp) and isinstance(own.op, ast.Not | ast.USub) and not _is_number(own.operand):
            yield own, _setting(node, name, own.operand), f"without {type(own.op).__name__}"
    if isinstance(node, ast.Constant) and (new := _other(node.value)) is not node.value:
        yield node, _setting(node, "value", new), f"{node.value!r} -> {new!r}"
    for name in ("body", "orelse", "finalbody"):
        body = getattr(node, name, None)
        for place, own in enumerate(body if isinstance(body, list) else []):
            if isinstance(own, ast.Expr) and isinstance(own.value, ast.Call | ast.Await):
                yield own, _placing(body, place, ast.Pass()), f"without {ast.unparse(own)[:60]}"
            if isinstance(own, ast.Raise):
                yield own, _placing(body, place, ast.Pass()), "does not raise"
            if isinstance(own, ast.Break | ast.Continue):
                new = ast.Continue() if isinstance(own, ast.Break) else ast.Break()
                yield own, _placing(body, place, new), f"{type(own).__name__} -> {type(new).__name__}"


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant)


def _other(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}XX"
    return value


def _setting(node: ast.AST, name: str, new: object) -> Callable[[], Undo]:
    def change() -> Undo:
        old = getattr(node, name)
        setattr(node, name, new)
        return lambda: setattr(node, name, old)

    return change


def _placing(nodes: list[Any], place: int, new: object) -> Callable[[], Undo]:
    def change() -> Undo:
        old = nodes[place]
        nodes[place] = new
        return lambda: nodes.__setitem__(place, old)

    return change


def put_in(module: types.ModuleType, source: str) -> None:
    """Gives the functions, classes and constants that are there the code and values of another source."""
    spare = types.ModuleType(module.__name__)
    spare.__file__ = module.__file__
    own = sys.modules[module.__name__]
    sys.modules[module.__name__] = spare  # dataclasses look up their module there
    try:
        exec(compile(source, str(module.__file__), "exec"), spare.__dict__)
    finally:
        sys.modules[module.__name__] = own
    for name, new in vars(spare).items():
        old = vars(module).get(name)
        if name.startswith("__") or old is None:
            continue
        if getattr(old, "__module__", None) == module.__name__ and (inspect.isclass(old) or callable(old)):
            _take_over(old, new)
        elif not isinstance(old, types.ModuleType) and _differs(old, new):
            for other in list(sys.modules.values()):
                if vars(other).get(name) is old if isinstance(other, types.ModuleType) else False:
                    setattr(other, name, new)


def _differs(old: object, new: object) -> bool:
    return type(old) is type(new) and isinstance(old, int | float | str | tuple | frozenset | dict) and old != new


def _take_over(old: Any, new: Any) -> None:
    if inspect.isclass(old):
        for name, own in vars(new).items():
            there = vars(old).get(name)
            if isinstance(own, int | float | str | bool) and name != "__module__" and own != there:
                setattr(old, name, own)
            elif name == "__init__" or not name.startswith("__") or callable(own):
                for part in ("fget", "fset", "func", "__func__"):
                    if getattr(own, part, None) is not None and getattr(there, part, None) is not None:
                        _take_over(getattr(there, part), getattr(own, part))
                if isinstance(own, types.FunctionType) and isinstance(there, types.FunctionType):
                    _take_over(there, own)
        return
    old, new = inspect.unwrap(old), inspect.unwrap(new)
    if isinstance(old, types.FunctionType) and isinstance(new, types.FunctionType):
        if len(old.__code__.co_freevars) == len(new.__code__.co_freevars):
            old.__code__ = new.__code__
        old.__defaults__, old.__kwdefaults__ = new.__defaults__, new.__kwdefaults__


@dataclass
class Found:
    """What became of a module's mutants."""

    module: str
    mutants: int = 0
    killed: int = 0
    survivors: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


class Mutation:
    """A plugin of pytest that runs no test itself, but forks that do."""

    def __init__(self, name: str, sample: int, lines: range | None) -> None:
        self.name, self.sample, self.lines = name, sample, lines
        self.file = ROOT / "headstart" / f"{name}.py"
        self.found = Found(name)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """All mutants, one after the other."""
        began = time.monotonic()
        module = importlib.import_module("headstart." + self.name.replace("/", "."))
        if Path(str(module.__file__)) != self.file:
            raise pytest.UsageError(f"the tests import {module.__file__}: set PYTHONPATH to {ROOT}")
        source = self.file.read_text()
        reached = _in_a_fork(lambda: self._reached(session.items), 600, loud=True)
        if not isinstance(reached, dict):
            raise pytest.UsageError("without a mutant the tests end early, or take more than 10 minutes")
        spans = _spans(source)
        mutants = [own for own in mutants_of(source) if self.lines is None or own.line in self.lines]
        if self.sample and self.sample < len(mutants):
            mutants = sorted(random.Random(0).sample(mutants, self.sample), key=lambda own: own.line)
        for mutant in mutants:
            span = spans.get(mutant.line)
            tests = [
                (reached[item.nodeid][0], item)
                for item in session.items
                if item.nodeid in reached and (span is None or not reached[item.nodeid][1].isdisjoint(span))
            ]
            tests.sort(key=lambda own: own[0])
            limit = max(LEAST_SECONDS, 10 * sum(seconds for seconds, _ in tests))
            dead = bool(tests) and _in_a_fork(functools.partial(_dies, module, mutant, [i for _, i in tests]), limit)
            self.found.mutants += 1
            self.found.killed += dead is not False
            if dead is False:
                text = source.splitlines()[mutant.line - 1].strip()
                self.found.survivors.append({"line": mutant.line, "change": mutant.change, "text": text})
                print(f"{self.name}.py:{mutant.line}: {mutant.change}: {text[:90]}", flush=True)
        self.found.seconds = time.monotonic() - began
        return True

    def _reached(self, items: list[pytest.Item]) -> dict[str, tuple[float, frozenset[int]]]:
        """Seconds, and the module's lines that are run, of each test that passes."""
        lines: set[int] = set()
        name = str(self.file)

        def line(frame: types.FrameType, event: str, _: object) -> Any:
            if event == "line":
                lines.add(frame.f_lineno)
            return line

        def call(frame: types.FrameType, _event: str, _arg: object) -> Any:
            return line if frame.f_code.co_filename == name else None

        found: dict[str, tuple[float, frozenset[int]]] = {}
        for item, after in zip(items, [*items[1:], None], strict=True):
            began = time.monotonic()
            lines.clear()
            threading.settrace(call)
            sys.settrace(call)
            passed = _passes(item, after)
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            if not passed:  # it would kill every mutant
                print(f"left out, since it fails without a mutant: {item.nodeid}", file=sys.stderr, flush=True)
                continue
            found[item.nodeid] = (time.monotonic() - began, frozenset(lines))
        return found


def _spans(source: str) -> dict[int, range]:
    """Line -> lines of the statement within a function that it belongs to; lines outside functions are left out."""
    spans: dict[int, range] = {}
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in function.body:
                for own in ast.walk(node):
                    if isinstance(own, ast.stmt):
                        body = getattr(own, "body", None)
                        end = body[0].lineno - 1 if body else own.end_lineno or own.lineno
                        for number in range(own.lineno, max(end, own.lineno) + 1):
                            spans[number] = range(own.lineno, max(end, own.lineno) + 1)
    return spans


def _passes(item: pytest.Item, after: pytest.Item | None) -> bool:
    from _pytest.runner import runtestprotocol

    return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=after))


def _dies(module: types.ModuleType, mutant: Mutant, items: list[pytest.Item]) -> bool:
    try:
        put_in(module, mutant.source)
    except Exception:
        return True
    return not all(_passes(item, after) for item, after in zip(items, [*items[1:], None], strict=True))


def _in_a_fork(work: Callable[[], Any], limit: float, *, loud: bool = False) -> Any:
    """What work returns in a fork of this process; None where it ends otherwise or takes too long.

    Args:
        work: gives something that can be pickled.
        limit: in seconds.
        loud: show what it writes to stderr.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        os.close(reading)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        if not loud:
            os.dup2(quiet, 2)
        try:
            with os.fdopen(writing, "wb") as out:
                pickle.dump(work(), out)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as given:
        data, end = b"", time.monotonic() + limit
        while (left := end - time.monotonic()) > 0 and select.select([given], [], [], left)[0]:
            piece = os.read(given.fileno(), 1 << 20)
            if not piece:
                break
            data += piece
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        return pickle.loads(data)
    except (EOFError, pickle.UnpicklingError):
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(MODULES)}; all of them if left out")
    parser.add_argument("--sample", type=int, default=0, help="of each module, so many drawn mutants")
    parser.add_argument("--lines", default="", help="FIRST-LAST: only mutants of these lines")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    first, _, last = given.lines.partition("-")
    lines = range(int(first), int(last or first) + 1) if first else None
    for name in given.modules or MODULES:
        if len(given.modules or MODULES) > 1:  # each in a separate process, so that tests cannot affect each other
            command = [sys.executable, __file__, name, "--sample", str(given.sample)]
            os.spawnv(os.P_WAIT, sys.executable, command)
            continue
        plugin = Mutation(name, given.sample, lines)
        files = [str(ROOT / "tests" / own) for own in MODULES[name] if (ROOT / "tests" / own).exists()]
        selection = ["-m", "not exhaustive"]  # the slow ones too
        code = pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *selection, *files], plugins=[plugin])
        if code not in (0, 5):
            sys.exit(int(code))
        found = plugin.found
        share = 100 * found.killed / max(1, found.mutants)
        print(f"{name}: {found.killed} of {found.mutants} mutants die, {share:.1f} %, {found.seconds:.0f} s")
        print(json.dumps(found.__dict__), flush=True)


if __name__ == "__main__":
    main()
