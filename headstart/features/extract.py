"""Feature extraction: the frozen backbone runs once per image, and its features are cached."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.backbone.pixel_net import FeatureNet, PixelNet, TappedNet, feature_shape, part_widths
from headstart.cache.joined_rows import JoinedRows
from headstart.cache.keys import content_key
from headstart.cache.row_store import RowStore, warn_damaged
from headstart.data.pixel_cache import PixelReader
from headstart.engine.interface import Engine, Identity, Pixels
from headstart.engine.plan import EnginePlan
from headstart.engine.select import SAMPLE_SIZE, choose_engine, default_plan, synthetic_sample
from headstart.engine.streaming import run_stream
from headstart.errors import CacheError, WeightsError
from headstart.progress import Progress, SilentProgress

FEATURES_VERSION = 2
"""Incremented whenever the same pixels and weights give other features; part of the cache key."""

FeatureStore = RowStore | JoinedRows
"""Where features are kept: one store, or one for each layer that they are taken from."""

APPEND = 128
"""Rows that are written together; a killed process loses no more."""

APPEND_BYTES = 1 << 26
"""Approximate number of bytes that are written together."""


@dataclass(frozen=True)
class Tap:
    """Caching of intermediate activations during the frozen pass, for a fine-tuning that starts there.

    Attributes:
        net: computes features and activations.
        store: identity of the engine -> cache of the activations.
    """

    net: TappedNet
    store: Callable[[Identity], RowStore]


def pick_sample(keys: Sequence[bytes], labels: npt.NDArray[np.int64], count: int = SAMPLE_SIZE) -> list[int]:
    """A stratified sample of training images, to calibrate and compare engines.

    One image of each class in turn, chosen by content hash alone: not by order or name, and not by the run's seed, so
    that a run with another seed finds the cached features.

    Args:
        keys: N content hashes.
        labels: (N,), or (N, classes) of 0 and 1, whose combinations count as classes.
        count: number of images; all if there are fewer.

    Returns:
        Positions of images with different content.
    """
    classes = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    first = {key: position for position, key in reversed(list(enumerate(keys)))}
    drawn = sorted(first.values(), key=lambda position: content_key(b"engines" + keys[position]))
    seen: Counter[int] = Counter()
    turns = {}
    for position in drawn:
        turns[position] = seen[classes[position]]
        seen[classes[position]] += 1
    return sorted(drawn, key=turns.__getitem__)[:count]


def feature_store(net: FeatureNet, identity: Identity, cache: Path | None = None) -> FeatureStore:
    """The cache of features: rows of (D,) float32, or of the feature map without pooling.

    Its key has the fingerprint of the weights, pooling, cut, preprocessing, decoder version, format version and the
    identity of the engine; rows are found by the content hash of the image. Features of several layers are kept in one
    store for each layer, so that those of some of them can be read alone.
    """
    shared: dict[str, Any] = {"pixels": net.backbone.preprocessing.pixel_key(), "version": FEATURES_VERSION}
    parts = net.parts()
    shapes = [feature_shape(net)] if len(parts) == 1 else [(width,) for width in part_widths(net)]
    stores = [
        RowStore("features", part | identity | shared, dtype=np.float32, shape=shape, root=cache)
        for part, shape in zip(parts, shapes, strict=True)
    ]
    return stores[0] if len(stores) == 1 else JoinedRows(stores)


def compute_features(
    net: FeatureNet,
    keys: Sequence[bytes],
    *,
    sources: Mapping[bytes, str] | None = None,
    engines: EnginePlan | None = None,
    sample: Pixels | None = None,
    exact: bool = True,
    tap: Tap | None = None,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> FeatureStore:
    """Runs the frozen backbone on all images whose features are not cached.

    The engine depends on ``engines``, or on the number of ``keys``, and never on what the cache already has.

    Args:
        net: the frozen pass.
        keys: content hashes of images whose pixels are in ``pixel_store(net.backbone.preprocessing)``.
        sources: content hash of each image -> its file, to decode damaged pixels again.
        engines: engines chosen for the run's data; default: the preferred exact engine.
        sample: (n, H, W, 3) images to compare engines on; default: synthetic pixels.
        exact: whether features are reported (float32), or only used for training, which needs ``engines``.
        tap: activations to cache on the way; skipped if the disk has no space, or a value exceeds half precision.
        device: see ``engine.device.resolve_device``.
        cache: cache folder; default: ``cache_root()``.
        progress: receives a step per batch, and a message about cached features.

    Returns:
        The store; ``store.read(keys)`` gives (N, D) float32.

    Raises:
        CacheError: the cache cannot be read or written.
        WeightsError: the backbone's output is not finite.
    """
    progress = progress or SilentProgress()
    engines = engines or default_plan(net, len(set(keys)), device=device)
    planned = engines.identity(exact=exact, device=device)
    store = _undamaged_store(net, keys, planned, cache, progress)
    count = len(store.missing(keys))
    if not count:
        progress.say(f"Features of all {len(keys):,} images are in the cache; the backbone does not run.")
        return store
    if tap is not None and not _has_space(tap.store(planned), count):
        tap = None
    preprocessing = net.backbone.preprocessing
    engine = choose_engine(
        net if tap is None else tap.net,
        count=len(keys),
        sample=synthetic_sample(preprocessing.height, preprocessing.width) if sample is None else sample,
        plan=engines,
        exact=exact,
        device=device,
        progress=progress,
    )
    if engine.identity != planned:
        store = _undamaged_store(net, keys, engine.identity, cache, progress)
    pixels = PixelReader(preprocessing, sources or {}, cache=cache, progress=progress)
    _compute_missing(net, keys, engine, pixels, store, None if tap is None else tap.store(engine.identity), progress)
    return store


def _undamaged_store(
    net: FeatureNet, keys: Sequence[bytes], identity: Identity, cache: Path | None, progress: Progress
) -> FeatureStore:
    """``feature_store`` after removing and reporting damaged rows of the given images."""
    store = feature_store(net, identity, cache)
    if store.drop_damaged(keys):
        warn_damaged("features", store.folder, progress)
    return store


class _FeatureWriter:
    """Writes the output of a network to the caches, many rows at a time.

    Args:
        net: which computed it.
        store: of features.
        activations: of the activations that come after the features in each row; None if there are none.
        keys: of all images, in the order of their rows.
    """

    def __init__(
        self, net: FeatureNet, store: FeatureStore, activations: RowStore | None, keys: Sequence[bytes]
    ) -> None:
        self.net, self.store, self.activations, self.keys = net, store, activations, keys
        self.waiting: list[npt.NDArray[np.float32]] = []
        self.num_written = 0

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """Takes the rows of the next images; writes them immediately if there are enough, or if they are the last.

        Raises:
            WeightsError: features are not finite.
            CacheError: the cache cannot be written.
        """
        self.waiting.append(rows)
        end = self.num_written + sum(map(len, self.waiting))
        if should_write(end - self.num_written, rows[0].nbytes) or end == len(self.keys):
            self._write(self.keys[self.num_written : end], np.concatenate(self.waiting))
            self.num_written, self.waiting = end, []

    def _write(self, keys: Sequence[bytes], rows: npt.NDArray[np.float32]) -> None:
        if self.activations is not None:  # first: features without activations would never get them
            width = math.prod(self.store.shape)
            _keep_activations(self.activations, keys, rows[:, width:])
            rows = rows[:, :width].reshape(-1, *self.store.shape)
        require_finite(self.net, rows)
        self.store.append(keys, rows)


def _compute_missing(
    net: FeatureNet,
    keys: Sequence[bytes],
    engine: Engine,
    pixels: PixelReader,
    store: FeatureStore,
    activations: RowStore | None,
    progress: Progress,
) -> None:
    """Runs an engine on the images without features in the store."""
    missing = [keys[i] for i in store.missing(keys)]
    if not missing:
        return
    store.require_space(len(missing))
    writer, size = _FeatureWriter(net, store, activations, missing), engine.batch_size
    batches = [missing[start : start + size] for start in range(0, len(missing), size)]
    with progress.task("Running the backbone", len(missing)) as advance:
        for batch, rows in zip(batches, run_stream(engine, map(pixels.read, batches)), strict=True):
            writer.add(rows)
            advance(len(batch))
    num_cached = len(set(keys)) - len(missing)
    progress.say(
        f"Ran {net.backbone.architecture} on {len(missing):,} images with {engine.name}"
        + (f"; features of {num_cached:,} were cached." if num_cached else ".")
    )


def require_finite(net: PixelNet, rows: npt.NDArray[np.floating[Any]]) -> None:
    """Checks the output of a backbone.

    Raises:
        WeightsError: it contains NaN or infinity.
    """
    if not np.isfinite(rows).all():
        backbone = net.backbone
        raise WeightsError(
            f"{backbone.architecture} ({backbone.source}): the features of the images contain NaN or infinity: the "
            "weights are damaged, or their training diverged. Use other weights (options weights, backbone), or a "
            "lower learning rate (option lr)."
        )


def should_write(count: int, row_bytes: int) -> bool:
    """Whether rows should be written to the cache now, by number and size."""
    return count >= APPEND or count * row_bytes >= APPEND_BYTES


def half_precision(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float16] | None:
    """The rows in float16; None if a value is out of range."""
    with np.errstate(over="ignore"):
        half = rows.astype(np.float16)
    return half if np.isfinite(half).all() else None


def _has_space(store: RowStore, count: int) -> bool:
    try:
        store.require_space(count)
    except CacheError:
        return False
    return True


def _keep_activations(store: RowStore, keys: Sequence[bytes], rows: npt.NDArray[np.float32]) -> None:
    half = half_precision(rows)
    if half is not None:
        store.append(keys, half.reshape(len(rows), *store.shape))
