"""Export of features for other tools as NumPy .npz or Parquet, written in chunks."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.backbone.feature_spec import FeatureSpec
from headstart.backbone.pixel_net import FeatureNet
from headstart.backbone.pooling import Pooling
from headstart.backbone.weights import DEFAULT_BACKBONE, load_backbone
from headstart.data.checks import reading_findings
from headstart.data.dataset import Dataset, open_data
from headstart.data.preprocessing import Fit
from headstart.data.scan import Scan, scan
from headstart.errors import DataError, OptionError
from headstart.extras import importing_extra
from headstart.features.extract import FeatureStore, compute_features
from headstart.files import check_suffix, output_file, unicode_text
from headstart.progress import Progress, SilentProgress

FORMATS = (".npz", ".parquet")
PIECE = 4096
"""Rows per chunk."""


def export_features(
    source: str | os.PathLike[str] | Dataset,
    out: str | os.PathLike[str],
    *,
    backbone: str = "",
    weights: str | Path | None = None,
    image_size: int | None = None,
    fit: Fit = "auto",
    pool: Pooling = "auto",
    cut: str = "",
    accept_license: bool = False,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Computes the features of all readable images and writes them with path, label and split.

    The .npz holds ``features`` (N, D) float32 and ``paths``, ``labels``, ``splits`` (N,) str; the Parquet file holds
    the columns path, label, split and features (a list of D float32). ``split`` is "" for data without splits.

    Args:
        source: a folder, a table, or an opened data set.
        out: path of the file, ending in .npz or .parquet.
        backbone: a timm architecture; "" for the offline default.
        weights: path of a weights file.
        image_size: side of the input in pixels; default: that of the pretrained weights.
        fit: how an image is fitted into the input: "auto" (as the weights were trained), "crop", "pad" or "squash".
        pool: see ``backbone.pooling.Pooling``, without "none".
        cut: boundary at which the backbone ends, as listed by ``headstart layers``; "": the whole backbone.
        accept_license: whether weights may be used whose licence is restricted.
        device: "auto", "cpu", "cuda" or "mps".
        cache: cache folder; default: ``cache_root()``.
        progress: receives a step per image.

    Returns:
        (N, D).

    Raises:
        DataError, WeightsError, LicenseError, OptionError, CacheError: as ``train``.
        OutputError: the suffix is another one, or the file cannot be written.
    """
    progress = progress or SilentProgress()
    file = check_suffix(out, FORMATS)
    dataset = open_data(source)
    net = feature_net(
        backbone=backbone,
        weights=weights,
        image_size=image_size,
        fit=fit,
        pool=pool,
        cut=cut,
        accept_license=accept_license,
        progress=progress,
    )
    preprocessing = net.backbone.preprocessing
    scanned = scan(dataset.files(), preprocessing=preprocessing, cache=cache, progress=progress)
    used = _readable(dataset, scanned, progress)
    keys = [scanned.keys[i] for i in used]
    sources = dict(zip(scanned.keys, dataset.files(), strict=True))
    store = compute_features(net, keys, sources=sources, device=device, cache=cache, progress=progress)
    columns = _columns(dataset, used)
    with output_file(file, FORMATS) as partial:
        (_write_npz if file.suffix.lower() == ".npz" else _write_parquet)(partial, store, keys, columns)
    return len(keys), store.shape[0]


def check_row_pooling(pool: Pooling) -> None:
    """Checks that a pooling gives a row of numbers per image.

    Raises:
        OptionError: it gives maps.
    """
    if pool == "none":
        raise OptionError("pool 'none' gives maps, but a table needs a row of numbers per image: choose 'flatten'.")


def feature_net(
    *,
    backbone: str = "",
    weights: str | Path | None = None,
    image_size: int | None = None,
    fit: Fit = "auto",
    pool: Pooling = "auto",
    cut: str = "",
    accept_license: bool = False,
    progress: Progress,
) -> FeatureNet:
    """The network that computes features for a table; arguments and errors as ``export_features``."""
    check_row_pooling(pool)
    loaded = load_backbone(
        backbone or DEFAULT_BACKBONE,
        weights=weights,
        image_size=image_size,
        fit=fit,
        accept_license=accept_license,
        progress=progress,
    )
    for note in loaded.notes:
        progress.say(note)
    return FeatureNet(loaded, FeatureSpec(pool, cut))


def _readable(dataset: Dataset, scanned: Scan, progress: Progress) -> list[int]:
    """Positions of the images that can be read; reports the others."""
    for finding in reading_findings(dataset, scanned):
        progress.say(finding.line)
    used: list[int] = np.flatnonzero(scanned.usable).tolist()
    if not used:
        raise DataError(f"{dataset.root}: none of the {len(dataset):,} images can be read.")
    return used


def _columns(dataset: Dataset, used: list[int]) -> dict[str, list[str]]:
    """Paths, labels and splits of the images at some positions."""
    files, names = dataset.files(), dataset.label_names()
    return {
        "paths": [files[i] for i in used],
        "labels": [names[i] for i in used],
        "splits": [dataset.splits[i] if dataset.splits else "" for i in used],
    }


def _write_npz(file: Path, store: FeatureStore, keys: list[bytes], columns: dict[str, list[str]]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("features.npy", "w", force_zip64=True) as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(keys), *store.shape)}
            np.lib.format.write_array_header_2_0(member, header)
            for start in range(0, len(keys), PIECE):
                member.write(store.read(keys[start : start + PIECE]).tobytes())
        for name, values in columns.items():
            archive.writestr(f"{name}.npy", _npy(np.array(values, dtype=np.str_)))


def _npy(array: npt.NDArray[Any]) -> bytes:
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    return data.getvalue()


def _write_parquet(file: Path, store: FeatureStore, keys: list[bytes], columns: dict[str, list[str]]) -> None:
    with importing_extra("parquet", f"writing {file}"):
        import pyarrow as pa
        from pyarrow import parquet

    length = store.shape[0]
    schema = pa.schema(
        [
            ("path", pa.string()),
            ("label", pa.string()),
            ("split", pa.string()),
            ("features", pa.list_(pa.float32(), length)),
        ]
    )
    with parquet.ParquetWriter(file, schema, write_page_checksum=True) as writer:
        for start in range(0, len(keys), PIECE):
            piece = slice(start, start + PIECE)
            flat = pa.array(store.read(keys[piece]).ravel(), pa.float32())
            texts = [pa.array([unicode_text(v) for v in values[piece]]) for values in columns.values()]
            writer.write_table(
                pa.Table.from_arrays([*texts, pa.FixedSizeListArray.from_arrays(flat, length)], schema=schema)
            )
