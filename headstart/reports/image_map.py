"""Where images lie among each other: a map of all, and the training images that are nearest to each of the others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headstart.cache.keys import content_key
from headstart.cache.row_store import DamagedRows, RowStore
from headstart.errors import CacheError, RunError
from headstart.files import csv_text, path_of, read_rows
from headstart.import_effects import restored_after_import
from headstart.trust.ood import unit

MAP_FILE = "map.csv"

NEAREST = 3
"""Training images that are named for each other image."""

PLACED = 1500
"""Images that t-SNE places; more are put between the nearest of these."""

MAPPED = 20_000
"""Images that a map holds at most, and training images that neighbours are looked for among."""

COMPONENTS = 50
"""Principal components that t-SNE works on."""

ITERATIONS = 300
"""Of t-SNE; 500 take twice as long and show the same clusters."""

LEAST = 5
"""Images below which there is nothing to map."""

AT_ONCE = 1024

MAP_VERSION = 1
"""Increased if the same features give other positions, to leave cached ones aside."""

SPREAD = 1e-6
"""Largest standard deviation of a number, over features of length 1, up to which they are all the same."""

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ImageMap:
    """N images.

    Attributes:
        paths: of them.
        splits: "train", "val", "test".
        labels: names; of several labels to an image, a cell each of a table's column of labels.
        points: (N, 2) float64, each axis from 0 to 1.
        nearest: of each image, paths of the training images most like it, the nearest first; none of training images.
    """

    paths: tuple[str, ...]
    splits: tuple[str, ...]
    labels: tuple[str, ...]
    points: npt.NDArray[np.float64]
    nearest: tuple[tuple[str, ...], ...]

    def csv(self) -> str:
        """A table: path, split, label, x, y, and the nearest training images."""
        names = [f"nearest_{i + 1}" for i in range(NEAREST)]
        rows = []
        for i, path in enumerate(self.paths):
            near = [*self.nearest[i], *[""] * NEAREST][:NEAREST]
            rows.append([path, self.splits[i], self.labels[i], *(f"{v:.5f}" for v in self.points[i]), *near])
        return csv_text([["path", "split", "label", "x", "y", *names], *rows])


def read_map(folder: Path) -> ImageMap | None:
    """The map of a run; None where it has none.

    Raises:
        RunError: it is damaged.
    """
    file = folder / MAP_FILE
    if not file.is_file():
        return None
    try:
        rows = read_rows(file)
        near = [tuple(path_of(p) for i in range(NEAREST) if (p := row[f"nearest_{i + 1}"])) for row in rows]
        points = np.array([[float(row["x"]), float(row["y"])] for row in rows]).reshape(-1, 2)
        paths, splits, labels = (tuple(row[name] for row in rows) for name in ("path", "split", "label"))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{file}: damaged ({error}). Train again, or remove it: the report goes without.") from error
    return ImageMap(paths, splits, labels, points, tuple(near))


def make_map(
    paths: Sequence[str],
    splits: Sequence[str],
    labels: Sequence[str],
    features: Features,
    *,
    seed: int = 0,
    cache: Path | None = None,
) -> ImageMap | None:
    """Maps images by their features.

    Args:
        paths: of N images.
        splits: of these.
        labels: of these.
        features: (N, D) float32.
        seed: of the projection, and of the images that are drawn where there are too many.
        cache: the cache folder, which keeps the positions for a second map of the same features.

    Returns:
        None of fewer than ``LEAST`` images.
    """
    if len(paths) < LEAST:
        return None
    directions = unit(features)
    drawn = _some(len(paths), MAPPED, seed)
    nearest = _nearest(paths, np.array(splits), directions, seed)
    return ImageMap(
        tuple(paths[i] for i in drawn),
        tuple(splits[i] for i in drawn),
        tuple(labels[i] for i in drawn),
        _positions(directions[drawn], seed, cache),
        tuple(nearest[i] for i in drawn),
    )


def _nearest(
    paths: Sequence[str], splits: npt.NDArray[np.str_], directions: Features, seed: int
) -> list[tuple[str, ...]]:
    train = np.flatnonzero(splits == "train")
    train = train[_some(len(train), MAPPED, seed)]
    found: list[tuple[str, ...]] = [()] * len(paths)
    if not len(train):
        return found
    others = np.flatnonzero(splits != "train")
    for start in range(0, len(others), AT_ONCE):
        own = others[start : start + AT_ONCE]
        cosines = directions[own] @ directions[train].T
        ranked = np.argsort(-cosines, axis=1, kind="stable")[:, :NEAREST]
        for place, near in zip(own.tolist(), ranked, strict=True):
            found[place] = tuple(paths[i] for i in train[near].tolist())
    return found


def _positions(directions: Features, seed: int, cache: Path | None) -> npt.NDArray[np.float64]:
    """``_placed``, from the cache if it holds the positions of the same features."""
    about = {"images": len(directions), "seed": seed, "version": MAP_VERSION, "t-SNE": [PLACED, COMPONENTS, ITERATIONS]}
    store = RowStore("maps", about, dtype=np.float64, shape=(len(directions), 2), root=cache)
    key = content_key(np.ascontiguousarray(directions).tobytes())
    with suppress(DamagedRows):
        if not store.missing([key]):
            kept: npt.NDArray[np.float64] = store.read([key])[0]
            return kept
    points = _placed(directions, seed)
    with suppress(CacheError):  # a full disk costs the cache, not the map
        store.append([key], points[None])
    return points


def _placed(directions: Features, seed: int) -> npt.NDArray[np.float64]:
    """(N, 2), each axis from 0 to 1; all in the middle where the images' features are all the same."""
    with restored_after_import():
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE

    few = _some(len(directions), PLACED, seed)
    if not directions[few].std(axis=0).max() > SPREAD:  # t-SNE divides by it, and where it is 0 the process crashes
        return np.full((len(directions), 2), 0.5)
    components = min(COMPONENTS, len(few), directions.shape[1])
    reduced = PCA(components, svd_solver="randomized", random_state=seed).fit_transform(directions[few])
    perplexity = min(30.0, (len(few) - 1) / 3)
    tsne = TSNE(2, init="pca" if components > 1 else "random", perplexity=perplexity, max_iter=ITERATIONS)
    placed = tsne.set_params(random_state=seed).fit_transform(reduced.astype(np.float32)).astype(np.float64)
    points = np.empty((len(directions), 2))
    points[few] = placed
    rest = np.setdiff1d(np.arange(len(directions)), few)
    for start in range(0, len(rest), AT_ONCE):
        own = rest[start : start + AT_ONCE]
        near = np.argsort(-(directions[own] @ directions[few].T), axis=1, kind="stable")[:, :NEAREST]
        points[own] = placed[near].mean(axis=1)
    low, high = points.min(axis=0), points.max(axis=0)
    return np.asarray((points - low) / np.maximum(high - low, 1e-12))


def _some(count: int, most: int, seed: int) -> npt.NDArray[np.int64]:
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
