"""Paired comparison of two models on the same images (McNemar's test)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headstart.data.dataset import Dataset
from headstart.errors import DataError
from headstart.evaluation.mcnemar import Paired, paired
from headstart.evaluation.predictions import Evaluated
from headstart.files import csv_text
from headstart.progress import Progress
from headstart.verbs.evaluate import evaluate


@dataclass(frozen=True)
class ModelComparison:
    """Result of ``compare_models``.

    Attributes:
        results: paired comparison on each set of the data.
        differing: images that only one model predicts correctly, as (path, set, label, prediction of the first,
            prediction of the second, "A" or "B" for the model that is correct).
    """

    results: tuple[Paired, ...]
    differing: tuple[tuple[str, str, str, str, str, str], ...]

    def csv(self) -> str:
        """``differing`` as CSV text with a header."""
        return csv_text([["path", "set", "label", "A", "B", "right"], *map(list, self.differing)])


def compare_models(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    source: str | os.PathLike[str] | Dataset,
    *,
    ignore_unknown: bool = False,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> ModelComparison:
    """Tests whether two models differ significantly in accuracy on the same images (McNemar's test).

    Args:
        first: a run folder or a model file.
        second: a run folder or a model file.
        source: labelled images: a folder, a table, or an open data set. Each of its splits is compared separately.
        ignore_unknown: see ``evaluate``.
        device: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder; the default one if None.
        progress: receives messages and the progress of each task.

    Raises:
        DataError: as for ``evaluate``, or the two models have no class in common.

    Examples:
        >>> comparison = hs.compare_models("runs/flowers", "runs/flowers", "flowers/")
        >>> comparison.results[0].difference, comparison.differing
        (0.0, ())
    """
    parts: list[dict[str, Evaluated]] = []
    for model in (first, second):
        found = evaluate(
            model, source, ignore_unknown=ignore_unknown, by="compare", device=device, cache=cache, progress=progress
        )
        parts.append({part.scores.name: part for part in found})
    results: list[Paired] = []
    differing: list[tuple[str, str, str, str, str, str]] = []
    for name, one in parts[0].items():
        if name in parts[1] and (places := _common(one, parts[1][name])):
            mine, theirs = (np.array(values) for values in zip(*places, strict=True))
            two = parts[1][name]
            results.append(paired(name, one.right[mine], two.right[theirs]))
            differing += _differing(one, two, places)
    if not results:
        raise DataError(
            f"{source}: the two models have no class in common, so no image can be scored by both. Give two models "
            "with common classes."
        )
    return ModelComparison(tuple(results), tuple(differing))


def _common(one: Evaluated, two: Evaluated) -> list[tuple[int, int]]:
    """Positions of the same image in both; each may have excluded images of classes that its model does not have."""
    place = {path: i for i, path in enumerate(two.paths)}
    return [(i, place[path]) for i, path in enumerate(one.paths) if path in place]


def _differing(
    one: Evaluated, two: Evaluated, places: Sequence[tuple[int, int]]
) -> list[tuple[str, str, str, str, str, str]]:
    names = one.names_of(one.labels), one.names_of(one.given), two.names_of(two.given)
    return [
        (one.paths[i], one.scores.name, names[0][i], names[1][i], names[2][j], "A" if one.right[i] else "B")
        for i, j in places
        if one.right[i] != two.right[j]
    ]
