"""Pixels -> features, each image once: what the frozen backbone gave is kept on disk and never computed again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headstart.backbone.engine import SAMPLE, EnginePlan, choose_engine, run_stream
from headstart.backbone.forward import FeatureNet, PixelNet, TappedNet, feature_shape
from headstart.data.scan import pixel_store
from headstart.errors import CacheError
from headstart.progress import Progress, SilentProgress
from headstart.store import RowStore

FEATURES_VERSION = 1
"""Counted up whenever the same pixels and weights would give other features; part of the cache key."""

APPEND = 128
"""Rows that are written at once; a kill loses no more."""

APPEND_BYTES = 1 << 26
"""Bytes that are written at once, about."""


@dataclass(frozen=True)
class Tap:
    """What else to keep of a pass: the activation at a boundary, which fine-tuning will begin with.

    Attributes:
        net: gives both.
        store: of the activations.
    """

    net: TappedNet
    store: RowStore


def feature_store(net: FeatureNet, cache: Path | None = None, *, precision: str = "float32") -> RowStore:
    """Where the features of one frozen pass are kept: rows of (D,) float32, or of the map where nothing is pooled.

    The key holds the weights' fingerprint, pooling, cut, preprocessing, decoder and format version; the rows are
    found by the content of the images.
    """
    about = net.describe() | {
        "pixels": net.backbone.preprocessing.pixel_key(),
        "precision": precision,
        "version": FEATURES_VERSION,
    }
    return RowStore("features", about, dtype=np.float32, shape=feature_shape(net), root=cache)


def compute_features(
    net: FeatureNet,
    keys: Sequence[bytes],
    *,
    engines: EnginePlan | None = None,
    exact: bool = True,
    tap: Tap | None = None,
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
        tap: what to keep on the way; left out where there is no room for it, or a value exceeds half precision.
        device: see ``device.resolve_device``.
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
    if tap is not None and not _has_room(tap.store, len(missing)):
        tap = None
    run: PixelNet = net if tap is None else tap.net
    engine = choose_engine(
        run,
        count=len(missing),
        sample=pixels.read(missing[:SAMPLE]),
        plan=engines,
        exact=exact,
        device=device,
        cache=cache,
        progress=progress,
    )
    width = math.prod(store.shape)
    waiting: list[npt.NDArray[np.float32]] = []
    done = 0
    batches = [missing[start : start + engine.batch_size] for start in range(0, len(missing), engine.batch_size)]
    with progress.task("Running the backbone", len(missing)) as advance:
        for batch, rows in zip(batches, run_stream(engine, map(pixels.read, batches)), strict=True):
            waiting.append(rows)
            advance(len(batch))
            held = sum(map(len, waiting))
            if is_time_to_write(held, rows[0].nbytes) or done + held == len(missing):
                out, own = np.concatenate(waiting), missing[done : done + held]
                if tap is not None:  # first: features without their activations would never get them
                    _keep_activations(tap.store, own, out[:, width:])
                    out = out[:, :width].reshape(-1, *store.shape)
                store.append(own, out)
                done, waiting = done + held, []
    kept = len(set(keys)) - len(missing)
    progress.say(
        f"Ran {net.backbone.architecture} on {len(missing):,} images by {engine.name}"
        + (f"; features of {kept:,} were kept from before." if kept else ".")
    )
    return store


def is_time_to_write(count: int, row_bytes: int) -> bool:
    """Whether so many rows of so many bytes are enough to be written at once."""
    return count >= APPEND or count * row_bytes >= APPEND_BYTES


def half_precision(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float16] | None:
    """The rows in float16; None where a value is too large for it."""
    with np.errstate(over="ignore"):
        half = rows.astype(np.float16)
    return half if np.isfinite(half).all() else None


def _has_room(store: RowStore, count: int) -> bool:
    try:
        store.require_space(count)
    except CacheError:
        return False
    return True


def _keep_activations(store: RowStore, keys: Sequence[bytes], rows: npt.NDArray[np.float32]) -> None:
    half = half_precision(rows)
    if half is not None:
        store.append(keys, half.reshape(len(rows), *store.shape))
