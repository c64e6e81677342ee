"""Misclassified images with Grad-CAM heat maps and nearest training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from headstart.data.decode import jpeg_bytes
from headstart.evaluation.metrics import CROSS_VALIDATION
from headstart.evaluation.predictions import Evaluated
from headstart.html import data_address
from headstart.reports.gradcam import heat_map_jpeg
from headstart.reports.report_data import ReportData
from headstart.reports.report_page import PathsShown
from headstart.reports.shown_images import heat_map_overlays, thumbnails
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


THUMBNAIL_QUALITY = 80
"""JPEG quality on Pillow's scale."""


def shown_mistakes(data: ReportData, cache: Path | None = None) -> list[list[Mistake]]:
    """The mistakes of each evaluated set, most confident first.

    Args:
        data: data of the run.
        cache: the cache folder, where thumbnails and heat maps are kept.
    """
    heats, images, paths_shown = _heat_map_addresses(data, cache), _images(data, cache), PathsShown(data.base)
    labels = {} if data.image_map is None else dict(zip(data.image_map.paths, data.image_map.labels, strict=True))
    found = []
    for number, (part, places) in enumerate(zip(data.evaluated, data.shown_mistakes, strict=True)):
        mistakes = []
        for place in places:
            path = part.paths[place]
            nearest = tuple((near, labels.get(near, "")) for near in data.nearest.get(path, ()))
            heat = heats.get((number, place), "")
            mistakes.append(Mistake(paths_shown(path), *_texts(part, place), images[path], heat, nearest))
        found.append(mistakes)
    return found


def _images(data: ReportData, cache: Path | None) -> Mapping[str, str]:
    """Path of a shown mistake -> data: URL of its image; "" if it cannot be read."""
    shown = zip(data.evaluated, data.shown_mistakes, strict=True)
    paths = list(dict.fromkeys(part.paths[place] for part, places in shown for place in places))
    value_range = data.model.preprocessing.value_range
    images = thumbnails(paths, THUMBNAIL_SIDE, Image.Resampling.LANCZOS, value_range=value_range, cache=cache)
    jpegs = [None if image is None else jpeg_bytes(image, quality=THUMBNAIL_QUALITY) for image in images]
    return {path: "" if jpeg is None else data_address(jpeg, "jpeg") for path, jpeg in zip(paths, jpegs, strict=True)}


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


def _heat_map_addresses(data: ReportData, cache: Path | None) -> Mapping[tuple[int, int], str]:
    """(index of the evaluated set, position) -> data: URL of the heat map for the wrong prediction.

    Cross-validated predictions have no heat map, because they come from other models than the finished one.
    """
    if data.is_brief:
        return {}
    numbers = {name: i for i, name in enumerate(data.model.classes)}
    classes: dict[tuple[int, int], int] = {}
    for number, (part, places) in enumerate(zip(data.evaluated, data.shown_mistakes, strict=True)):
        for place in places if part.scores.name != CROSS_VALIDATION else ():
            classes[number, place] = numbers[part.classes[_explained_class(part, place)]]
    paths = [data.evaluated[number].paths[place] for number, place in classes]
    overlays = heat_map_overlays(data.model, paths, list(classes.values()), cache=cache)
    drawn = {key: overlay for key, overlay in zip(classes, overlays, strict=True) if overlay is not None}
    return {key: data_address(heat_map_jpeg(overlay), "jpeg") for key, overlay in drawn.items()}


def _explained_class(part: Evaluated, place: int) -> int:
    """The wrongly predicted class; for multi-label data, the wrong label with the highest probability."""
    if not is_multi_label(part.labels):
        return int(part.given[place])
    wrong: npt.NDArray[np.bool_] = part.labels[place] != part.given[place]
    return int(np.where(wrong, np.maximum(part.probabilities[place], 1e-9), 0).argmax())
