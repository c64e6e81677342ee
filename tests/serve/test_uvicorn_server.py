"""Undocumented names of uvicorn, and the capped version."""

from __future__ import annotations

import ast
import asyncio
import inspect
import tomllib
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

import headstart.serve

ROOT = Path(headstart.serve.__file__).parents[2]
MODULE = "uvicorn_server.py"


def test_the_undocumented_names_of_uvicorn_are_there() -> None:
    assert inspect.isgeneratorfunction(uvicorn.Server.capture_signals.__wrapped__)  # type: ignore[attr-defined]
    assert "with self.capture_signals()" in inspect.getsource(uvicorn.Server.serve)
    assert "self.servers" in inspect.getsource(uvicorn.Server.startup)
    assert "config.http_protocol_class(" in inspect.getsource(uvicorn.Server.startup)
    assert issubclass(H11Protocol, asyncio.Protocol)


def test_uvicorn_is_imported_in_one_module_and_no_private_attribute_of_a_web_library_is_used() -> None:
    folder = Path(headstart.serve.__file__).parent
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text())
        imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        imported += [own.name for node in ast.walk(tree) if isinstance(node, ast.Import) for own in node.names]
        assert path.name == MODULE or not any(name.split(".")[0] == "uvicorn" for name in imported), path
        private = [
            ast.unparse(node)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
            and ast.unparse(node.value) not in ("self", "cls", "os")
        ]
        assert private == [], path


def test_the_version_of_uvicorn_has_a_cap_that_holds_the_installed_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *chain(*project.get("optional-dependencies", {}).values())]
    (capped,) = {own for own in requirements if own.startswith("uvicorn>") and "," in own}
    cap = capped.split("<")[1]
    assert "." in cap, "a minor version: undocumented names change with those"
    assert tuple(map(int, version("uvicorn").split(".")[:2])) < tuple(map(int, cap.split(".")))
