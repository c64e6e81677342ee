"""What a worker does with a shard: reads its images, runs the frozen backbone on them, and makes the shard's tables.

A ``Work`` is sent to each worker once, with the weights in it, and opened there. The tables go back to the process that
started the work, which alone writes files: workers on other machines need no common file system.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np
import numpy.typing as npt
import torch

from headstart.backbone.pixel_net import FeatureNet, feature_shape
from headstart.cache.keys import content_key
from headstart.concurrency import map_images
from headstart.data.decode import decode
from headstart.data.preprocessing import DECODER_VERSION, Preprocessing, Rgb, resize_and_crop
from headstart.data.sources.read import num_reading_threads, read_image
from headstart.distributed.shard_tables import FeatureType, feature_table, prediction_table, unreadable_table
from headstart.distributed.shards import ImageRow
from headstart.engine.interface import ENGINE_VERSION, Engine
from headstart.engine.measure import MEASURE_FROM
from headstart.engine.select import choose_engine, synthetic_sample
from headstart.engine.streaming import run_stream
from headstart.errors import OptionError, UnreadableImage
from headstart.evaluation.tables import prediction_columns
from headstart.features.extract import FEATURES_VERSION, half_precision, require_finite
from headstart.model import Model, model_from_bytes
from headstart.model_file import network_bytes, network_from_bytes


@dataclass(frozen=True)
class ShardTables:
    """The output of a shard, as the bytes of Parquet files.

    Attributes:
        table: a row for each image that can be read.
        unreadable: a row for each other image; None if there is none.
    """

    table: bytes
    unreadable: bytes | None


class Computer(Protocol):
    """Computes shards in one worker, with its weights and its engine."""

    def __call__(self, rows: Sequence[ImageRow]) -> ShardTables:
        """The tables of a shard's images."""


class Work(Protocol):
    """What is computed; it can be pickled and sent to workers.

    Attributes:
        description: everything besides the images that determines the output; a JSON document.
    """

    @property
    def description(self) -> dict[str, Any]:
        """See above."""

    def computer(self, device: str) -> Computer:
        """Builds the network and its engine."""


@final
@dataclass(frozen=True)
class FeatureWork:
    """Features of images.

    Attributes:
        network: see ``model_file.network_bytes``.
        description: see ``Work``.
        dtype: of the features that are written.
    """

    network: bytes
    description: dict[str, Any]
    dtype: FeatureType = "float16"

    @classmethod
    def of(cls, net: FeatureNet, dtype: FeatureType) -> FeatureWork:
        """The work for a network."""
        return cls(network_bytes(net), {"features": dtype} | network_description(net), dtype)

    def computer(self, device: str) -> Computer:
        """See ``Work``."""
        return _FeatureComputer(network_from_bytes(self.network), self.dtype, device)


@final
@dataclass(frozen=True)
class PredictionWork:
    """Predictions of a model.

    Attributes:
        model: the content of its file.
        description: see ``Work``.
        top: number of classes that each prediction lists.
    """

    model: bytes
    description: dict[str, Any]
    top: int = 1

    @classmethod
    def of(cls, model: Model, top: int) -> PredictionWork:
        """The work for a model."""
        about = {"predictions": top, "model": model.version, "classes": list(model.classes)}
        return cls(model.as_bytes(), about | network_description(model.net), top)

    def computer(self, device: str) -> Computer:
        """See ``Work``."""
        return _PredictionComputer(model_from_bytes(self.model), self.top, device)


class _FeatureComputer:
    """Computes tables of features."""

    def __init__(self, net: FeatureNet, dtype: FeatureType, device: str) -> None:
        self.net, self.dtype, self.engine = net, dtype, _engine(net, device)

    def __call__(self, rows: Sequence[ImageRow]) -> ShardTables:
        read = _read(rows, self.net.backbone.preprocessing, self.engine)
        features = _stacked(read.features, feature_shape(self.net))
        require_finite(self.net, features)
        if self.dtype == "float16" and half_precision(features) is None:
            raise OptionError(
                f"dtype float16: features of {rows[0].path} or one of the next {len(rows):,} images exceed its range. "
                "Choose dtype float32."
            )
        return ShardTables(feature_table(read.rows, read.keys, features, self.dtype), read.unreadable)


class _PredictionComputer:
    """Computes tables of predictions."""

    def __init__(self, model: Model, top: int, device: str) -> None:
        self.model, self.top, self.engine = model, top, _engine(model.net, device)

    def __call__(self, rows: Sequence[ImageRow]) -> ShardTables:
        read = _read(rows, self.model.preprocessing, self.engine)
        features = _stacked(read.features, feature_shape(self.model.net))
        probabilities, outliers = self.model.predict_features(features)
        predictions = [
            self.model.make_prediction(row.path, chances, outlier, top=self.top)
            for row, chances, outlier in zip(read.rows, probabilities, outliers, strict=True)
        ]
        columns = prediction_columns(predictions, listed=min(self.top, len(self.model.classes)))
        return ShardTables(prediction_table(read.rows, read.keys, columns, probabilities), read.unreadable)


@dataclass(frozen=True)
class _Read:
    """The images of a shard after the frozen pass.

    Attributes:
        rows: those that can be read.
        keys: their content hashes.
        features: their features, in batches of (n, ...) float32.
        unreadable: table of the others; None if there are none.
    """

    rows: list[ImageRow]
    keys: list[bytes]
    features: list[npt.NDArray[np.float32]]
    unreadable: bytes | None


def _read(rows: Sequence[ImageRow], preprocessing: Preprocessing, engine: Engine) -> _Read:
    """Reads the images of a shard and computes their features; images are decoded in threads meanwhile."""
    good: list[ImageRow] = []
    keys: list[bytes] = []
    bad: list[tuple[ImageRow, str]] = []

    threads = num_reading_threads([row.path for row in rows], torch.get_num_threads())  # workers share the processors

    def decoded(row: ImageRow) -> tuple[bytes, Rgb | str]:
        return _decoded(row, preprocessing)

    def batches() -> Iterator[npt.NDArray[np.uint8]]:
        waiting: list[Rgb] = []
        for row, (key, pixels) in zip(rows, map_images(decoded, rows, threads=threads), strict=True):
            if isinstance(pixels, str):
                bad.append((row, pixels))
                continue
            good.append(row)
            keys.append(key)
            waiting.append(pixels)
            if len(waiting) == engine.batch_size:
                yield np.stack(waiting)
                waiting.clear()
        if waiting:
            yield np.stack(waiting)

    features = list(run_stream(engine, batches()))
    table = unreadable_table([row for row, _ in bad], [reason for _, reason in bad]) if bad else None
    return _Read(good, keys, features, table)


def _decoded(row: ImageRow, preprocessing: Preprocessing) -> tuple[bytes, Rgb | str]:
    """Content hash and pixels of an image; or why it cannot be read."""
    try:
        data = read_image(row.path)
        found = decode(data, min_side=preprocessing.decode_at_least, value_range=preprocessing.value_range)
        return content_key(data), resize_and_crop(found.image, preprocessing)
    except UnreadableImage as error:
        return b"", error.reason


def _stacked(batches: Sequence[npt.NDArray[np.float32]], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """(N, ...) float32; also of no batch."""
    return np.concatenate([np.empty((0, *shape), np.float32), *batches])


def _engine(net: FeatureNet, device: str) -> Engine:
    """The preferred exact engine; equal on machines with the same processor and libraries."""
    size = net.backbone.preprocessing
    return choose_engine(net, count=MEASURE_FROM, sample=synthetic_sample(size.height, size.width), device=device)


def network_description(net: FeatureNet) -> dict[str, Any]:
    """Everything besides the images that determines features, but for the last bits, which engines differ in."""
    versions = {"features": FEATURES_VERSION, "decoder": DECODER_VERSION, "engine": ENGINE_VERSION}
    found = {"network": net.describe(), "pixels": net.backbone.preprocessing.pixel_key(), "versions": versions}
    document: dict[str, Any] = json.loads(json.dumps(found))
    return document
