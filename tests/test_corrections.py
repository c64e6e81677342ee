"""Corrections: a folder that training takes, each picture once, nothing outside of it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from pictures import picture, write_classes

import headstart as hs
from headstart.errors import OptionError, UnreadableImage
from headstart.serve.corrections import Corrections, corrections_folder, folder_name
from headstart.store import content_key


def data(seed: int, kind: str = "PNG") -> bytes:
    held = io.BytesIO()
    picture(seed).save(held, kind)
    return held.getvalue()


def test_what_is_kept_is_a_folder_that_training_takes(tmp_path: Path) -> None:
    own = Corrections(tmp_path / "kept")
    for seed, label in enumerate(["tulip", "rose", "rose", "Jäger, 2. Art"]):
        own.keep(data(seed), label)
    opened = hs.open_folder(own.folder)
    assert opened.classes == ("Jäger, 2. Art", "rose", "tulip")
    assert not opened.notes
    assert {Path(p).suffix for p in opened.paths} == {".png"}
    assert all((own.folder / p).read_bytes() in {data(i) for i in range(4)} for p in opened.paths)
    assert sorted(one.label for one in own.all()) == ["Jäger, 2. Art", "rose", "rose", "tulip"]


def test_a_picture_stands_there_once_and_moves_when_it_is_corrected_again(tmp_path: Path) -> None:
    own = Corrections(tmp_path / "kept")
    first = own.keep(data(1, "JPEG"), "rose")
    assert own.keep(data(1, "JPEG"), "rose").file == first.file
    moved = own.keep(data(1, "JPEG"), "tulip")
    assert (moved.key, moved.label, moved.file.suffix) == (first.key, "tulip", ".jpg")
    assert moved.file.read_bytes() == data(1, "JPEG")
    assert [p.name for p in own.folder.iterdir()] == ["tulip"]
    assert [c.label for c in own.all()] == ["tulip"]
    assert own.remove(moved.key)
    assert not own.remove(moved.key)
    assert not list(own.folder.iterdir())


@pytest.mark.parametrize(
    "label", ["", "  ", "../up", "a/b", "a\\b", ".hidden", "..", "nul\0", "line\nbreak\x1b", "x" * 300, "__MACOSX"]
)
def test_a_label_that_cannot_be_a_folder_is_refused_and_nothing_is_written(label: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError):
        Corrections(tmp_path / "kept").keep(data(0), label)
    assert not list(tmp_path.iterdir())


def test_a_label_is_written_as_training_reads_it() -> None:
    assert folder_name("  wild   rose ") == "wild rose"
    assert folder_name("Ja\u0308ger") == "J\u00e4ger"


def test_what_is_no_picture_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="text file"):
        Corrections(tmp_path / "kept").keep(b"no picture at all", "rose")
    assert not list(tmp_path.iterdir())


def test_the_folder_stands_beside_the_run_or_the_model(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "model.v2.safetensors").write_bytes(b"")
    assert corrections_folder(tmp_path / "run") == tmp_path / "run-corrections"
    assert corrections_folder(tmp_path / "model.v2.safetensors") == tmp_path / "model.v2-corrections"


def test_the_table_beside_it_holds_the_run_s_images_and_the_corrected_ones(tmp_path: Path) -> None:
    images = write_classes(tmp_path / "data", {"a": 3, "b": 3})
    run = tmp_path / "run"
    run.mkdir()
    lines = [["path", "label", "split", "content", "left_out"]]
    for place, file in enumerate(sorted(images.rglob("*.png"))):
        split = ["train", "val", ""][place % 3]
        lines.append([str(file), file.parent.name, split, content_key(file.read_bytes()).hex(), ""])
    with open(run / "split.csv", "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows(lines)
    own = Corrections(tmp_path / "run-corrections", split=run / "split.csv")
    wrong = images / "a" / "0.png"
    own.keep(wrong.read_bytes(), "b")
    fresh = own.keep(data(77), "a")
    assert own.table == tmp_path / "run-corrections.csv"
    opened = hs.open_data(own.table)
    rows = dict(zip(opened.files(), zip(opened.label_names(), opened.splits or (), strict=True), strict=True))
    assert rows[str(wrong)] == ("b", "train")
    assert rows[str(images / "a" / "1.png")] == ("a", "val")
    assert rows[str(fresh.file.resolve())] == ("a", "train")
    own.keep((images / "a" / "1.png").read_bytes(), "new")
    anew = hs.open_data(own.table)
    moved = anew.files().index(str(images / "a" / "1.png"))
    assert (anew.label_names()[moved], (anew.splits or ())[moved]) == ("new", "train")
    assert len(rows) == 5  # what the run left out stays out; what is its own stands there once
    for correction in own.all():
        own.remove(correction.key)
    assert not own.table.exists()
