"""Dependencies: at most 20 required ones, each of them used, and nothing imported that is not declared."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from documents import ROOT

from headstart.backbone.offline_packages import OFFLINE_PACKAGES
from headstart.extras import EXTRAS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def normal(name: str) -> str:
    return re.split(r"[^\w.-]", name.replace("_", "-").replace(".", "-").lower())[0]


ISOLATED = "litert", "coreml", "executorch"
"""Formats whose programs run in environments with packages of their own (exports/environments)."""


def is_isolated(path: Path) -> bool:
    """Whether a program runs in an isolated environment."""
    return path.stem.partition("_")[0] in ISOLATED and path.parent.name in ("converters", "readers")


def imported(isolated: bool = False) -> set[str]:
    """Top-level modules of other packages that the package imports anywhere, or its programs in environments."""
    found: set[str] = set()
    for path in (ROOT / "headstart").rglob("*.py"):
        if is_isolated(path) != isolated:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").split(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "import_quietly":
                found |= {
                    str(ast.literal_eval(own)).split(".")[0] for own in node.args if isinstance(own, ast.Constant)
                }
    found |= {package.name for package in OFFLINE_PACKAGES.values()}  # opened by the names in that table
    return found - set(sys.stdlib_module_names) - {"headstart"}


MADE_BY = {
    "markupsafe": "jinja2",
    "nncf": "nncf",
    "openvino": "openvino",
    "pillow_heif": "pillow-heif",
    "pydantic": "fastapi",
    "starlette": "fastapi",
}
"""Module -> the declared package that installs it, where it may be missing here or comes with another one."""


def packages_of(modules: set[str]) -> set[str]:
    known = packages_distributions()
    return {normal(MADE_BY.get(module) or known[module][0]) for module in modules}


def test_at_most_20_libraries_are_required() -> None:
    """Packages that contain weights and no code are not libraries."""
    weights = {normal(package.name) for package in OFFLINE_PACKAGES.values()}
    required = {normal(entry) for entry in PROJECT["dependencies"]}
    assert weights < required
    assert len(required - weights) <= 20


@pytest.mark.slow
def test_every_import_is_declared_and_every_declaration_is_imported() -> None:
    extras = PROJECT["optional-dependencies"]
    optional = {normal(entry) for extra in EXTRAS for entry in extras[extra]}
    required = {normal(entry) for entry in PROJECT["dependencies"]}
    used = packages_of(imported())
    assert used - required - optional == set()
    assert required - used == set()
    assert optional - used - {"onnxscript", "gcsfs", "s3fs"} == set()  # torch.onnx and fsspec import these


def test_what_isolated_programs_import_is_pinned_in_their_environments_or_required() -> None:
    exports = ROOT / "headstart" / "exports"
    pins = "\n".join(file.read_text() for file in (exports / "environments").glob("*.txt"))
    pinned = {line.partition("==")[0].strip().lower().replace("-", "_") for line in pins.splitlines()}
    siblings = {path.stem for path in exports.rglob("*.py")}
    required = {"torch", "timm", "numpy", "PIL", "safetensors"}
    assert imported(isolated=True) - {package.name for package in OFFLINE_PACKAGES.values()} <= (
        pinned | siblings | required
    )


@pytest.mark.slow
def test_modules_of_an_extra_are_those_that_it_installs() -> None:
    for extra, modules in EXTRAS.items():
        declared = {normal(entry) for entry in PROJECT["optional-dependencies"][extra]}
        assert packages_of(set(modules)) == declared, extra


def test_all_is_every_extra_and_make_installs_it() -> None:
    assert PROJECT["optional-dependencies"]["all"] == [f"headstart[{','.join(sorted(EXTRAS))}]"]
    assert "'.[all,dev]'" in (ROOT / "Makefile").read_text()


def test_the_record_names_every_required_dependency() -> None:
    record = (ROOT / "docs" / "decisions" / "dependencies.md").read_text()
    names = [Path(re.split(r"[><=\[ ]", entry)[0]).name for entry in PROJECT["dependencies"]]
    assert [name for name in names if f"`{name}`" not in record] == []
