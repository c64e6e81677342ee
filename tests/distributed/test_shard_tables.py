"""Tables of shards: what other programs read in them, and when a shard counts as finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.distributed.shard_tables import FeatureType, feature_table, summary_of, unreadable_table, write_shard
from headstart.distributed.shards import ImageRow, Shard, ShardSummary

ROWS = (ImageRow("a/0.jpg", "cat", "train", "g"), ImageRow("b/1.jpg", "dög", "test"))
FEATURES = np.array([[1, 0.5, -2], [0.25, 3, 4]], np.float32)
KEYS = [b"\x01" * 16, b"\xff" * 16]


def written(folder: Path, dtype: FeatureType) -> Path:
    write_shard(folder, Shard(0, "x", ROWS), feature_table(ROWS, KEYS, FEATURES, dtype), None)
    return folder / "x.parquet"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.slow
def test_other_programs_read_the_features(tmp_path: Path, dtype: FeatureType, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import duckdb
    import pandas
    import polars

    file = written(tmp_path, dtype)
    frame = pandas.read_parquet(file)
    assert list(frame.columns) == ["path", "key", "label", "split", "group", "features"]
    assert frame["label"].tolist() == ["cat", "dög"]
    assert frame["key"][0] == "01" * 16
    found: list[Any] = [np.stack(frame["features"])]
    found.append(np.array(polars.read_parquet(file)["features"].to_list()))
    found.append(np.array([row[0] for row in duckdb.sql(f"select features from '{file}' order by path").fetchall()]))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    loaded = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    found.append(np.array(loaded["features"][:]))
    for one in found:
        assert np.array_equal(np.asarray(one, np.float32), FEATURES)


def test_a_shard_is_finished_when_its_files_have_all_images(tmp_path: Path) -> None:
    shard = Shard(0, "x", ROWS)
    assert summary_of(tmp_path, shard) is None
    written(tmp_path, "float16")
    assert summary_of(tmp_path, shard) == ShardSummary("x", 2, 0)
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-9])
    assert summary_of(tmp_path, shard) is None


def test_unreadable_images_have_a_table_of_their_own(tmp_path: Path) -> None:
    from pyarrow import parquet

    shard = Shard(0, "x", ROWS)
    table = feature_table(ROWS[:1], KEYS[:1], FEATURES[:1], "float16")
    write_shard(tmp_path, shard, table, unreadable_table(ROWS[1:], ["empty file (0 bytes)"]))
    assert summary_of(tmp_path, shard) == ShardSummary("x", 1, 1)
    assert parquet.read_table(tmp_path / "unreadable" / "x.parquet").to_pylist() == [
        {"path": "b/1.jpg", "label": "dög", "split": "test", "group": "", "error": "empty file (0 bytes)"}
    ]
    (tmp_path / "unreadable" / "x.parquet").unlink()
    assert summary_of(tmp_path, shard) is None
