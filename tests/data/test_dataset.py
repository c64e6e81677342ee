from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from random_images import random_image, write_classes

from headstart.data.dataset import open_data, open_folder, open_table
from headstart.data.listing import find_images
from headstart.errors import DataError


def test_one_folder_per_class_in_natural_order(tmp_path: Path) -> None:
    data = open_folder(write_classes(tmp_path, {"10": 2, "2": 11, "1": 1}))
    assert data.classes == ("1", "2", "10")
    assert data.splits is None
    assert [p.split(os.sep)[1] for p in data.paths if p.startswith("2")] == [f"{i}.png" for i in range(11)]
    assert data.label_names() == ["1"] + ["2"] * 11 + ["10"] * 2


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "validation", "TEST"), ("train", "dev", "testing")]
)
def test_split_folders_above_the_classes(tmp_path: Path, names: tuple[str, str, str]) -> None:
    for number, name in enumerate(names):
        write_classes(tmp_path / name, {"a": 2, "b": 1}, first_seed=10 * number)
    data = open_folder(tmp_path)
    assert data.splits == ("train",) * 3 + ("val",) * 3 + ("test",) * 3
    assert data.classes == ("a", "b")


def test_a_class_missing_from_a_split_is_named_and_shifts_nothing(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 1, "b": 1, "c": 1})
    write_classes(tmp_path / "val", {"a": 1, "c": 1}, first_seed=9)
    data = open_folder(tmp_path)
    assert data.classes == ("a", "b", "c")
    assert [data.classes[i] for i in data.labels[3:]] == ["a", "c"]
    assert "val: no image of class b" in data.notes


def test_what_is_no_class_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 2, "dog": 2, ".ipynb_checkpoints": 1})
    (tmp_path / "bird").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "cat" / "labels.csv").write_text("x")
    (tmp_path / "dog" / ".DS_Store").write_text("x")
    (tmp_path / "__MACOSX").mkdir()
    data = open_folder(tmp_path)
    assert data.classes == ("cat", "dog")
    notes = "\n".join(data.notes)
    for named in (".ipynb_checkpoints", "bird: contains no images", "notes.txt", "labels.csv", "__MACOSX"):
        assert named in notes
    assert ".DS_Store" not in notes


def test_class_folders_are_searched_in_depth_and_link_loops_end(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / "deep" / "er").mkdir(parents=True)
    random_image(5).save(tmp_path / "a" / "deep" / "er" / "x.PNG")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    assert len(open_folder(tmp_path)) == 3


def test_a_class_named_train_is_a_class(tmp_path: Path) -> None:
    assert open_folder(write_classes(tmp_path, {"bus": 1, "train": 1})).classes == ("bus", "train")


def test_class_names_in_two_unicode_forms_are_one_class(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {unicodedata.normalize("NFC", "café"): 1, "b": 1})
    write_classes(tmp_path / "val", {unicodedata.normalize("NFD", "café"): 1, "b": 1}, first_seed=5)
    data = open_folder(tmp_path)
    assert data.classes == ("b", "café")
    assert [(f.kind, f.items) for f in data.findings] == [("unicode-form", ("café",))]


def test_class_folders_that_differ_by_case_between_splits_are_a_finding(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"Rose": 1, "b": 1})
    write_classes(tmp_path / "val", {"rose": 1, "b": 1}, first_seed=5)
    data = open_folder(tmp_path)
    assert ("warning", ("Rose, rose",)) in [
        (f.severity, f.items) for f in data.findings if f.kind == "similar-class-names"
    ]


def test_a_class_folder_whose_name_is_not_utf8_gets_a_name_that_can_be_written(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "b").rename(tmp_path / os.fsdecode("Gänse".encode("cp1252")))
    data = open_folder(tmp_path)
    assert data.classes == ("Gänse", "a")
    assert all(os.path.isfile(file) for file in data.files())


def test_camera_raw_files_are_named_once_with_what_to_do(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 2, "b": 2})
    for name in ("a/5.CR2", "a/6.nef", "b/7.dng", "a/1.cr2"):  # the last has an image of its name beside it
        (tmp_path / name).write_bytes(b"x")
    data = open_folder(tmp_path)
    (finding,) = [f for f in data.findings if f.kind == "camera-raw"]
    assert finding.severity == "warning"
    assert finding.message == "3 file(s) ignored: camera raw: export it as JPEG or TIFF first"
    assert finding.items == ("a/5.CR2", "a/6.nef", "b/7.dng")
    assert [Path(path).name for path in find_images(tmp_path / "a")] == ["0.png", "1.png", "5.CR2", "6.nef"]
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"no images found.*4 file.s. ignored: camera raw: export"):
        open_folder(tmp_path)


def test_unusable_folders_say_what_was_found_and_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_data(tmp_path / "nothing")
    with pytest.raises(DataError, match="no images found"):
        open_folder(tmp_path)
    write_classes(tmp_path / "outer" / "inner", {"a": 1, "b": 1})
    with pytest.raises(DataError, match=r"one class, inner.*Did you mean .*inner"):
        open_folder(tmp_path / "outer")
    write_classes(tmp_path / "mixed" / "train", {"a": 1, "b": 1})
    write_classes(tmp_path / "mixed" / "val", {"a": 1, "b": 1})
    write_classes(tmp_path / "mixed", {"c": 1})
    with pytest.raises(DataError, match=r"are next to other folders \(c\)"):
        open_folder(tmp_path / "mixed")


def test_unlabelled_test_images_are_named_and_not_used(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 1, "b": 1})
    write_classes(tmp_path / "val", {"a": 1, "b": 1}, first_seed=5)
    (tmp_path / "test").mkdir()
    random_image(9).save(tmp_path / "test" / "1.png")
    data = open_folder(tmp_path)
    assert set(data.splits or ()) == {"train", "val"}
    assert any("test: 1 image(s) outside a class folder" in note for note in data.notes)


@pytest.mark.parametrize("kind", ["csv", "semicolon", "tsv", "bom", "parquet"])
def test_tables_of_every_kind_give_the_same(tmp_path: Path, kind: str) -> None:
    rows = [["Image", "Label", "Split", "Group"], ["b/1.png", "10", "train", "x"], ["a/ü.png", "2", "valid", ""]]
    file = tmp_path / f"t.{'csv' if kind in ('semicolon', 'bom') else kind}"
    if kind == "parquet":
        columns = {name: [row[i] for row in rows[1:]] for i, name in enumerate(rows[0])}
        columns["Label"] = [10, 2]
        parquet.write_table(pa.table(columns), file)
    else:
        mark = {"semicolon": ";", "tsv": "\t"}.get(kind, ",")
        text = "\n".join(mark.join(row) for row in rows) + "\n\n"
        file.write_text(text, encoding="utf-8-sig" if kind == "bom" else "utf-8")
    data = open_data(file)
    assert data.classes == ("2", "10")
    assert data.paths == ("b/1.png", "a/ü.png")
    assert data.splits == ("train", "val")
    assert data.groups == ("x", "")
    assert data.files()[0] == str(tmp_path / "b/1.png")


def test_faulty_tables_name_the_row_and_the_remedy(tmp_path: Path) -> None:
    def table(text: str) -> Path:
        (tmp_path / "t.csv").write_text(text)
        return tmp_path / "t.csv"

    for text, message in [
        ("", "empty"),
        ("file,kind\na,b\n", "no label column. Found: file, kind"),
        ("path,label\na,b,c\n", "row 2: 3 cells"),
        ("path,label\n", "no row"),
        ("path,label\na,x\n", "one class, x"),
        ("path,label,split\na,x,train\nb,y,eval\n", "row 3: split is 'eval'"),
        ("path,label,split\na,x,\nb,y,\n", "no row"),
        ("path,label\na,x\n\na,y\n", "row 4: a occurs twice, as 'x' and as 'y'"),
    ]:
        with pytest.raises(DataError, match=message.replace("(", r"\(")):
            open_table(table(text))
    data = open_table(table("path,label\na,x\n,y\nb,\nc,z\na,x\n"))
    assert data.paths == ("a", "c")
    (finding,) = data.findings
    assert finding.severity == "serious"
    assert finding.message == "t.csv: 2 of 5 rows are left out: 1 have no path and 1 have no label"
    assert finding.items == ("row 3: no path", "row 4: no label")
    (tmp_path / "t.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="Parquet"):
        open_table(tmp_path / "t.parquet")
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(DataError, match="expected a folder"):
        open_data(tmp_path / "a.doc")


def test_images_of_a_folder_are_found_in_natural_order(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 11})
    assert [Path(p).name for p in find_images(tmp_path)] == [f"{i}.png" for i in range(11)]
    assert find_images(tmp_path / "gone.jpg") == [str(tmp_path / "gone.jpg")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        find_images(tmp_path / "empty")
