"""Misclassified images with Grad-CAM heat maps and nearest training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headstart.data.decode import thumbnail
from headstart.evaluation.metrics import CROSS_VALIDATION
from headstart.evaluation.predictions import Evaluated
from headstart.html import data_address
from headstart.reports.gradcam import heat_map_jpeg, heat_maps
from headstart.reports.report_data import ReportData
from headstart.reports.report_page import PathsShown
from headstart.training.losses import is_multi_label

THUMBNAIL_SIDE = 200
"""Longer side of the image of a mistake, in pixels."""


@dataclass(frozen=True)
class Mistake:
    """A misclassified image.

    Attributes:
        shown: path of the image, as shown.
        label: true class, or labels.
        predicted: predicted class, or labels.
        probabilities: probabilities of both, in words.
        image: data: URL of the image; "" if it cannot be read.
        heat: data: URL of the heat map; "" without one.
        nearest: (path, label) of the nearest training images.
    """

    shown: str
    label: str
    predicted: str
    probabilities: str
    image: str
    heat: str
    nearest: tuple[tuple[str, str], ...]


def shown_mistakes(data: ReportData) -> list[list[Mistake]]:
    """The mistakes of each evaluated set, most confident first."""
    heats, paths_shown = _heat_map_addresses(data), PathsShown(data.base)
    labels = {} if data.image_map is None else dict(zip(data.image_map.paths, data.image_map.labels, strict=True))
    found = []
    for number, (part, places) in enumerate(zip(data.evaluated, data.shown_mistakes, strict=True)):
        mistakes = []
        for place in places:
            path = part.paths[place]
            nearest = tuple((near, labels.get(near, "")) for near in data.nearest.get(path, ()))
            image, heat = thumbnail(path, THUMBNAIL_SIDE), heats.get((number, place), "")
            mistakes.append(Mistake(paths_shown(path), *_texts(part, place), image, heat, nearest))
        found.append(mistakes)
    return found


def _texts(part: Evaluated, place: int) -> tuple[str, str, str]:
    """(label, predicted, probabilities) of one prediction."""
    label, predicted, probabilities = part.labels[place], part.given[place], part.probabilities[place]
    if not is_multi_label(part.labels):
        text = f"{100 * probabilities[predicted]:.1f} % against {100 * probabilities[label]:.1f} %"
        return part.classes[label], part.classes[predicted], text
    names = [", ".join(part.classes[i] for i in row.nonzero()[0]) or "none" for row in (label, predicted)]
    wrong = [(i, "missed" if label[i] else "wrongly predicted") for i in (label != predicted).nonzero()[0]]
    return (
        names[0],
        names[1],
        "; ".join(f"{how} {part.classes[i]} ({100 * probabilities[i]:.1f} %)" for i, how in wrong),
    )


def _heat_map_addresses(data: ReportData) -> Mapping[tuple[int, int], str]:
    """(index of the evaluated set, position) -> data: URL of the heat map for the wrong prediction.

    Cross-validated predictions have no heat map, because they come from other models than the finished one.
    """
    if data.is_brief:
        return {}
    numbers = {name: i for i, name in enumerate(data.model.classes)}
    pixels, classes = {}, []
    for number, (part, places) in enumerate(zip(data.evaluated, data.shown_mistakes, strict=True)):
        for place in places if part.scores.name != CROSS_VALIDATION else ():
            seen = data.model.preprocess(part.paths[place])
            if not isinstance(seen, str):
                pixels[number, place] = seen
                classes.append(numbers[part.classes[_explained_class(part, place)]])
    maps = heat_maps(data.model, list(pixels.values()), classes)
    if maps is None:
        return {}
    jpegs = (heat_map_jpeg(seen, heat) for seen, heat in zip(pixels.values(), maps, strict=True))
    return {key: data_address(jpeg, "jpeg") for key, jpeg in zip(pixels, jpegs, strict=True)}


def _explained_class(part: Evaluated, place: int) -> int:
    """The wrongly predicted class; for multi-label data, the wrong label with the highest probability."""
    if not is_multi_label(part.labels):
        return int(part.given[place])
    wrong: npt.NDArray[np.bool_] = part.labels[place] != part.given[place]
    return int(np.where(wrong, np.maximum(part.probabilities[place], 1e-9), 0).argmax())
