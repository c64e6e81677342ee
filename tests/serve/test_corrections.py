"""Corrections: a folder that training accepts, with each image once, and no file outside it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from random_images import random_image

from headstart.data import open_folder
from headstart.data.class_folders import folder_name
from headstart.errors import OptionError, UnreadableImage
from headstart.serve.corrections import Corrections, corrections_folder

JOINED = ["می\u200cخواهم", "क्\u200dष", "\U0001f468\u200d\U0001f469\u200d\U0001f467"]
"""A Persian word, a conjunct of Hindi and a family: each needs a zero-width joiner or non-joiner."""


def data(seed: int, kind: str = "PNG") -> bytes:
    held = io.BytesIO()
    random_image(seed).save(held, kind)
    return held.getvalue()


def test_corrections_are_a_folder_that_training_accepts(tmp_path: Path) -> None:
    own = Corrections(tmp_path / "kept")
    for seed, label in enumerate(["tulip", "rose", "rose", "Jäger, 2. Art"]):
        own.keep(data(seed), label)
    opened = open_folder(own.folder)
    assert opened.classes == ("Jäger, 2. Art", "rose", "tulip")
    assert not opened.notes
    assert {Path(p).suffix for p in opened.paths} == {".png"}
    assert all((own.folder / p).read_bytes() in {data(i) for i in range(4)} for p in opened.paths)
    assert sorted(one.label for one in own.all()) == ["Jäger, 2. Art", "rose", "rose", "tulip"]


def test_an_image_is_stored_once_and_moves_to_its_latest_label(tmp_path: Path) -> None:
    own = Corrections(tmp_path / "kept")
    first = own.keep(data(1, "JPEG"), "rose")
    assert own.keep(data(1, "JPEG"), "rose").file == first.file
    moved = own.keep(data(1, "JPEG"), "tulip")
    assert (moved.key, moved.label, moved.file.suffix) == (first.key, "tulip", ".jpg")
    assert moved.file.read_bytes() == data(1, "JPEG")
    assert [p.name for p in own.folder.glob("[!.]*")] == ["tulip"]
    assert [c.label for c in own.all()] == ["tulip"]
    assert own.remove(moved.key)
    assert not own.remove(moved.key)
    assert not list(own.folder.glob("[!.]*"))


@pytest.mark.parametrize(
    "label", ["", "  ", "../up", "a/b", "a\\b", ".hidden", "..", "nul\0", "line\nbreak\x1b", "x" * 300, "__MACOSX"]
)
def test_a_label_that_cannot_be_a_folder_name_is_refused(label: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError):
        Corrections(tmp_path / "kept").keep(data(0), label)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("label", ["rose\u200b", "\u200drose", "rose\u200c", "\u200d", "wild\u202erose", "\u3164"])
def test_a_label_that_cannot_be_seen_is_refused(label: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"cannot be seen\. Remove that character"):
        Corrections(tmp_path / "kept").keep(data(0), label)


@pytest.mark.parametrize("label", JOINED)
def test_joiners_inside_a_label_are_stored_and_read_by_training(label: str, tmp_path: Path) -> None:
    own = Corrections(tmp_path / "kept")
    own.keep(data(0), label)
    own.keep(data(1), "rose")
    assert sorted(open_folder(own.folder).classes) == sorted([label, "rose"])


def test_a_label_is_written_as_training_reads_it() -> None:
    assert folder_name("  wild   rose ") == "wild rose"
    assert folder_name("Ja\u0308ger") == "J\u00e4ger"


def test_a_file_that_is_not_an_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="text file"):
        Corrections(tmp_path / "kept").keep(b"no image at all", "rose")
    assert not list(tmp_path.iterdir())


def test_the_default_folder_is_next_to_the_run_or_model(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "model.v2.safetensors").write_bytes(b"")
    assert corrections_folder(tmp_path / "run") == tmp_path / "run-corrections"
    assert corrections_folder(tmp_path / "model.v2.safetensors") == tmp_path / "model.v2-corrections"


def test_storing_an_image_reads_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Corrections(tmp_path / "kept")
    for seed in range(5):
        own.keep(data(seed), "rose")
    read: list[str] = []
    open_file = io.open

    def opened(file: object, *given: object, **more: object) -> object:
        read.append(str(file))
        return open_file(file, *given, **more)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", opened)
    monkeypatch.setattr("io.open", opened)
    monkeypatch.setattr(Path, "iterdir", lambda self: pytest.fail("the folder is listed again"))
    new = own.keep(data(9), "tulip")
    assert own.find(new.key) == new
    assert own.remove(own.all()[-1].key)
    assert not [name for name in read if Path(name).parent.name == "rose"]


def test_changes_of_other_processes_and_by_hand_are_seen(tmp_path: Path) -> None:
    one, two = Corrections(tmp_path / "kept"), Corrections(tmp_path / "kept")
    assert not two.all()
    first = one.keep(data(1), "rose")
    assert two.find(first.key) == first
    assert two.keep(data(1), "tulip").label == "tulip"
    assert one.all() == two.all()
    assert [c.label for c in one.all()] == ["tulip"]
    assert one.remove(first.key)
    assert not two.remove(first.key)
    (tmp_path / "kept" / "daisy").mkdir()
    (tmp_path / "kept" / "daisy" / "mine.png").write_bytes(data(3))
    (tmp_path / "kept" / ".index.jsonl").write_text('{"key": "gone", "label": "x", "file": "y.png", "time": 1}\n{"da')
    assert [(c.key, c.label) for c in Corrections(tmp_path / "kept").all()] == [("mine", "daisy")]
    assert open_folder(tmp_path / "kept", min_classes=1).classes == ("daisy",)


def test_a_damaged_index_is_rebuilt(tmp_path: Path) -> None:
    own = Corrections(tmp_path / "kept")
    own.keep(data(1), "rose")
    own.keep(data(2), "rose")
    index = tmp_path / "kept" / ".index.jsonl"
    for damage in (b"", b"\xff\xfe\n[]\n3\nnull\n", b"{}\n" * 9, b'{"key": 1, "label": 2, "file": 3, "time": "x"}\n'):
        index.write_bytes(damage)
        assert [c.label for c in Corrections(tmp_path / "kept").all()] == ["rose", "rose"]


def test_a_damaged_index_is_rebuilt_from_the_folder(tmp_path: Path) -> None:
    kept = Corrections(tmp_path / "kept").keep(data(1), "rose")
    damage = [
        b"[" * 100_000,
        b"[]",
        b"3",
        b"\xff",
        b'{"key": "a", "label": "b", "file": "c", "time": 1' + b"0" * 400 + b"}",
    ]
    (tmp_path / "kept" / ".index.jsonl").write_bytes(b"\n".join([*damage, b""]))
    assert [(one.key, one.label) for one in Corrections(tmp_path / "kept").all()] == [(kept.key, "rose")]
