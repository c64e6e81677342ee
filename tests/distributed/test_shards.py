"""Shards: names that follow from content, a manifest at the end, and folders that hold one kind of work."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from headstart.distributed.shards import (
    MANIFEST_FILE,
    WORK_FILE,
    ImageRow,
    ShardSummary,
    begin_work,
    cut_into_shards,
    read_manifest,
    remove_others,
    write_manifest,
)
from headstart.errors import OptionError, OutputError

ROWS = [ImageRow(f"{i}.jpg", "cat", "train", "", "10 5") for i in range(7)]


def names(rows: list[ImageRow], description: dict[str, object] | None = None) -> list[str]:
    return [shard.name for shard in cut_into_shards(rows, 3, description or {"a": 1})]


def test_work_is_cut_in_order_and_the_last_shard_has_the_rest() -> None:
    shards = list(cut_into_shards(ROWS, 3, {}))
    assert [len(shard.rows) for shard in shards] == [3, 3, 1]
    assert [shard.number for shard in shards] == [0, 1, 2]
    assert [row for shard in shards for row in shard.rows] == ROWS


def test_shards_are_cut_one_at_a_time() -> None:
    endless = (ImageRow(str(i)) for i in itertools.count())
    assert [shard.number for shard in itertools.islice(cut_into_shards(endless, 2, {}), 3)] == [0, 1, 2]


def test_a_name_follows_from_the_images_and_from_what_is_computed() -> None:
    assert names(ROWS) == names(list(ROWS))
    assert len(set(names(ROWS))) == 3
    for changed in ("other.jpg", "0.jpg"):
        other = [ImageRow(changed, "cat", "train", "", "11 5"), *ROWS[1:]]
        assert names(other)[0] != names(ROWS)[0]
        assert names(other)[1:] == names(ROWS)[1:]
    assert not set(names(ROWS, {"a": 2})) & set(names(ROWS))


def test_the_manifest_lists_the_shards_and_is_read_back(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not finished"):
        read_manifest(tmp_path)
    write_manifest(tmp_path, {"a": 1}, [ShardSummary("x", 3, 0), ShardSummary("y", 2, 1)])
    found = read_manifest(tmp_path)
    assert (found["rows"], found["unreadable"], found["work"]) == (5, 1, {"a": 1})
    assert [shard["file"] for shard in found["shards"]] == ["x.parquet", "y.parquet"]
    (tmp_path / MANIFEST_FILE).write_text('{"rows": 1}')
    with pytest.raises(OutputError, match="damaged"):
        read_manifest(tmp_path)


def test_a_folder_holds_one_kind_of_work(tmp_path: Path) -> None:
    begin_work(tmp_path / "out", {"a": 1})
    begin_work(tmp_path / "out", {"a": 1})
    with pytest.raises(OutputError, match="another network, model or option"):
        begin_work(tmp_path / "out", {"a": 2})
    (tmp_path / "out" / WORK_FILE).write_text("{")
    with pytest.raises(OutputError, match="damaged"):
        begin_work(tmp_path / "out", {"a": 1})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(OutputError, match=r"not empty \(notes.txt\)"):
        begin_work(tmp_path / "mine", {"a": 1})
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        begin_work(tmp_path / "file", {"a": 1})


def test_a_folder_is_not_overwritten_by_other_images_nor_cut_again(tmp_path: Path) -> None:
    begin_work(tmp_path, {"a": 1}, images=["/data/flowers"], shard_size=5000)
    begin_work(tmp_path, {"a": 1}, images=["/data/flowers"], shard_size=5000)
    with pytest.raises(OutputError, match=r"the output of other images \(/data/flowers\)\. Name a new folder"):
        begin_work(tmp_path, {"a": 1}, images=["/data/dogs"], shard_size=5000)
    with pytest.raises(OptionError, match=r"shard_size 1000: .* has shards of 5000 images\. Give that number"):
        begin_work(tmp_path, {"a": 1}, images=["/data/flowers"], shard_size=1000)
    (tmp_path / WORK_FILE).write_text("[]")
    with pytest.raises(OutputError, match="damaged"):
        begin_work(tmp_path, {"a": 1})


def test_shards_that_are_not_in_the_manifest_are_removed(tmp_path: Path) -> None:
    (tmp_path / "unreadable").mkdir()
    for name in ("x.parquet", "old.parquet", "unreadable/old.parquet", "notes.txt"):
        (tmp_path / name).write_text("x")
    remove_others(tmp_path, write_manifest(tmp_path, {}, [ShardSummary("x", 1, 0)]))
    assert sorted(p.name for p in tmp_path.iterdir()) == [MANIFEST_FILE, "notes.txt", "unreadable", "x.parquet"]
    assert not list((tmp_path / "unreadable").iterdir())
