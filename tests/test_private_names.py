"""Private names of other libraries: each in one place, with a test that it exists and a version cap."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import ROOT
from PIL import Image

PACKAGE = ROOT / "headstart"

PLACES = {
    "data/sources/remote.py": ("gcsfs", {"_request"}),
    "engine/torch_internals.py": ("torch", None),  # tests/engine/test_torch_internals.py
    "deferred_compiler.py": ("torch", None),  # tests/test_deferred_compiler.py
}
"""Module -> the library whose private names it uses, and these names; None: another test names them."""

UNDOCUMENTED = {
    "data/bit_depth.py": "pillow",  # Image.tile
    "serve/uvicorn_server.py": "uvicorn",  # tests/serve/test_uvicorn_server.py
}
"""Module -> a library that it uses undocumented names of, without an underscore."""

OURS = ("self", "cls", "super()", "headstart", "hs")
PYTHON = {"_exit", "_replace"}
"""Public names of the standard library that begin with an underscore."""


def private_names(source: str) -> Iterator[str]:
    """Private attributes and modules that a source names and does not define itself, also in strings."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    defined = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    defined |= {
        node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    for node in nodes:
        names: list[str] = []
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in OURS:
            names = [node.attr]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.ImportFrom) and not node.level and not (node.module or "").startswith("headstart"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Call) and re.search(
            r"(getattr|hasattr|import_\w+|__import__)$", ast.unparse(node.func)
        ):
            given = [own.value for own in node.args if isinstance(own, ast.Constant) and isinstance(own.value, str)]
            is_ours = bool(node.args) and ast.unparse(node.args[0]) in OURS
            names = [] if is_ours else [part for text in given for part in text.split(".")]
        yield from (name for name in names if re.match(r"_[a-zA-Z]", name) and name not in PYTHON | defined)


def test_private_names_of_other_libraries_are_used_in_the_places_that_are_listed() -> None:
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).as_posix()
        names = set(private_names(path.read_text(encoding="utf-8")))
        if names and PLACES.get(place, ("", set()))[1] is not None:
            found[place] = names
    assert found == {place: names for place, (_, names) in PLACES.items() if names}


@pytest.mark.parametrize(
    "source",
    [
        "import timm\ntimm.models._registry.x",
        "from onnx._custom import x",
        "import onnxruntime._pybind",
        "def f(): return torch._C",
        "from click.core import _private",
        "getattr(click, '_private')",
        "import_quietly('openvino._pyopenvino')",
        "def f(image): return image._size",
    ],
)
def test_a_private_name_is_seen(source: str) -> None:
    assert list(private_names(source))
    assert list(private_names("class A:\n    def _f(self, other): return self._g, other._f(), os._exit(1)")) == []


@pytest.mark.parametrize("library", sorted({name for name, _ in PLACES.values()} | set(UNDOCUMENTED.values())))
def test_a_library_whose_private_names_are_used_has_a_version_cap(library: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entries = [*project["dependencies"], *(own for extra in project["optional-dependencies"].values() for own in extra)]
    declared = [entry for entry in entries if re.split(r"[><=\[ ]", entry)[0] == library]
    assert declared
    assert all("<" in entry for entry in declared)


def test_the_places_are_there() -> None:
    for place in (*PLACES, *UNDOCUMENTED):
        assert (PACKAGE / place).is_file(), place


def test_the_private_names_of_gcsfs_exist() -> None:
    """Without its repetition of requests, see ``_gs_file_system``."""
    plain = importlib.import_module("gcsfs.core").GCSFileSystem
    assert callable(plain._request.__wrapped__)


def test_the_undocumented_names_of_pillow_exist(tmp_path: Path) -> None:
    Image.new("I;16", (3, 2)).save(tmp_path / "a.ppm")
    with Image.open(tmp_path / "a.ppm") as opened:
        (tile,) = opened.tile
    assert tile._fields == ("codec_name", "extents", "offset", "args")
