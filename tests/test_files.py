from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from random_images import random_image, write_classes
from small_models import small_model

import headstart as hs
from headstart.backbone import load_backbone
from headstart.cache.entries import cache_root
from headstart.data import inspect, open_folder, open_table
from headstart.data.listing import find_images
from headstart.data.scan import scan
from headstart.errors import CacheError, HeadstartError, OptionError
from headstart.files import (
    check_suffix,
    csv_text,
    inert,
    json_text,
    original,
    path_of,
    read_rows,
    unicode_text,
    user_path,
    write_csv_file,
)
from headstart.runs.folder import choose_run_folder
from headstart.serve.corrections import corrections_folder

NOBODY = "~nosuchuser/x"


def _calls(path: Any) -> dict[str, Any]:
    """Every public function with a path argument."""
    return {
        "open_data": lambda: hs.open_data(path),
        "open_folder": lambda: open_folder(path),
        "open_table": lambda: open_table(path),
        "load": lambda: hs.load(path),
        "load_run": lambda: hs.load_run(path),
        "evaluate": lambda: hs.evaluate(path),
        "report": lambda: hs.report(path),
        "push": lambda: hs.push(path, "a/b"),
        "export": lambda: hs.export(path),
        "verify": lambda: hs.verify(path, path),
        "resume": lambda: hs.resume(path),
        "train": lambda: hs.train(path),
        "check": lambda: hs.check(path),
        "inspect": lambda: inspect(path),
        "compare": lambda: hs.compare(path),
        "prepare": lambda: hs.prepare(path),
        "compare_models": lambda: hs.compare_models(path, path, path),
        "load_backbone": lambda: load_backbone(weights=path),
        "find_images": lambda: find_images(path),
        "choose_run_folder": lambda: choose_run_folder(path, Path("data")),
        "check_suffix": lambda: check_suffix(path, [".csv"]),
        "corrections_folder": lambda: corrections_folder(path),
        "cache_root": lambda: cache_root(path),
    }


@pytest.mark.parametrize("name", _calls(""))
def test_an_unknown_home_folder_is_the_same_error_everywhere(name: str) -> None:
    for path in (NOBODY, Path(NOBODY)):
        with pytest.raises(OptionError, match="no user 'nosuchuser' on this machine"):
            _calls(path)[name]()


@pytest.mark.parametrize("name", _calls(""))
def test_an_invalid_path_is_the_same_error_everywhere(name: str) -> None:
    for path in (3, b"bytes", "a\0b", "\ud800", ["a", "b"], {}, 1.5):
        with pytest.raises(HeadstartError, match="path"):
            _calls(path)[name]()


def test_home_folders_are_expanded_in_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HEADSTART_CACHE", "~/cache")
    write_classes(home / "data", {"blue": 2, "red": 2})
    assert cache_root() == home / "cache"
    assert len(hs.open_data("~/data")) == 4
    assert find_images("~/data")[0] == str(home / "data" / "blue" / "0.png")
    scan(find_images("~/data"), cache="~/other")  # type: ignore[arg-type]
    small_model().save("~/m.safetensors")
    assert hs.load("~/m.safetensors").classes == ("blue", "green", "red")
    hs.load("~/m.safetensors").predict(["~/data/blue/0.png"])
    assert choose_run_folder("~/run", Path("data")) == home / "run"
    assert {path.name for path in home.iterdir()} == {"data", "other", "m.safetensors"}
    assert not list(elsewhere.iterdir())


def test_a_file_whose_name_begins_with_a_tilde_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    random_image(0).save("~1.png")
    assert user_path("~1.png") == Path("~1.png")
    assert find_images("~1.png") == ["~1.png"]


def test_the_error_for_a_missing_home_folder_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container under a user id without an entry in /etc/passwd."""
    for name in ("HEADSTART_CACHE", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(_uid: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(CacheError, match=r"this user has no home folder.*Set HEADSTART_CACHE"):
        cache_root()
    with pytest.raises(OptionError, match="this user has no home folder"):
        user_path("~/data")


def test_a_cache_folder_of_an_unknown_user_is_a_one_line_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "headstart", "cache"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"HEADSTART_CACHE": NOBODY},
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: no cache folder: ~nosuchuser/x: no user 'nosuchuser'")
    assert done.stderr.count("\n") == 1


STRANGE = ["=1+1", "+x", "-x", "@home", "\tx", "'=1", "''=x", "＝1", "-"]
PLAIN = ["", "x", "a=b", "-1", "+2.5e-3", "-.5", "'quoted'", "-inf", "nan", "0.97"]


def test_no_cell_of_a_table_is_a_formula_and_all_are_read_back() -> None:
    for cell in STRANGE:
        assert inert(cell) == f"'{cell}"
    for cell in PLAIN:
        assert inert(cell) == cell
    for cell in STRANGE + PLAIN:
        assert original(inert(cell)) == cell


def test_csv_is_read_back_unchanged(tmp_path: Path) -> None:
    rows = [["path", "label", "@column"], *([f"{i}.png", cell, cell] for i, cell in enumerate(STRANGE + PLAIN))]
    write_csv_file(tmp_path / "t.csv", csv_text(rows))
    assert b"\n=1" not in (tmp_path / "t.csv").read_bytes()
    read = read_rows(tmp_path / "t.csv")
    assert [list(row.values()) for row in read] == rows[1:]
    assert list(read[0]) == rows[0]


def test_file_names_that_are_not_utf8_are_written_as_text_and_found_again(tmp_path: Path) -> None:
    name = os.fsdecode("Gänse 图.png".encode() + b"\xe4\x80")
    (tmp_path / name).write_bytes(b"x")
    shown = "Gänse 图.png\\xe4\\x80"
    assert unicode_text(name) == shown
    assert path_of(str(tmp_path / shown)) == str(tmp_path / name)
    assert user_path(tmp_path / shown) == tmp_path / name
    assert path_of(str(tmp_path / "gone\\xe4")) == str(tmp_path / "gone\\xe4")
    (tmp_path / shown).write_bytes(b"another")
    assert path_of(str(tmp_path / shown)) == str(tmp_path / shown)
    document = {name: [name, (name, 1, None, {"a": name})]}
    assert json.loads(json_text(document)) == {shown: [shown, [shown, 1, None, {"a": shown}]]}
    assert json_text(document).isascii()
    assert unicode_text("\ud800") == "\\ud800"
