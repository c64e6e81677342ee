"""Tables: encodings, separators, columns, paths, and labels, one or any number to an image."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from commands import main
from pyarrow import parquet
from random_images import write_classes

from headstart.data.dataset import Dataset, open_data, open_table
from headstart.data.finding import Finding
from headstart.data.label_cells import join_labels
from headstart.data.listing import find_images
from headstart.errors import DataError, OptionError

LISTED = {
    "bars": "path,labels\na,sea|sand\nb,\nc,sky|sea\n",
    "semicolons": "path,tags\na,sea; sand\nb,\nc,sky;sea;sea\n",
    "commas": 'path,Labels\na,"sea,sand"\nb,\nc,"sky, sea"\n',
    "blanks": "path,labels\na,sea sand\nb,\nc,sky sea\n",
    "rows": "path,labels\na,sea\na,sand\nb,\nc,sky\nc,sea\n",
    "marks": "path,sky,sea,sand,note\na,0,1,1,x\nb,0,0,0,y\nc,1,1,0,z\n",
    "words": "path,sky,sea,sand\na,False,True,TRUE\nb,false,false,0\nc,true,1.0,0.0\n",
}


def table(folder: Path, text: str) -> Path:
    (folder / "t.csv").write_text(text)
    return folder / "t.csv"


@pytest.mark.parametrize("kind", LISTED)
def test_multi_label_cells_are_read_in_several_notations(tmp_path: Path, kind: str) -> None:
    data = open_data(table(tmp_path, LISTED[kind]))
    assert data.multi_label
    assert data.classes == ("sand", "sea", "sky")
    assert data.paths == ("a", "b", "c")
    assert data.labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 1]]
    assert data.labels.dtype == np.int64
    assert data.label_names() == ["sand|sea", "", "sea|sky"]
    assert data.label_indices() == [[0, 1], [], [1, 2]]
    assert "1 of 3 images have no label; they are used as images without any label" in data.notes
    assert ("split at spaces" in str(data.notes)) == (kind == "blanks")
    assert ("column(s) note not used" in str(data.notes)) == (kind == "marks")
    assert repr(data).endswith("3 labels, 3 images, no given splits)")


def test_a_list_in_a_parquet_table_is_a_list_of_labels(tmp_path: Path) -> None:
    labels = [["hot dog", "sauce"], [], ["sauce"]]
    parquet.write_table(pa.table({"path": ["a", "b", "c"], "labels": labels}), tmp_path / "t.parquet")
    data = open_data(tmp_path / "t.parquet")
    assert data.classes == ("hot dog", "sauce")
    assert data.labels.tolist() == [[1, 1], [0, 0], [0, 1]]


def test_multi_label_data_may_have_a_single_label(tmp_path: Path) -> None:
    data = open_data(table(tmp_path, "path,cat\na,1\nb,0\n"))
    assert data.classes == ("cat",)
    assert data.labels.tolist() == [[1], [0]]


def test_what_is_written_is_read_as_the_same(tmp_path: Path) -> None:
    for labels in ([["a b", "c,d"], []], [["a b"], ["c,d"], []], [["x; y"]]):
        cells = "\n".join(f'{i},"{cell}"' for i, cell in enumerate(join_labels(labels)))
        data = open_table(table(tmp_path, f"path,labels\n{cells}\n"))
        assert [[data.classes[i] for i in own] for own in data.label_indices()] == labels


def test_splits_and_groups_go_with_several_labels(tmp_path: Path) -> None:
    text = "path,labels,split,group\nb,x|y,val,1\na,x,train,2\nc,,train,2\n"
    data = open_table(table(tmp_path, text))
    assert data.paths == ("a", "c", "b")
    assert data.splits == ("train", "train", "val")
    assert data.groups == ("2", "2", "1")
    assert "val: no image" not in str(data.notes)
    assert "train: no image of class y" in data.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,cat,dog\na,1,0\nb,0,2\nc,0,1\n", "row 3: 'dog' is '2'. Expected 0 or 1"),
        ("path,cat,dog\na,1,0\nb,0,\nc,0,1\n", "row 3: 'dog' is ''. Expected 0 or 1"),
        ("path,kind\na,x\nb,y\n", "no label column. Found: path, kind. Expected one named label,"),
        ("path,kind\na,x\nb,y\n", "labels, tags, separated by |, or a column of 0 and 1 for each label."),
        ("path,labels\na,\nb,\n", "no labelled images found"),
        ("path,x|y\na,1\nb,0\n", "the label 'x|y' contains |"),
        ("path,labels,split\na,x,train\na,y,val\nb,y,val\n", "row 3: a occurs twice, as 'x (train)' and as 'y (val)'"),
        ("path,cat\na,1\na,0\n", "row 3: a occurs twice, as 'cat' and as ''. Keep the correct row."),
        ("path,label\na,x\na,y\n", "or name the column labels if both are correct"),
    ],
)
def test_faulty_tables_name_the_row_and_the_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as raised:
        open_table(table(tmp_path, text))
    assert message in str(raised.value)


GERMAN = "path;label\na.png;Gänseblümchen\nb.png;Löwenzahn\n"


def kinds(data: Dataset) -> dict[str, Finding]:
    return {finding.kind: finding for finding in data.findings}


@pytest.mark.parametrize(
    ("encoding", "severity"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-16", "note"),
        ("utf-16-be-bom", "note"),
        ("utf-32", "note"),
        ("cp1252", "warning"),
    ],
)
@pytest.mark.parametrize("separator", [",", ";", "\t", "|", "sep=;"])
def test_tables_of_every_usual_encoding_and_separator(
    tmp_path: Path, encoding: str, severity: str | None, separator: str
) -> None:
    text = GERMAN.replace(";", separator[-1])
    if separator.startswith("sep"):
        text = f"{separator}\r\n{text}"
    data = ("\ufeff" + text).encode("utf-16-be") if encoding == "utf-16-be-bom" else text.encode(encoding)
    (tmp_path / "t.txt").write_bytes(data)
    read = open_data(tmp_path / "t.txt")
    assert read.classes == ("Gänseblümchen", "Löwenzahn")
    assert [finding.severity for finding in read.findings] == ([severity] if severity else [])
    if severity:
        said = kinds(read)["encoding"].message
        assert ("cp1252" if severity == "warning" else encoding[:6].upper()) in said


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GERMAN.encode("utf-16-le"), "contains zero bytes (offset 1, line 1): UTF-16 without a byte order mark"),
        (b"path,label\na,x\nb,\xe4\x81\n", "line 3) nor cp1252, which Excel writes on Windows (byte 0x81 at offset 18"),
        (
            "path,label\na,äöüß\nb,é".encode() + b"\xe4\n",
            "is UTF-8 except for 1 place(s), the first byte 0xe4 at offset 26",
        ),
        (b"\xff\xfep\0a\0t\0h", "starts as UTF-16 and is damaged at byte 8"),
    ],
)
def test_other_encodings_are_named_with_the_place_and_the_remedy(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(DataError) as raised:
        open_table(tmp_path / "t.csv")
    assert message in str(raised.value)
    assert str(raised.value).endswith('Save it as "CSV UTF-8".')


def test_rows_are_counted_as_editors_do_behind_a_line_that_names_the_separator(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 4: 3 cells where the header has 2"):
        open_table(table(tmp_path, "sep=;\npath;label\na;x\nb;y;z\n"))
    with pytest.raises(DataError, match="row 4: split is 'eval'"):
        open_table(table(tmp_path, "sep=;\npath;label;split\na;x;train\nb;y;eval\n"))


def test_empty_columns_that_spreadsheets_write_are_none(tmp_path: Path) -> None:
    data = open_table(table(tmp_path, "path;label;;\na;x;;\nb;y;;\n"))
    assert data.classes == ("x", "y")


@pytest.mark.parametrize("form", ["backslashes", "no ending", "no ending, backslashes", "another Unicode form"])
def test_paths_may_be_written_as_other_systems_and_programs_do(tmp_path: Path, form: str) -> None:
    write_classes(tmp_path, {"blüte": 3, "red": 3})
    paths = [f"{name}/{i}.png" for name in ("blüte", "red") for i in range(3)]
    if form == "another Unicode form":
        for i in range(3):
            (tmp_path / "red" / f"{i}.png").rename(tmp_path / "red" / unicodedata.normalize("NFD", f"ü{i}.png"))
        paths[3:] = [f"red/ü{i}.png" for i in range(3)]
    written = [path.removesuffix(".png") if "ending" in form else path for path in paths]
    if "backslashes" in form:
        written = [path.replace("/", "\\") for path in written]
    rows = "".join(f"{path},{i // 3}\n" for i, path in enumerate(written))
    data = open_table(table(tmp_path, f"path,label\n{rows}"))
    assert all(os.path.isfile(file) for file in data.files())
    assert len(kinds(data)["path-spelling"].items) == (3 if "Unicode" in form else 6)


def test_a_path_that_fits_several_files_or_has_a_backslash_in_its_name_stays(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / "0.jpg").write_bytes(b"x")
    (tmp_path / "b\\0.png").write_bytes((tmp_path / "b" / "0.png").read_bytes())
    data = open_table(table(tmp_path, "path,label\na/0,x\nb\\0.png,y\n"))
    assert data.paths == ("a/0", "b\\0.png")
    assert not data.findings


def test_a_path_that_is_not_utf8_is_found_by_the_text_that_stands_for_it(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 1, "b": 1})
    name = os.fsdecode(b"G\xe4nse.png")
    (tmp_path / "a" / "0.png").rename(tmp_path / "a" / name)
    data = open_table(table(tmp_path, f"path,label\na/G\\xe4nse.png,x\n{tmp_path}/a/G\\xe4nse.png,x\nb/0.png,y\n"))
    assert data.paths == (f"{tmp_path}/a/{name}", f"a/{name}", "b/0.png")
    assert all(os.path.isfile(file) for file in data.files())


def test_two_rows_of_one_file_are_found_however_it_is_written(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 1})
    with pytest.raises(DataError, match=r"row 3: a/0\.png occurs twice"):
        open_table(table(tmp_path, "path,label\na/0.png,x\na\\0,y\n"))


def test_columns_of_any_name(tmp_path: Path) -> None:
    file = table(tmp_path, "Datei,Art,Teil,Pflanze,label\na,x,train,1,z\nb,y,val,2,z\n")
    names = {"path_column": "datei", "label_column": "Art", "split_column": "Teil", "group_column": "Pflanze"}
    data = open_data(file, **names)
    assert (data.paths, data.classes) == (("a", "b"), ("x", "y"))
    assert (data.splits, data.groups) == (("train", "val"), ("1", "2"))
    assert data.columns.as_options() == names
    assert open_data(file, path_column="Datei", min_classes=1).classes == ("z",)
    with pytest.raises(DataError, match=r"no path column. Found: Datei, Art, Teil, Pflanze, label\. .*--path-column"):
        open_data(file)
    with pytest.raises(DataError, match=r"no column 'Sorte', given as --label-column\. Found: Datei, Art"):
        open_data(file, path_column="Datei", label_column="Sorte")
    with pytest.raises(DataError, match="two columns are named 'label'"):
        open_table(table(tmp_path, "path,label,label\na,x,y\n"))
    with pytest.raises(OptionError, match="label_column: applies only to a table"):
        open_data(write_classes(tmp_path / "folder", {"a": 1, "b": 1}), label_column="Art")


def test_a_column_of_several_labels_may_have_any_name(tmp_path: Path) -> None:
    data = open_data(table(tmp_path, "path,Inhalt\na,sea|sand\nb,sky\n"), label_column="Inhalt")
    assert data.multi_label
    assert data.classes == ("sand", "sea", "sky")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([0.0, None, 1.0, 10.0], ("0", "1", "10")),
        ([0.0, 1.0, 1.0, 0.0], ("0", "1")),
        ([0.5, None, 1.0, 2.0], ("0.5", "1.0", "2.0")),
    ],
)
def test_whole_numbers_that_pandas_wrote_as_floats(
    tmp_path: Path, kind: str, labels: list[float | None], classes: tuple[str, ...]
) -> None:
    file = tmp_path / f"t.{kind}"
    if kind == "parquet":
        with_nan = [float("nan") if label is None else label for label in labels]
        parquet.write_table(pa.table({"path": list("abcd"), "label": with_nan}), file)
    else:
        rows = [f"{path},{'' if label is None else label}" for path, label in zip("abcd", labels, strict=True)]
        file.write_text("\n".join(["path,label", *rows]))
    data = open_data(file)
    assert data.classes == classes
    assert ("incomplete-row" in kinds(data)) == (None in labels)
    assert ("integers" in str(data.notes)) == ("0.5" not in classes)


def test_rows_that_lack_something_are_one_serious_finding(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,{'' if i % 4 == 0 else 'xy'[i % 2]}\n" for i in range(40))
    (finding,) = open_table(table(tmp_path, f"path,label\n{rows}")).findings
    assert finding.severity == "serious"
    assert finding.message == "t.csv: 10 of 40 rows have no label and are left out"
    assert finding.items[:2] == ("row 2: no label", "row 6: no label")
    notes = open_table(table(tmp_path, "path,label,split\na,x,train\nb,y,\nc,y,val\n")).findings
    assert [(f.kind, f.severity) for f in notes if f.kind == "row-without-split"] == [("row-without-split", "note")]


def test_check_strict_fails_where_rows_have_no_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_classes(tmp_path, {"red": 12, "blue": 12})
    rows = [f"{name}/{i}.png,{name}\n" for name in ("red", "blue") for i in range(12)]
    command = ["check", str(tmp_path / "t.csv"), "--files-only", "--strict"]
    table(tmp_path, "path,label\n" + "".join(rows))
    assert main(*command, capsys=capsys)[0] == 0
    table(tmp_path, "path,label\n" + "".join(rows[:-1]) + "blue/11.png,\n")
    status, out, _ = main(*command, capsys=capsys)
    assert status == 1
    assert "1 of 24 rows have no label" in out


def test_the_command_takes_the_names_of_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_classes(tmp_path, {"red": 3, "blue": 3})
    rows = [f"{name}/{i}.png,{name}\n" for name in ("red", "blue") for i in range(3)]
    file = table(tmp_path, "Datei,Art\n" + "".join(rows))
    status, out, _ = main(
        "check", file, "--files-only", "--json", "--path-column", "Datei", "--label-column", "Art", capsys=capsys
    )
    assert status == 0
    assert json.loads(out)["classes"] == ["blue", "red"]
    status, _, err = main("check", file, "--files-only", capsys=capsys)
    assert status == 1
    assert "Found: Datei, Art" in err
    status, _, err = main("evaluate", tmp_path / "run", "--label-column", "Art", capsys=capsys)
    assert status == 2
    assert "--label-column: describes a table; give the data as well." in err


def test_classes_that_differ_by_case_spacing_or_unicode_form_are_a_finding(tmp_path: Path) -> None:
    data = open_table(table(tmp_path, "path,label\na,Rose\nb,rose\nc,Tulip\nd,sweet pea\ne,Sweet_Pea\n"))
    finding = kinds(data)["similar-class-names"]
    assert (finding.severity, finding.items) == ("warning", ("Rose, rose", "Sweet_Pea, sweet pea"))
    assert len(data.classes) == 5
    composed, decomposed = (unicodedata.normalize(form, "Löwenzahn") for form in ("NFC", "NFD"))
    data = open_table(table(tmp_path, f"path,label\na,{composed}\nb,{decomposed}\nc,x\n"))
    assert data.classes == (composed, "x")
    assert kinds(data)["unicode-form"].items == (composed,)


@pytest.mark.parametrize("path", ["\0/a.png", "a\0.png", "x" * 5000])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_path_that_no_file_can_have_is_a_missing_image(tmp_path: Path, path: str, kind: str) -> None:
    write_classes(tmp_path / "d", {"a": 1, "b": 1})
    rows = {"path": [path, "d/a/0.png", "d/b/0.png"], "label": ["a", "a", "b"]}
    file = tmp_path / f"t.{kind}"
    if kind == "csv":
        lines = "\n".join(f"{path},{label}" for path, label in zip(*rows.values(), strict=True))
        file.write_bytes(b"\xef\xbb\xbf" + f"path,label\n{lines}\n".encode())
    else:
        parquet.write_table(pa.table(rows), file)
    assert open_table(file).classes == ("a", "b")
    listed = list(find_images(file))
    assert [os.path.basename(name) for name in listed[-2:]] == ["0.png", "0.png"]


def test_two_columns_of_one_name_in_a_parquet_file_are_refused(tmp_path: Path) -> None:
    columns = [pa.array(["a.png"]), pa.array(["b.png"]), pa.array(["x"])]
    parquet.write_table(pa.table(columns, names=["path", "path", "label"]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet: two columns are named 'path'"):
        open_table(tmp_path / "t.parquet")


def test_invisible_characters_and_missing_values_in_class_names_are_findings(tmp_path: Path) -> None:
    text = "path,label\na,rose\nb,rose\u200b\nc,nan\nd,NULL\ne,nano\nf,none\n"
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    found = kinds(open_table(tmp_path / "t.csv"))
    assert found["similar-class-names"].items == ("rose, rose\u200b",)
    assert (found["missing-value-class"].severity, found["missing-value-class"].items) == ("warning", ("NULL", "nan"))
    assert "missing-value-class" not in kinds(open_table(table(tmp_path, "path,label\na,rose\nb,none\n")))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_damaged_table_of_columns_is_a_named_error(tmp_path: Path, kind: str) -> None:
    rows = pa.table({"path": ["a.png", "b.png"], "label": ["ä", "y"], "split": ["train", "val"]})
    file = tmp_path / f"t.{kind}"
    if kind == "parquet":
        parquet.write_table(rows, file, compression="none")
    else:
        with pa.ipc.new_file(file, rows.schema) as writer:
            writer.write_table(rows)
    good, rng = file.read_bytes(), np.random.default_rng(0)
    damaged = [good.replace(b"label", b"la\x83el"), good.replace("ä".encode(), b"\xff\xff")]
    for _ in range(150):
        data = bytearray(good)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        damaged.append(bytes(data))
    named = 0
    for data in damaged:
        file.write_bytes(data)
        try:
            open_table(file, min_classes=1)
        except DataError as error:
            named += "t." in str(error)
    assert named > 20
