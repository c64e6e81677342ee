"""Image map: t-SNE of the features, and the nearest training images of each val and test image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from headstart.cache.computed import computed_once
from headstart.engine.interface import summation_order
from headstart.errors import RunError
from headstart.extras import version_of
from headstart.files import csv_text, path_of, read_rows
from headstart.import_effects import restored_after_import
from headstart.trust.ood import unit

MAP_FILE = "map.csv"

NEAREST = 3
"""Number of nearest training images stored per image."""

PLACED = 1500
"""Maximum number of images for t-SNE; others are placed between their nearest neighbours among these."""

MAPPED = 20_000
"""Maximum number of images on a map, and of training images to search for neighbours."""

COMPONENTS = 50
"""Number of principal components for t-SNE."""

ITERATIONS = 300
"""Iterations of t-SNE; 500 take twice as long and show the same clusters."""

LEAST = 5
"""Minimum number of images for a map."""

AT_ONCE = 1024

MAP_VERSION = 1
"""Version of the algorithm; incremented to invalidate cached positions."""

SPREAD = 1e-6
"""Standard deviation of unit-length features up to which all images count as identical."""

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ImageMap:
    """Positions of N images on the map.

    Attributes:
        paths: N paths.
        splits: N of "train", "val", "test".
        labels: N class names; for multi-label data, the labels joined as in the column of a table.
        points: (N, 2) float64, each axis from 0 to 1.
        nearest: paths of the most similar training images of each image, most similar first; empty for training images.
    """

    paths: tuple[str, ...]
    splits: tuple[str, ...]
    labels: tuple[str, ...]
    points: npt.NDArray[np.float64]
    nearest: tuple[tuple[str, ...], ...]

    def csv(self) -> str:
        """CSV text with the columns path, split, label, x, y, and the nearest training images."""
        names = [f"nearest_{i + 1}" for i in range(NEAREST)]
        rows = []
        for i, path in enumerate(self.paths):
            near = [*self.nearest[i], *[""] * NEAREST][:NEAREST]
            rows.append([path, self.splits[i], self.labels[i], *(f"{v:.5f}" for v in self.points[i]), *near])
        return csv_text([["path", "split", "label", "x", "y", *names], *rows])


def read_map(folder: Path) -> ImageMap | None:
    """Reads the map of a run; None if it has none.

    Raises:
        RunError: the file is damaged.
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
        raise RunError(f"{file}: damaged ({error}). Remove it to write the report without a map.") from error
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
    """Computes the map of N images from their features.

    Args:
        paths: N paths.
        splits: N splits.
        labels: N labels.
        features: (N, D) float32.
        seed: random seed of t-SNE, and of the sample if there are too many images.
        cache: the cache folder, where positions of the same features are reused.

    Returns:
        The map; None for fewer than ``LEAST`` images.
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
        block = others[start : start + AT_ONCE]
        cosines = directions[block] @ directions[train].T
        ranked = np.argsort(-cosines, axis=1, kind="stable")[:, :NEAREST]
        for place, near in zip(block.tolist(), ranked, strict=True):
            found[place] = tuple(paths[i] for i in train[near].tolist())
    return found


def _positions(directions: Features, seed: int, cache: Path | None) -> npt.NDArray[np.float64]:
    """``_placed`` with a cache keyed by the features."""
    about = {
        "images": len(directions),
        "seed": seed,
        "version": MAP_VERSION,
        "t-SNE": [PLACED, COMPONENTS, ITERATIONS],
        "scikit-learn": version_of("scikit-learn"),
        "machine": summation_order(torch.device("cpu")),
    }
    shape = len(directions), 2
    return computed_once("maps", about, [directions], shape, lambda: _placed(directions, seed), cache=cache)


def _placed(directions: Features, seed: int) -> npt.NDArray[np.float64]:
    """(N, 2) positions, each axis from 0 to 1; all 0.5 if all features are identical."""
    with restored_after_import():
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE

    few = _some(len(directions), PLACED, seed)
    if not directions[few].std(axis=0).max() > SPREAD:  # t-SNE divides by it: 0 crashes the process
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
        block = rest[start : start + AT_ONCE]
        near = np.argsort(-(directions[block] @ directions[few].T), axis=1, kind="stable")[:, :NEAREST]
        points[block] = placed[near].mean(axis=1)
    low, high = points.min(axis=0), points.max(axis=0)
    return np.asarray((points - low) / np.maximum(high - low, 1e-12))


def _some(count: int, most: int, seed: int) -> npt.NDArray[np.int64]:
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
