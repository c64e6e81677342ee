"""Parquet tables of a shard: features, predictions, and the images that cannot be read."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from headstart.distributed.shards import UNREADABLE, ImageRow, Shard, ShardSummary, read_manifest
from headstart.extras import importing_extra
from headstart.files import unicode_text, write_atomically

FeatureType = Literal["float16", "float32"]

FEATURE_TYPES: Final[tuple[FeatureType, ...]] = ("float16", "float32")


def feature_table(
    rows: Sequence[ImageRow], keys: Sequence[bytes], features: npt.NDArray[np.float32], dtype: FeatureType
) -> bytes:
    """A Parquet file with the columns path, key, label, split, group and features.

    Args:
        rows: N images.
        keys: N content hashes; written in hexadecimal.
        features: (N, D), within the range of the type.
        dtype: of the column of features, a list of D numbers.
    """
    with importing_extra("parquet", "writing shards"):
        import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(features, dtype=dtype).ravel())
    columns = _columns_of(rows) | {"key": pa.array([key.hex() for key in keys], pa.string())}
    columns = {name: columns[name] for name in ("path", "key", "label", "split", "group")}
    return _parquet(columns | {"features": pa.FixedSizeListArray.from_arrays(flat, features.shape[1])})


def prediction_table(
    rows: Sequence[ImageRow],
    keys: Sequence[bytes],
    predictions: Mapping[str, Sequence[Any]],
    probabilities: npt.NDArray[np.float64],
) -> bytes:
    """A Parquet file with the columns path, key, those of the predictions, and probabilities.

    Args:
        rows: N images.
        keys: N content hashes.
        predictions: name of a column -> N cells, see ``evaluation.tables.prediction_columns``.
        probabilities: (N, classes), written as a list of float32 in the order of the model's classes.
    """
    with importing_extra("parquet", "writing shards"):
        import pyarrow as pa

    from headstart.evaluation.tables import column_types

    types = column_types(predictions)
    columns = {"path": _columns_of(rows)["path"], "key": pa.array([key.hex() for key in keys], pa.string())}
    columns |= {name: pa.array(cells, types[name]) for name, cells in predictions.items() if name != "path"}
    flat = pa.array(probabilities.astype(np.float32).ravel())
    return _parquet(columns | {"probabilities": pa.FixedSizeListArray.from_arrays(flat, probabilities.shape[1])})


def unreadable_table(rows: Sequence[ImageRow], reasons: Sequence[str]) -> bytes:
    """A Parquet file with the columns path, label, split, group and error."""
    import pyarrow as pa

    return _parquet(_columns_of(rows) | {"error": pa.array([unicode_text(text) for text in reasons], pa.string())})


def write_shard(folder: Path, shard: Shard, table: bytes, unreadable: bytes | None) -> None:
    """Writes the files of a shard, that with the rows last: where it exists, the shard is finished.

    Raises:
        OSError: a file cannot be written.
    """
    if unreadable is not None:
        write_atomically(shard.unreadable_file(folder), unreadable)
    write_atomically(shard.file(folder), table)


def summary_of(folder: Path, shard: Shard) -> ShardSummary | None:
    """What a shard has, if it is finished: None if its file is missing or is not complete."""
    with importing_extra("parquet", "reading shards"):
        import pyarrow as pa
        from pyarrow import parquet

    try:
        num_rows = parquet.read_metadata(shard.file(folder)).num_rows
        bad = shard.unreadable_file(folder)
        num_unreadable = parquet.read_metadata(bad).num_rows if bad.exists() else 0
    except (OSError, ValueError, pa.ArrowException):
        return None
    is_complete = num_rows + num_unreadable == len(shard.rows)
    return ShardSummary(shard.name, num_rows, num_unreadable) if is_complete else None


def first_unreadable(folder: Path) -> tuple[str, str]:
    """(path, reason) of the first image that could not be read, in the order of the manifest.

    Args:
        folder: of finished work with such images.
    """
    from pyarrow import parquet

    names = (shard["file"] for shard in read_manifest(folder)["shards"] if shard["unreadable"])
    row = parquet.read_table(folder / UNREADABLE / next(names)).slice(0, 1).to_pylist()[0]
    return row["path"], row["error"]


def _columns_of(rows: Sequence[ImageRow]) -> dict[str, Any]:
    import pyarrow as pa

    names = ("path", "label", "split", "group")
    return {name: pa.array([unicode_text(getattr(row, name)) for row in rows], pa.string()) for name in names}


def _parquet(columns: Mapping[str, Any]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    out, table = io.BytesIO(), pa.table(dict(columns))
    numbers = [field.name for field in table.schema if pa.types.is_fixed_size_list(field.type)]
    # a dictionary of numbers that hardly repeat makes reading three times as slow
    others = [name for name in table.column_names if name not in numbers]
    parquet.write_table(table, out, use_dictionary=others, write_page_checksum=True)
    return out.getvalue()
