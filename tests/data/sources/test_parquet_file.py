"""Parquet and Arrow tables with an image column: found by type and name, labels as names, memory bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from random_images import write_classes
from source_files import IMAGE_STRUCT, image_table, images_of, write_parquet

import headstart as hs
from headstart.data.scan import scan
from headstart.data.sources import parquet_file
from headstart.data.sources.read import read_image
from headstart.data.sources.row_cache import RowCache
from headstart.errors import DataError, UnreadableImage


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return images_of(write_classes(tmp_path_factory.mktemp("d"), {"blue": 40, "red": 40}))


def write(file: Path, columns: dict[str, Any]) -> Path:
    parquet.write_table(pa.table(columns), file)
    return file


@pytest.mark.parametrize("name", ["image", "img", "picture", "anything"])
def test_a_column_of_bytes_is_found(images: dict[str, bytes], tmp_path: Path, name: str) -> None:
    labels = [Path(path).parent.name for path in images]
    file = write(tmp_path / "t.parquet", {name: list(images.values()), "label": labels, "filename": list(images)})
    data = hs.open_data(file)
    assert (data.classes, data.paths[41]) == (("blue", "red"), "t.parquet::41")
    assert read_image(data.files()[41]) == images["red/1.png"]


def test_a_binary_column_of_paths_stays_one(images: dict[str, bytes], tmp_path: Path) -> None:
    write_classes(tmp_path / "d", {"blue": 2, "red": 2})
    paths = [f"d/{label}/{i}.png" for label in ("blue", "red") for i in range(2)]
    file = write(tmp_path / "t.parquet", {"image": [p.encode() for p in paths], "label": ["b", "b", "r", "r"]})
    assert list(hs.open_data(file).paths) == paths


def test_rows_out_of_order_and_large_row_groups_are_read(
    images: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_file, "_CACHE", RowCache(20_000))
    contents = list(images.values())
    for size in (1, 7, 1000):
        files = hs.open_data(write_parquet(tmp_path / f"{size}.parquet", images, size)).files()
        assert all(read_image(files[i]) == contents[i] for i in (79, 0, 40, 39, 33, 78, 2)), size


def test_the_cache_of_rows_stays_below_its_limit(images: dict[str, bytes], tmp_path: Path) -> None:
    batch = pa.array(list(images.values())[:10])
    cache = RowCache(3 * batch.nbytes)
    for key in range(6):
        cache.put((key,), batch)
    assert [cache.get((key,)) is not None for key in range(6)] == [False] * 3 + [True] * 3
    cache.drop(5)
    assert cache.get((5,)) is None


def test_rows_without_an_image_are_faults_and_paths_beside_empty_bytes_are_read(
    images: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "0.png").write_bytes(images["blue/0.png"])
    rows = [None, {"bytes": None, "path": "0.png"}, {"bytes": images["red/0.png"], "path": None}]
    file = write(tmp_path / "t.parquet", {"image": pa.array(rows, IMAGE_STRUCT), "label": ["a", "b", "c"]})
    data = hs.open_data(file)
    assert scan(data.files(), cache=tmp_path / "cache").faults == {0: "no image in this row"}
    assert read_image(data.files()[1]) == images["blue/0.png"]


def test_a_table_in_which_every_image_is_null_says_so(tmp_path: Path) -> None:
    file = write(tmp_path / "t.parquet", {"image": pa.array([None] * 4, IMAGE_STRUCT), "label": list("aabb")})
    with pytest.raises(DataError, match=r"none of the 4 images can be read. .*t\.parquet::0: no image in this row"):
        hs.check(file, files_only=True, cache=tmp_path / "cache")


def test_the_only_class_label_is_the_label_also_under_another_name(images: dict[str, bytes], tmp_path: Path) -> None:
    table = image_table(images)
    text = table.schema.metadata[b"huggingface"].decode().replace('"label"', '"labels"')
    table = table.rename_columns(["image", "labels"]).replace_schema_metadata({"huggingface": text})
    parquet.write_table(table, tmp_path / "t.parquet")
    data = hs.open_data(tmp_path / "t.parquet")
    assert (data.multi_label, data.classes) == (False, ("blue", "red"))


def test_a_list_of_class_labels_is_multi_label_and_minus_one_no_label(images: dict[str, bytes], tmp_path: Path) -> None:
    data = list(images.values())[:3]
    names = {"names": ["x", "y"], "_type": "ClassLabel"}
    for feature, labels in (({"feature": names, "_type": "List"}, [[0], [0, 1], []]), (names, [0, 1, -1])):
        meta = json.dumps({"info": {"features": {"label": feature}}})
        table = pa.table({"image": data, "label": labels}).replace_schema_metadata({"huggingface": meta})
        parquet.write_table(table, tmp_path / "t.parquet")
        opened = hs.open_data(tmp_path / "t.parquet")
        if opened.multi_label:
            assert opened.labels.tolist() == [[1, 0], [1, 1], [0, 0]]
        else:
            assert (opened.label_names(), opened.findings[0].kind) == (["x", "y"], "incomplete-row")


def test_a_second_image_column_can_be_chosen(images: dict[str, bytes], tmp_path: Path) -> None:
    both = list(images.values())
    columns = {"image": both[:2], "mask": both[2:4], "label": ["a", "b"]}
    data = hs.open_data(write(tmp_path / "t.parquet", columns), path_column="mask")
    assert data.paths == ("t.parquet::mask/0", "t.parquet::mask/1")
    assert [read_image(address) for address in data.files()] == both[2:4]


def test_a_damaged_table_is_named(images: dict[str, bytes], tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "t.parquet", images)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"t\.parquet: cannot be read as Parquet"):
        hs.open_data(file)
    (tmp_path / "t.arrow").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"t\.arrow: cannot be read as Arrow"):
        hs.open_data(tmp_path / "t.arrow")


def damaged_table(file: Path, images: dict[str, bytes], column: str) -> Path:
    """A table with page checksums and row groups of 4 rows, in the second of which a column is damaged."""
    table = image_table(images)
    parquet.write_table(table, file, row_group_size=4, write_page_checksum=True, use_dictionary=False)
    group = parquet.read_metadata(file).row_group(1)
    (found,) = [one for one in map(group.column, range(group.num_columns)) if one.path_in_schema == column]
    content = bytearray(file.read_bytes())
    content[found.data_page_offset + found.total_compressed_size - 2] ^= 1
    file.write_bytes(content)
    return file


def test_images_of_a_damaged_row_group_are_named_and_the_others_are_read(
    images: dict[str, bytes], tmp_path: Path
) -> None:
    file = damaged_table(tmp_path / "t.parquet", images, "image.bytes")
    data = hs.open_data(file)
    faults = scan(data.files(), cache=tmp_path / "cache").faults
    assert sorted(faults) == [4, 5, 6, 7]
    (reason,) = set(faults.values())
    assert "row group 2 of" in reason
    assert "is damaged (" in reason
    assert "Copy the file again" in reason
    assert read_image(data.files()[8]) == list(images.values())[8]
    with pytest.raises(UnreadableImage, match="row group 2 of"):  # also when it is read again, and in any order
        read_image(data.files()[5])


def test_a_damaged_column_of_labels_names_the_file_and_its_row_group(images: dict[str, bytes], tmp_path: Path) -> None:
    file = damaged_table(tmp_path / "t.parquet", images, "label")
    with pytest.raises(DataError, match=r"t\.parquet: cannot be read as Parquet: row group 2 of \d+ is damaged \("):
        hs.open_data(file)


def test_text_that_is_not_utf_8_is_named(images: dict[str, bytes], tmp_path: Path) -> None:
    labels = pa.array([b"red", b"\xff\xfe", b"blue"]).view(pa.string())
    table = pa.table({"image": list(images.values())[:3], "label": labels})
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet: cannot be read as Parquet: .*utf-8"):
        hs.open_data(tmp_path / "t.parquet")
