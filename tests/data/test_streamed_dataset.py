"""The images of a source without a list in memory: equal to what ``open_data`` and ``find_images`` give, in order."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import pytest
from random_images import write_classes
from source_files import images_of, webdataset_members, write_every_source, write_parquet, write_tar

import headstart as hs
from headstart.data import natural_order
from headstart.data.listing import find_images
from headstart.data.streamed_dataset import StreamedDataset, StreamedPaths
from headstart.data.table_columns import Columns
from headstart.errors import DataError, HeadstartError, OptionError


@pytest.fixture(autouse=True)
def rows_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three rows in memory at most."""
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(natural_order.RowSpool.__init__, "__kwdefaults__", {"run_rows": 3})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with more than nine images each, a raw file with and one without an image, and other files."""
    root = write_classes(tmp_path / "d", {"blue": 11, "red": 1})
    for name in ("blue/3.CR2", "blue/99.nef", "red/notes.txt", "red/other.txt", ".hidden", "stray.txt"):
        (root / name).write_text("x")
    (root / "none yet").mkdir()
    return root


def rows_of(dataset: hs.Dataset) -> list[tuple[str, str, str, str]]:
    nothing = [""] * len(dataset)
    columns = (dataset.files(), dataset.label_names(), dataset.splits or nothing, dataset.groups or nothing)
    return list(zip(*columns, strict=True))


def same(source: Path | str, **columns: str) -> StreamedDataset:
    """Compares with ``open_data``: rows, their order, and findings."""
    whole = hs.open_data(source, **{f"{name}_column": column for name, column in columns.items()})
    streamed = StreamedDataset(source, Columns(**columns))
    assert list(streamed) == list(streamed) == rows_of(whole)
    assert len(streamed) == len(whole)
    late = [finding for finding in whole.findings if finding.kind == "split-without-class"]
    assert list(streamed.findings) == [finding for finding in whole.findings if finding not in late]
    return streamed


def test_class_folders(folder: Path) -> None:
    found = same(folder)
    assert [finding.kind for finding in found.findings] == ["camera-raw", *["unused-files"] * 4]
    assert found.findings[0].items == ("blue/99.nef",)
    assert [finding.message for finding in found.findings[1:]] == [
        "blue: 1 other file(s) ignored: 3.CR2",
        "none yet: contains no images; not a class",
        "red: 2 other file(s) ignored: notes.txt, other.txt",
        "d: 1 file(s) outside the class folders ignored: stray.txt",
    ]


def test_split_folders(folder: Path, tmp_path: Path) -> None:
    for split in ("val", "train", "test"):
        shutil.copytree(folder, tmp_path / "splits" / split, ignore=shutil.ignore_patterns(split[0] + "*", "stray*"))
    same(tmp_path / "splits")


def test_every_kind_of_source(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for kind, file in write_every_source(tmp_path / "s", folder).items():
        same(file)
        assert list(StreamedPaths([file])) == find_images(file), kind


def test_shards_with_splits_in_their_names(folder: Path, tmp_path: Path) -> None:
    images = images_of(folder)
    (tmp_path / "w" / "deep").mkdir(parents=True)
    for name in ("train-0.tar", "train-1.tar", "val-0.tar"):
        write_tar(tmp_path / "w" / name, webdataset_members(images))
    write_parquet(tmp_path / "w" / "deep" / "test-0.parquet", images)
    same(tmp_path / "w")
    same(f"{tmp_path}/w/*.tar")
    assert list(StreamedPaths([f"{tmp_path}/w/*.tar"])) == find_images(f"{tmp_path}/w/*.tar")


TABLES = {
    "plain": "path,label\n" + "".join(f"{i}.jpg,{i % 3}\n" for i in range(12)),
    "splits and groups": "path,label,split,group\n"
    + "".join(f"a/{i}.jpg,x{i % 3},{'train' if i % 2 else 'dev'},g{i % 4}\n" for i in range(12)),
    "fractions": "path,label\n1.jpg,1.0\n2.jpg,0.0\n3.jpg,\n,1.0\n\n10.jpg,10.0\n",
    "labels": "path,labels\n2.jpg,b|a10|a9\n1.jpg,\n10.jpg,a9\n3.jpg,c\n",
    "single labels in a list": "path,labels\n2.jpg,b\n1.jpg,\n10.jpg,a9\n",
    "a row for each label": "path,labels\n2.jpg,b\n1.jpg,a\n2.jpg,a\n10.jpg,a9\n2,c\n",
    "indicators": "path,sun,rain,text\n1.jpg,1,0,x\n2.jpg,0,0,y\n10.jpg,1,TRUE,z\n",
    "equal rows": "path;label\n1.jpg;a\n2.jpg;b\n1.jpg;a\n",
    "spellings": "path,label\n1.jpg,ros\u00e9\n2.jpg,rose\u0301\n3.jpg,Rose\n4.jpg,rose\n",
    "separator": "sep=;\npath;label\n1.jpg;a\n2.jpg;b\n",
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables(kind: str, tmp_path: Path) -> None:
    (tmp_path / "2.jpg").write_text("")
    (tmp_path / "t.csv").write_text(TABLES[kind])
    same(tmp_path / "t.csv")
    assert list(StreamedPaths([tmp_path / "t.csv"])) == find_images(tmp_path / "t.csv")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_tables_in_other_encodings(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,Art\n1.jpg,Rosé\n2.jpg,Lilie\n3.jpg,Rosé\n", encoding=encoding)
    same(tmp_path / "t.csv", label="art")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n1.jpg,a\n2.jpg,b\n1.jpg,b\n", r"row 4: 1\.jpg occurs twice, as 'a' and as 'b'"),
        ("path,label\n1.jpg,a\n2.jpg,b\n./x\\1.jpg,b,c\n", "row 4: 3 cells where the header has 2"),
        ("path,label,split\n1.jpg,a,train\n2.jpg,b,other\n", "row 3: split is 'other'"),
        ("path,label\n1.jpg,a\n", "found one class, a"),
        ("path,label\n1.jpg,\n", "no row with a path and a label"),
        ("", "empty"),
    ],
)
def test_a_table_that_cannot_be_used_is_the_same_error(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message) as streamed:
        StreamedDataset(tmp_path / "t.csv")
    with pytest.raises(DataError) as whole:
        hs.open_data(tmp_path / "t.csv")
    assert str(streamed.value) == str(whole.value)


def test_errors_are_those_of_open_data(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, columns in ((tmp_path / "gone", {}), (tmp_path / "empty", {}), (folder, {"label": "x"})):
        with pytest.raises(HeadstartError) as whole:
            hs.open_data(source, **{f"{name}_column": column for name, column in columns.items()})
        with pytest.raises(type(whole.value)) as streamed:
            StreamedDataset(source, Columns(**columns))
        assert str(streamed.value) == str(whole.value)
    assert whole.type is OptionError
    with pytest.raises(DataError, match="no images in this folder"):
        StreamedPaths([tmp_path / "empty"])


def test_paths_of_several_sources_stay_in_the_order_given(folder: Path, tmp_path: Path) -> None:
    sources = [folder / "red", tmp_path / "gone.jpg", folder]
    assert list(StreamedPaths(sources)) == [path for source in sources for path in find_images(source)]
    assert list(StreamedPaths([folder]))[:4] == [*(f"{folder}/blue/{i}.png" for i in range(4))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_memory_does_not_grow_with_the_rows_of_a_table(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(natural_order.RowSpool.__init__, "__kwdefaults__", {"run_rows": 1000})

    def peak(count: int) -> int:
        file = tmp_path / f"{count}.{kind}"
        if kind == "csv":
            file.write_text("path,label\n" + "".join(f"s3://bucket/{i}.jpg,{i % 3}\n" for i in range(count)))
        else:
            write_parquet(file, {f"{i % 3}/{i}.png": b"\x89PNG" for i in range(count)}, row_group_size=500)
        tracemalloc.start()
        assert sum(1 for _ in StreamedDataset(file)) == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small, large = peak(5_000), peak(15_000)
    assert (large - small) / 10_000 < 40, "bytes for each image"
