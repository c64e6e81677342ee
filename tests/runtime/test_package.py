"""The distribution ``headstart-runtime``: it contains what it imports, from the same files, and nothing else."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from documents import ROOT
from random_images import random_image
from small_onnx import small_onnx
from test_architecture import LAST_OF_RUNTIME, ORDER

FOLDER = ROOT / "packages" / "runtime"
PROJECT = tomllib.loads((FOLDER / "pyproject.toml").read_text())
INCLUDED: dict[str, str] = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
OWN = ("../../LICENSE", "../../headstart/py.typed", "../../headstart/runtime")


def listed() -> dict[str, str]:
    """Module -> place in the wheel, as pyproject.toml lists them; without the folder ``runtime``."""
    return {source: target for source, target in INCLUDED.items() if source not in OWN}


def imports_of(module: str, source: str) -> set[str]:
    """Modules of the package that a module imports, where type checkers alone import them as well."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = module.split(".")[: -node.level]
            names = (
                [".".join([*folder, node.module])] if node.module else [".".join([*folder, a.name]) for a in node.names]
            )
            found |= set(names)
    return found


def missing(modules: set[str]) -> set[str]:
    """Modules that the given ones import and that are not among them."""
    sources = {name: (ROOT / "headstart" / f"{name.replace('.', '/')}.py").read_text() for name in modules}
    return {own for name, source in sources.items() for own in imports_of(name, source)} - modules


RUNTIME = set(ORDER[: ORDER.index(LAST_OF_RUNTIME) + 1])


def test_the_wheel_lists_every_module_that_it_imports() -> None:
    assert missing(RUNTIME) == set()
    in_list = {source.removeprefix("../../headstart/").removesuffix(".py").replace("/", ".") for source in listed()}
    assert in_list | {name for name in RUNTIME if name.startswith("runtime.")} == RUNTIME
    assert {target.replace("headstart_runtime/", "../../headstart/") for target in listed().values()} == set(listed())


def test_a_module_that_is_not_listed_is_seen() -> None:
    assert missing(RUNTIME - {"data.tiff"}) == {"data.tiff"}


def test_the_three_dependencies_are_those_of_headstart() -> None:
    headstart = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    own = PROJECT["project"]["dependencies"]
    assert [re.split("[>=<]", entry)[0] for entry in own] == ["numpy", "onnxruntime", "pillow"]
    assert set(own) <= {re.sub(" *#.*", "", entry) for entry in headstart}


def test_third_party_imports_are_the_three() -> None:
    found: set[str] = set()
    for name in RUNTIME:
        for node in ast.walk(ast.parse((ROOT / "headstart" / f"{name.replace('.', '/')}.py").read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").partition(".")[0])
    others = found - set(sys.stdlib_module_names)
    assert others == {"numpy", "PIL", "onnxruntime", "pillow_heif", "pyarrow", "fastapi", "starlette"} & others
    optional = others - {"numpy", "PIL", "onnxruntime"}
    assert optional <= {"pillow_heif", "pyarrow", "starlette"}  # if installed, to write Parquet, for type checkers


def test_the_dockerfile_installs_the_wheel_that_make_builds() -> None:
    dockerfile, makefile = (FOLDER / "Dockerfile").read_text(), (ROOT / "Makefile").read_text()
    assert "COPY dist/*.whl" in dockerfile
    assert re.search(
        r"^runtime-wheel:\n\t.* --wheel-dir packages/runtime/dist packages/runtime$", makefile, re.MULTILINE
    )
    assert 'ENTRYPOINT ["headstart-runtime"]' in dockerfile


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without network: with hatchling if it is installed, else as pip can."""
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(out), str(FOLDER)]
    if importlib.util.find_spec("hatchling") is not None:
        build.insert(-1, "--no-build-isolation")
    done = subprocess.run(build, capture_output=True, text=True)
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip("hatchling is not installed, and no package index is reachable")
    assert done.returncode == 0, done.stderr
    (file,) = out.glob("headstart_runtime-*.whl")
    return file


@pytest.mark.slow
def test_the_wheel_contains_the_same_files_and_predicts_without_headstart(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        names = {name for name in archive.namelist() if ".dist-info" not in name}
    assert not [name for name in names if "__pycache__" in name or not name.startswith("headstart_runtime/")]
    for source, target in listed().items():
        assert (tmp_path / "site" / target).read_bytes() == (FOLDER / source).read_bytes()
    small_onnx(tmp_path / "m.onnx")
    random_image(0, (250, 20, 20)).save(tmp_path / "red.png")
    script = (
        "import sys; sys.path.insert(0, 'site'); from headstart_runtime import Prediction, load; "
        "found = load('m.onnx').predict('red.png'); assert isinstance(found, Prediction); import json; "
        "ours = [n for n in sys.modules if n.partition('.')[0] in ('headstart', 'torch', 'scipy', 'onnx')]; "
        "print(json.dumps([found.label, ours]))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env=_plain())
    assert json.loads(done.stdout or "null") == ["red", []], done.stderr
    script = "import sys; sys.path.insert(0, 'site'); from headstart_runtime.runtime.command import run; run()"
    command = [sys.executable, "-c", script, "predict", "m.onnx", "red.png", "gone.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=_plain())
    assert done.stdout.splitlines()[0].startswith("red.png\tred "), done.stderr
    assert done.stdout.splitlines()[1] == "gone.png\tno such file or directory"


@pytest.mark.slow
def test_a_heic_file_without_its_decoder_names_the_extra_of_this_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    small_onnx(tmp_path / "m.onnx")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    script = (
        "import sys; sys.path.insert(0, 'site'); "
        "import importlib.util as u; find = u.find_spec; "
        "u.find_spec = lambda name, *rest: None if name == 'pillow_heif' else find(name, *rest); "
        "from headstart_runtime.runtime.command import run; run()"
    )
    command = [sys.executable, "-c", script, "predict", "m.onnx", "a.heic"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=_plain())
    assert 'Reading HEIC requires an extra: pip install "headstart-runtime[heif]"' in done.stdout, done.stderr
    assert 'heif = ["pillow-heif' in (FOLDER / "pyproject.toml").read_text()


def _plain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
