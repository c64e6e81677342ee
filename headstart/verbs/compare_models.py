"""Two saved models on the same images."""

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
    """What two models gave on the same images.

    Attributes:
        results: of each set of the data.
        differing: of each image on which one is right and the other is not: its path, set, label, what the first gave,
            what the second gave, and which is right, "A" or "B".
    """

    results: tuple[Paired, ...]
    differing: tuple[tuple[str, str, str, str, str, str], ...]

    def csv(self) -> str:
        """A table of the images on which they differ."""
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
    """Tells whether one of two models is better than the other, image by image (McNemar's test).

    Args:
        first: a run folder or a model file.
        second: likewise.
        source: the images, each of their splits compared apart.
        ignore_unknown: see ``evaluate``.
        device: see ``train``.
        cache: the cache folder; the default one where it is not given.
        progress: told of each step.

    Raises:
        DataError: as ``evaluate``, or the two can score no image in common.
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
            mine, theirs = (np.array(own) for own in zip(*places, strict=True))
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
    """Positions of the same image in both: each may have left out classes that it does not know."""
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
