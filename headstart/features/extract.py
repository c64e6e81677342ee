"""Pixels -> features, each image once: what the frozen backbone gave is kept on disk and never computed again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headstart.backbone.engine import SAMPLE, EnginePlan, choose_engine, run_stream
from headstart.backbone.forward import FeatureNet, feature_count
from headstart.data.scan import pixel_store
from headstart.progress import Progress, SilentProgress
from headstart.store import RowStore

FEATURES_VERSION = 1
"""Counted up whenever the same pixels and weights would give other features; part of the cache key."""


def feature_store(net: FeatureNet, cache: Path | None = None, *, precision: str = "float32") -> RowStore:
    """Where the features of one frozen pass are kept: rows of (D,) float32.

    The key holds the weights' fingerprint, pooling, layer, preprocessing, decoder and format version; the rows are
    found by the content of the images.
    """
    about = net.describe() | {
        "pixels": net.backbone.preprocessing.pixel_key(),
        "precision": precision,
        "version": FEATURES_VERSION,
    }
    return RowStore("features", about, dtype=np.float32, shape=(feature_count(net),), root=cache)


def compute_features(
    net: FeatureNet,
    keys: Sequence[bytes],
    *,
    engines: EnginePlan | None = None,
    exact: bool = True,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> RowStore:
    """Makes sure that every image's features are on disk; runs the backbone on those that have none yet.

    Args:
        net: the frozen pass.
        keys: content hashes of images whose pixels are in ``pixel_store(net.backbone.preprocessing)``.
        engines: what was measured of the engines; measured here where it is not given.
        exact: whether the features are reported or handed out (float32), or only learnt from; the latter needs
            ``engines``.
        device: see ``engine.resolve_device``.
        cache: the cache folder; the default one where it is not given.
        progress: told of each batch, and of what was kept from before.

    Returns:
        The store; ``store.read(keys)`` gives (N, D) float32.

    Raises:
        CacheError: the cache cannot be read or written.
    """
    progress = progress or SilentProgress()
    store = feature_store(net, cache, precision=engines.precision(exact) if engines else "float32")
    missing = [keys[i] for i in store.missing(keys)]
    if not missing:
        progress.say(f"Features of all {len(keys):,} images were kept from before; the backbone is not run.")
        return store
    pixels = pixel_store(net.backbone.preprocessing, cache)
    store.require_space(len(missing))
    engine = choose_engine(
        net,
        count=len(missing),
        sample=pixels.read(missing[:SAMPLE]),
        plan=engines,
        exact=exact,
        device=device,
        cache=cache,
        progress=progress,
    )
    batches = [missing[start : start + engine.batch_size] for start in range(0, len(missing), engine.batch_size)]
    with progress.task("Running the backbone", len(missing)) as advance:
        for batch, rows in zip(batches, run_stream(engine, map(pixels.read, batches)), strict=True):
            store.append(batch, rows)
            advance(len(batch))
    kept = len(set(keys)) - len(missing)
    progress.say(
        f"Ran {net.backbone.architecture} on {len(missing):,} images by {engine.name}"
        + (f"; features of {kept:,} were kept from before." if kept else ".")
    )
    return store
