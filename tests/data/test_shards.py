"""Shards: several archives or tables are one data set, and their names give the splits."""

from __future__ import annotations

from pathlib import Path

import pytest
from random_images import write_classes
from small_models import small_model
from source_files import images_of, webdataset_members, write_parquet, write_tar, write_zip

import headstart as hs
from headstart.data.listing import find_images
from headstart.errors import DataError, OptionError
from headstart.runs.folder import choose_run_folder


@pytest.fixture
def images(tmp_path: Path) -> dict[str, bytes]:
    return images_of(write_classes(tmp_path / "d", {"blue": 6, "red": 6}))


def some(images: dict[str, bytes], first: int) -> dict[str, bytes]:
    return {name: data for number, (name, data) in enumerate(images.items()) if number % 3 == first}


def test_a_folder_or_a_pattern_of_shards_is_one_data_set_with_splits(images: dict[str, bytes], tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for number, name in enumerate(("train-000.tar", "train-001.tar", "validation-000.tar")):
        write_tar(shards / name, webdataset_members(some(images, number)))
    data = hs.open_data(shards)
    assert (len(data), data.splits) == (12, ("train",) * 8 + ("val",) * 4)
    assert data.paths[0] == "train-000.tar::000000.png"
    chosen = hs.open_data(f"{shards}/train-*.tar")
    assert (len(chosen), set(chosen.splits or ()), chosen.name) == (8, {"train"}, "shards")
    assert choose_run_folder(None, f"{shards}/train-*.tar").name == "shards"
    assert choose_run_folder(None, "s3://bucket/flowers.tar").name == "flowers"


def test_parquet_shards_in_a_folder_below_as_on_the_hub(images: dict[str, bytes], tmp_path: Path) -> None:
    place = tmp_path / "repository" / "data"
    place.mkdir(parents=True)
    (place.parent / "README.md").write_text("text")
    for number, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")):
        write_parquet(place / f"{name}.parquet", some(images, number))
    data = hs.open_data(place.parent)
    assert (len(data), data.splits) == (12, ("train",) * 8 + ("test",) * 4)
    assert data.paths[0] == "data/train-00000-of-00002.parquet::0"


def test_class_folders_that_also_have_an_archive_stay_class_folders(images: dict[str, bytes], tmp_path: Path) -> None:
    write_tar(tmp_path / "d" / "blue" / "backup.tar", images.items())
    assert hs.open_data(tmp_path / "d").paths[0] == "blue/0.png"


def test_shards_that_contradict_each_other_are_an_error(images: dict[str, bytes], tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", images.items())
    write_tar(tmp_path / "more.tar", images.items())
    with pytest.raises(DataError, match=r"no split in the name of more\.tar"):
        hs.open_data(f"{tmp_path}/*.tar")
    with pytest.raises(DataError, match="no file matches this pattern"):
        hs.open_data(f"{tmp_path}/val-*.tar")
    with pytest.raises(OptionError, match="label_column: applies only to a table"):
        hs.open_data(tmp_path / "more.tar", label_column="x")


def test_a_folder_named_like_an_archive_is_a_folder_for_predictions_too(
    images: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "spark.parquet").mkdir()
    write_parquet(tmp_path / "spark.parquet" / "part-0.parquet", images)
    assert find_images(tmp_path / "spark.parquet")[0] == f"{tmp_path}/spark.parquet/part-0.parquet::0"
    (tmp_path / "d.zip").symlink_to(tmp_path / "d")
    assert find_images(tmp_path / "d.zip")[0] == f"{tmp_path}/d.zip/blue/0.png"


def test_what_has_no_images_to_predict_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file matches this pattern"):
        find_images(f"{tmp_path}/*.jpg")
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"a compressed archive \(\.tar\.gz\).*Decompress it"):
        find_images(tmp_path / "a.tar.gz")


def test_a_table_may_name_members_of_archives(images: dict[str, bytes], tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", images)
    rows = [f"a.zip::{name},{Path(name).parent.name}" for name in images]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    data = hs.open_data(tmp_path / "t.csv")
    assert data.files()[0] == f"{tmp_path}/a.zip::blue/0.png"
    assert hs.check(tmp_path / "t.csv", files_only=True, cache=tmp_path / "cache").scanned.faults == {}


def test_predictions_of_any_source_name_each_image(images: dict[str, bytes], tmp_path: Path) -> None:
    model = small_model(image_size=32)
    expected = [prediction.top for prediction in model.predict(tmp_path / "d")]
    (tmp_path / "s").mkdir()
    for source in (
        write_zip(tmp_path / "a.zip", images),
        write_parquet(tmp_path / "a.parquet", images),
        write_tar(tmp_path / "s" / "a.tar", images.items()).parent,
    ):
        found = model.predict(source)
        assert [prediction.top for prediction in found] == expected
        assert all("::" in prediction.path for prediction in found)
    one = f"{tmp_path}/a.zip::red/1.png"
    assert (model.predict(one).path, model.predict(f"{tmp_path}/a.zip::x").error) == (
        one,
        "no such file in the archive",
    )
