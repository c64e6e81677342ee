"""The public API: few names at the top level, the rest in documented submodules, and nothing private in documents."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from documents import PAGES, ROOT, blocks_of
from public_names import PUBLIC, SUBMODULES
from random_images import write_classes

import headstart as hs
from headstart import errors

LAZY_TYPES = {"Model": hs.Model}
"""Types in signatures whose modules are imported when they are needed."""


def submodules() -> list[ModuleType]:
    return [importlib.import_module(f"headstart.{name}") for name in SUBMODULES]


def names_of(module: ModuleType) -> list[str]:
    """What a public module offers: its ``__all__``, or what it defines."""
    defined = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]
    return list(getattr(module, "__all__", defined))


def test_the_top_level_has_at_most_25_names_and_each_is_documented() -> None:
    assert sorted(hs.__all__) == hs.__all__ == dir(hs)
    assert len(hs.__all__) <= 25
    for name in hs.__all__:
        assert getattr(hs, name).__doc__, name


@pytest.mark.parametrize("module", submodules(), ids=lambda module: module.__name__)
def test_names_of_a_submodule_exist_and_are_documented(module: ModuleType) -> None:
    assert names_of(module)
    for name in names_of(module):
        value = getattr(module, name)
        assert value.__doc__, name
        if name in hs.__all__ and f"{module.__name__}.{name}" != "headstart.runtime.load":
            assert value is getattr(hs, name)


def test_type_checkers_see_the_same_names_as_programs() -> None:
    packages = [hs, *(module for module in submodules() if hasattr(module, "_MODULES"))]
    assert len(packages) > 5
    for package in packages:
        tree = ast.parse(Path(str(package.__file__)).read_text())
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        seen = {alias.asname: node.module for node in imports for alias in node.names if alias.asname}
        assert seen == package._MODULES


def test_every_error_and_every_type_of_a_public_signature_has_a_public_module() -> None:
    offered = {name for module in [hs, *submodules()] for name in names_of(module)}
    assert {
        name for name, own in vars(errors).items() if inspect.isclass(own) and own.__module__ == errors.__name__
    } <= offered
    needed: dict[str, str] = {}
    for module in [hs, *submodules()]:
        for name in names_of(module):
            for where, function in _signatures(name, getattr(module, name)):
                for field, hint in typing.get_type_hints(function, localns=LAZY_TYPES).items():
                    if not field.startswith("_"):
                        needed |= {own.__name__: where for own in _classes(hint)}
    assert len(needed) > 20
    assert {name: where for name, where in needed.items() if name not in offered} == {}


def _signatures(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Public functions, methods, and the fields of dataclasses."""
    if not inspect.isclass(value):
        if callable(value):
            yield name, value
        return
    if dataclasses.is_dataclass(value):
        yield name, value
    for own, method in vars(value).items():
        method = method.fget if isinstance(method, property) else getattr(method, "__func__", method)
        if not own.startswith("_") and inspect.isfunction(method):
            yield f"{name}.{own}", method


def _classes(hint: Any) -> Iterator[type]:
    if typing.is_typeddict(hint):  # types of keyword arguments
        return
    if inspect.isclass(hint) and hint.__module__.startswith("headstart."):
        yield hint
    for part in typing.get_args(hint):
        yield from _classes(part)


@pytest.mark.parametrize("name", sorted(hs._MOVED))
def test_a_name_that_moved_says_where_it_is(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"^headstart\.{name} is now headstart\.\w+\.\w+\.$") as caught:
        getattr(hs, name)
    home, _, current = str(caught.value).split()[3].removesuffix(".").rpartition(".")
    assert current in names_of(importlib.import_module(home))
    assert home in PUBLIC


def test_a_name_that_never_was_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hs.nothing  # type: ignore[attr-defined]


def private_uses(source: str) -> list[str]:
    """Imports and ``hs.`` attributes of a Python source that are no public names."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if _root(alias.name) and alias.name not in PUBLIC]
        elif isinstance(node, ast.ImportFrom) and _root(node.module or ""):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if not _is_public(name)]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("hs", "headstart"):
            found += [node.attr] if not _is_public(f"headstart.{node.attr}") else []
    return found


def _root(name: str) -> bool:
    return name.split(".")[0] == "headstart"


def _is_public(name: str) -> bool:
    module, _, last = name.rpartition(".")
    return name in PUBLIC or (module in PUBLIC and last in names_of(importlib.import_module(module)))


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.py")), ids=lambda file: file.name)
def test_an_example_uses_public_names_only(file: Path) -> None:
    assert private_uses(file.read_text()) == []


FOR_USERS = [page for page in PAGES if page.name != "extending.md"]  # which shows contributors the package itself


@pytest.mark.parametrize("page", FOR_USERS, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_uses_public_names_only(page: Path) -> None:
    for block in blocks_of(page):
        if block.language == "python":
            assert private_uses(textwrap.dedent(block.text)) == [], block.where
    text = page.read_text()
    dotted = {f"headstart.{name}" for name in re.findall(r"`hs\.(\w+)", text)}
    dotted |= set(re.findall(r"`(headstart(?:\.[a-z]\w*)*\.[A-Za-z]\w*)\b(?!\.\w|/)", text))
    files = "_data", ".yml", ".safetensors", ".json"
    assert [name for name in dotted if not _is_public(name) and not name.endswith(files)] == []


@pytest.mark.parametrize(
    "source",
    [
        "import headstart.data.dataset",
        "from headstart.data.dataset import open_folder",
        "from headstart.data import dataset",
        "from headstart.model import load",
        "import headstart as hs\nhs.open_folder('x')",
        "import headstart as hs\nhs.model.load('x')",
    ],
)
def test_a_private_use_is_seen(source: str) -> None:
    assert private_uses(source)


def test_type_information_is_part_of_the_package() -> None:
    assert (ROOT / "headstart" / "py.typed").is_file()
    assert '[tool.hatch.build.targets.wheel]\npackages = ["headstart"]' in (ROOT / "pyproject.toml").read_text()


ODD: list[Any] = [None, "", 0, -1, 10**400, float("nan"), True, "x", b"x", [], {}, [None], {"a": 1}, object(), "a\0b"]
ODD += ["\ud800", Path("x")]
"""Values that hardly any argument takes."""

CALLS: dict[str, dict[str, Any]] = {
    "open_data": {"source": "images"},
    "load": {"run_or_model": "gone"},
    "load_run": {"folder": "gone"},
    "check": {"source": "gone"},
    "train": {"source": "gone"},
    "resume": {"folder": "gone"},
    "evaluate": {"run_or_model": "gone"},
    "report": {"run": "gone"},
    "export": {"model": "gone", "to": "onnx"},
    "push": {"run": "gone", "repository": "OWNER/NAME"},
}
"""Public function -> arguments with which it ends quickly."""


@pytest.mark.parametrize("name", CALLS)
def test_arguments_of_a_wrong_type_are_named_errors(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_classes(tmp_path / "images", {"a": 1, "b": 1}).parent)
    call = getattr(hs, name)
    assert set(CALLS[name]) <= set(inspect.signature(call).parameters)
    for argument, declared in inspect.signature(call).parameters.items():
        if declared.kind is inspect.Parameter.VAR_KEYWORD or argument in ("progress", "listener"):
            continue
        for value in ODD:
            with suppress(errors.HeadstartError):
                call(**CALLS[name] | {argument: value})
    assert {path.name for path in tmp_path.iterdir()} == {"images"}
