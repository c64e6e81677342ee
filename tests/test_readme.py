"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from pictures import picture, write_classes
from typer.main import get_command

from headstart import cli

ROOT = Path(cli.__file__).parent.parent
README = (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else ""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    write_classes(folder / "flowers", {"roses": 25, "tulips": 25})
    for number, path in enumerate(sorted((folder / "flowers").glob("*/*.png"))):
        picture(number, (90 + 60 * (path.parent.name == "roses"), 90, 90)).save(path.with_suffix(".jpg"))
        path.unlink()
    write_classes(folder / "orchids", {"orchids": 20}, first_seed=700)
    picture(500).save(folder / "rose.jpg")
    return folder


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("headstart ")]


@pytest.mark.exhaustive
def test_every_command_of_the_readme_works(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    elsewhere = {"demo", "push", "serve", "watch"}  # they need a hub, or go on until they are stopped
    assert {arguments[0] for arguments in commands()} | elsewhere == set(get_command(cli.app).commands)  # type: ignore[attr-defined]
    for arguments in commands():
        monkeypatch.setattr("sys.argv", ["headstart", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
        assert capsys.readouterr().out


@pytest.mark.exhaustive
def test_every_python_block_of_the_readme_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert len(blocks("python")) == 4
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert re.search(r"^accuracy [01]\.\d+ \(", capsys.readouterr().out, re.MULTILINE)


def test_the_tree_in_the_readme_names_every_module() -> None:
    tree = README[README.index("## The tree") :]
    for path in (ROOT / "headstart").rglob("*.py"):
        if not path.name.startswith("__"):
            assert path.name in tree, path


def test_the_package_carries_what_the_wheel_needs() -> None:
    assert (ROOT / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert (ROOT / "headstart" / "evaluation" / "templates" / "report.html").exists()
