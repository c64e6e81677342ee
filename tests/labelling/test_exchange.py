"""Labels to and from other programs: what is exported is read back as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from labelling_sessions import label, named_session, open_images, truth, write_names

import headstart as hs
from headstart.errors import DataError, LabelError, OptionError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_names(tmp_path / "photos", {"blue": 20, "green": 20, "red": 20})


@pytest.mark.parametrize(
    ("kind", "name"), [("csv", "out.csv"), ("coco", "out.json"), ("label-studio", "out.json"), ("folders", "out")]
)
def test_exported_labels_are_read_back(folder: Path, tmp_path: Path, kind: str, name: str) -> None:
    with named_session(folder) as session:
        chosen = open_images(session)[::3]
        label(session, chosen)
        done = session.export(kind, tmp_path / name)
        assert done["count"] == len(chosen)
    with named_session(folder, labels=tmp_path / "other-labels.csv") as session:
        found = session.load_labels(tmp_path / name, kind)
        assert (sorted(found["changed"]), found["num_unknown"]) == (chosen, 0)
        items = session.images("labelled", 0, 99)["items"]
        assert {item["id"]: item["label"] for item in items} == {i: [truth(session.address(i))] for i in chosen}
        session.undo()
        assert session.state()["labelled"] == 0


def test_a_copy_of_the_table_is_read_from_anywhere_although_names_of_files_repeat(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_names(tmp_path / "photos" / name, {"blue": 5, "red": 5})
    copy = tmp_path / "elsewhere" / "labels.csv"
    copy.parent.mkdir()
    copy.write_text("path,label\nphotos/two/blue-1.jpg,sky\nphotos/two/none.jpg,sky\n")
    with named_session(tmp_path / "photos") as session:
        found = session.load_labels(copy, "csv")
        assert found["unknown"] == ["photos/two/none.jpg"]
        assert [session.address(image) for image in found["changed"]] == [str(tmp_path / "photos/two/blue-1.jpg")]


@pytest.mark.parametrize("kind", ["csv", "coco", "label-studio", "folders"])
def test_names_with_joiners_are_exported_read_back_and_trained_on(folder: Path, tmp_path: Path, kind: str) -> None:
    names = ["می\u200cخواهم", "क्\u200dष", "\U0001f468\u200d\U0001f469\u200d\U0001f467"]
    with named_session(folder) as session:
        for image, name in enumerate(names):
            session.act({"do": "label", "images": [image], "label": name})
        assert set(hs.open_data(session.files.table).classes) == set(names)
        out = tmp_path / ("out.csv" if kind == "csv" else "out")
        session.export(kind, out)
        session.act({"do": "clear", "images": [0, 1, 2]})
        session.load_labels(out, kind)
        assert [item["label"] for item in session.images("all", 0, 3)["items"]] == [[name] for name in names]


@pytest.mark.parametrize("kind", ["coco", "label-studio"])
def test_an_imported_class_with_the_separator_of_labels_is_refused_in_a_session_of_several(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    with named_session(folder) as session:
        session.act({"do": "label", "images": [0], "label": "a|b"})
        session.export(kind, tmp_path / "out")
    with named_session(folder, labels=tmp_path / "several.csv", multi_label=True) as session:
        with pytest.raises(LabelError, match=r"out: .* contains \|, which separates"):
            session.load_labels(tmp_path / "out", kind)
        assert session.state()["labelled"] == 0


def test_folders_without_a_labelled_image_are_not_written(folder: Path, tmp_path: Path) -> None:
    with named_session(folder) as session, pytest.raises(OptionError, match=r"No image has a label yet"):
        session.export("folders", tmp_path / "out")


def test_a_labelled_image_that_was_deleted_is_named_before_any_folder_is_written(folder: Path, tmp_path: Path) -> None:
    with named_session(folder) as session:
        label(session, open_images(session)[:3])
        Path(session.address(open_images(session)[0])).unlink()
        gone = Path(session.address(session.images("labelled", 0, 9)["items"][1]["id"]))
        gone.unlink()
        with pytest.raises(OptionError, match=rf"{gone.name}: no such file\. Restore it, or remove its label"):
            session.export("folders", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert session.export("csv", tmp_path / "out.csv")["count"] == 3


def test_a_class_that_cannot_be_a_folder_is_named_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    with named_session(folder) as session:
        session.act({"do": "label", "images": open_images(session)[:1], "label": "a/b"})
        with pytest.raises(OptionError, match=r"Class 'a/b': .* cannot contain '/'\. Rename the class"):
            session.export("folders", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_an_exported_table_trains_wherever_it_is(folder: Path, tmp_path: Path) -> None:
    with named_session(folder) as session:
        label(session, open_images(session)[:9])
        (tmp_path / "elsewhere").mkdir()
        session.export("csv", tmp_path / "elsewhere" / "t.csv")
        dataset = hs.open_data(tmp_path / "elsewhere" / "t.csv", min_classes=1)
        assert all(Path(file).is_file() for file in dataset.files())


@pytest.mark.parametrize("how", ["copy", "link"])
def test_folders_have_a_file_for_each_label_and_the_images_stay(folder: Path, tmp_path: Path, how: str) -> None:
    with named_session(folder) as session:
        chosen = open_images(session)[:5]
        label(session, chosen)
        session.act({"do": "answer", "images": [open_images(session)[-1]], "answer": "none"})
        session.export("folders", tmp_path / "out", how=how)
        files = sorted((tmp_path / "out").rglob("*.jpg"))
        assert [file.read_bytes() for file in files] == [Path(session.address(i)).read_bytes() for i in chosen]
        assert all(file.is_symlink() == (how == "link") for file in files)
        with pytest.raises(OptionError, match="not empty"):
            session.export("folders", tmp_path / "out", how=how)
        assert session.export("folders", tmp_path / "more", none=True)["count"] == 6
        assert (tmp_path / "more" / "train" / "none").is_dir()
        session.act({"do": "rename class", "name": "blue", "to": "a/b"})
        with pytest.raises(OptionError, match="folder name"):
            session.export("folders", tmp_path / "third")
    assert len(list(folder.iterdir())) == 60


def test_labels_of_uploads_to_label_studio_are_found_by_name(folder: Path, tmp_path: Path) -> None:
    def task(image: str, **rest: object) -> dict[str, object]:
        return {"data": {"image": image}, "annotations": [rest]}

    def choice(name: str) -> list[dict[str, object]]:
        return [{"type": "choices", "value": {"choices": [name]}}]

    tasks = [
        task("/data/upload/1/0a1b2c3d-blue-3.jpg", result=choice("sky")),
        task("/data/local-files/?d=photos%2Fred-4.jpg", result=choice("rose")),
        task("red-5.jpg", result=choice("rose"), was_cancelled=True),
        task("unheard-of.jpg", result=choice("rose")),
        {"image": "green-6.jpg", "choice": "leaf"},
    ]
    (tmp_path / "ls.json").write_text(json.dumps(tasks))
    with named_session(folder) as session:
        found = session.load_labels(tmp_path / "ls.json", "label-studio")
        assert found["unknown"] == ["unheard-of.jpg"]
        items = session.images("labelled", 0, 99)["items"]
        assert {i["name"]: i["label"] for i in items} == {
            "blue-3.jpg": ["sky"],
            "green-6.jpg": ["leaf"],
            "red-4.jpg": ["rose"],
        }


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("csv", "a,b\n1,2\n", "expected columns path and label"),
        ("csv", "path,label,split\nblue-1.jpg,x,dev2\n", "split is 'dev2'"),
        ("coco", "[]", "not a file of kind coco"),
        ("coco", '{"images": [], "annotations": [{"image_id": 1}], "categories": []}', "not a file of kind coco"),
        ("coco", "{}", r"not a file of kind coco \('categories' is missing\)"),
        ("coco", '{"images": [], "annotations": [], "categories": [2]}', "an entry is not of the expected type"),
        ("coco", '{"images": [], "annotations": [], "categories": [{"id": 1, "name": ""}]}', "file: The name of"),
        ("label-studio", "{", "not a file of kind label-studio"),
        ("label-studio", "[" * 100_000, "not a file of kind label-studio"),
        ("csv", f"path,label\n{'x' * 200_000},a\n", "cannot be read as a table"),
    ],
)
def test_a_file_of_another_kind_changes_nothing(
    folder: Path, tmp_path: Path, kind: str, content: str, message: str
) -> None:
    (tmp_path / "file").write_text(content)
    with named_session(folder) as session:
        before = session.files.journal.read_bytes()
        with pytest.raises((DataError, LabelError), match=message):
            session.load_labels(tmp_path / "file", kind)
        with pytest.raises(OptionError, match="expected one of csv"):
            session.load_labels(tmp_path / "file", "xml")
        with pytest.raises(OptionError, match="expected one of csv"):
            session.export("xml", tmp_path / "out")
        assert session.files.journal.read_bytes() == before


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_json_document_may_have_any_unicode_encoding(folder: Path, tmp_path: Path, encoding: str) -> None:
    task = {"data": {"image": "red-5.jpg"}, "choice": "Löwenzahn"}
    (tmp_path / "ls.json").write_text(json.dumps([task], ensure_ascii=False), encoding=encoding)
    with named_session(folder) as session:
        assert session.load_labels(tmp_path / "ls.json", "label-studio")["num_unknown"] == 0
        assert session.images("labelled", 0, 9)["items"][0]["label"] == ["Löwenzahn"]


EXCEL = {"cp1252": ";", "utf-16": "\t", "utf-8-sig": ","}
"""Encoding -> separator of a table that Excel saved."""


@pytest.mark.parametrize("encoding", EXCEL)
def test_a_table_is_read_as_excel_saves_it(folder: Path, tmp_path: Path, encoding: str) -> None:
    rows = [["path", "label"], ["photos/blue-1.jpg", "Gänseblümchen"], ["photos/red-1.jpg", "Löwenzahn"]]
    text = "\r\n".join(EXCEL[encoding].join(row) for row in rows)
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    with named_session(folder) as session:
        found = session.load_labels(tmp_path / "t.csv", "csv")
        assert (len(found["changed"]), found["num_unknown"]) == (2, 0)
        assert sorted(entry["name"] for entry in session.state()["classes"]) == ["Gänseblümchen", "Löwenzahn"]


@pytest.mark.parametrize("encoding", EXCEL)
def test_the_table_of_a_session_may_be_edited_in_excel(folder: Path, encoding: str) -> None:
    with named_session(folder) as session:
        label(session, open_images(session)[:4])
        file = session.files.table
    lines = file.read_text(encoding="utf-8").splitlines()
    path, _, *rest = lines[1].split(",")
    edited = "\r\n".join([lines[0], ",".join([path, "Gänseblümchen", *rest]), *lines[2:]])
    file.write_bytes(edited.replace(",", EXCEL[encoding]).encode(encoding))
    with named_session(folder) as session:
        items = session.images("labelled", 0, 99)["items"]
        assert len(items) == 4
        assert ["Gänseblümchen"] in [item["label"] for item in items]
