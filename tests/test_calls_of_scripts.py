"""Benchmarks, scripts and examples, most of which no test runs: they import and call what the package has."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT

SCRIPTS = sorted(path for folder in ("benchmarks", "scripts", "examples") for path in (ROOT / folder).glob("*.py"))


def imported(tree: ast.Module) -> dict[str, Any]:
    """What a script imports from the package, by the names that it uses.

    Raises:
        AttributeError, ImportError: the package has no such name.
    """
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.asname or "headstart": importlib.import_module(a.name) for a in node.names if _is_ours(a.name)}
        elif isinstance(node, ast.ImportFrom) and _is_ours(node.module or ""):
            module = importlib.import_module(node.module or "")
            found |= {a.asname or a.name: getattr(module, a.name, None) or _submodule(module, a) for a in node.names}
    return found


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] == "headstart"


def _submodule(module: Any, alias: ast.alias) -> Any:
    return importlib.import_module(f"{module.__name__}.{alias.name}")


def wrong_calls(source: str) -> list[str]:
    """Calls with a keyword that the package's function does not have, as "line: call"."""
    tree = ast.parse(source)
    names, wrong = imported(tree), []
    for node in ast.walk(tree):
        function = _called(node.func, names) if isinstance(node, ast.Call) else None
        if not str(getattr(function, "__module__", "")).startswith("headstart"):
            continue
        assert isinstance(node, ast.Call)
        parameters = inspect.signature(function).parameters.values()
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            known = {one.name for one in parameters}
            wrong += [f"{node.lineno}: {k.arg}" for k in node.keywords if k.arg is not None and k.arg not in known]
    return wrong


def _called(function: ast.expr, names: dict[str, Any]) -> Any:
    if isinstance(function, ast.Name):
        return names.get(function.id)
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return getattr(names.get(function.value.id), function.attr, None)
    return None


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_script_calls_what_there_is(script: Path) -> None:
    assert wrong_calls(script.read_text()) == []


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("import headstart as hs\nhs.evaluate('x', device='cpu')", []),
        ("import headstart as hs\nhs.evaluate('x', devices='cpu')", ["2: devices"]),
        ("from headstart.data.decode import decode\ndecode('x', at_least=3)", ["2: at_least"]),
        ("from headstart.data import decode\ndecode.decode('x', at_least=3)", ["2: at_least"]),
    ],
)
def test_an_argument_that_there_is_not_is_seen(source: str, wrong: list[str]) -> None:
    assert wrong_calls(source) == wrong


def test_an_import_of_what_there_is_not_is_seen() -> None:
    with pytest.raises(ImportError):
        wrong_calls("from headstart.data.decode import no_such_function")
