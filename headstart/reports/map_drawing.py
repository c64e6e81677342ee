"""Drawing of the image map: points with class, split, mark and thumbnail."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from headstart.data.sources.addresses import join
from headstart.files import path_of
from headstart.reports.image_map import ImageMap
from headstart.reports.report_data import ReportData
from headstart.reports.report_page import PathsShown

LEGEND = 24
"""Number of classes or label combinations with a separate colour, most frequent first; the rest are "others"."""

MAX_POINTS = 6000
"""Maximum number of drawn images; marked images are always drawn."""

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#6b4c9a",
    "#8c6d31",
    "#b22222",
    "#4d4d4d",
)
"""Colours of classes; the first six are distinguishable with any colour vision (Okabe and Ito)."""

MARKED_FINDINGS = ("wrong-label", "outlier")
"""Kinds of findings whose images are marked on the map."""


@dataclass(frozen=True)
class MapPoint:
    """An image on the map: position, index of the legend entry, split, reason for its mark, tile and path."""

    x: float
    y: float
    label: int
    split: str
    mark: str
    tile: int
    path: str

    def as_list(self) -> list[object]:
        """The point as a JSON array for the script of the page."""
        return [self.x, self.y, self.label, self.split, self.mark, self.tile, self.path]


@dataclass(frozen=True)
class MapDrawing:
    """The drawing of an image map.

    Attributes:
        points: the drawn images; marked images last, so that they are on top.
        names: legend entries.
        colours: colour of each legend entry.
        count: number of images on the map, drawn or not.
    """

    points: tuple[MapPoint, ...]
    names: tuple[str, ...]
    colours: tuple[str, ...]
    count: int


def map_drawing(data: ReportData, tiles: dict[str, int]) -> MapDrawing | None:
    """The drawing of the image map of a run; None without a map.

    Args:
        data: data of the report.
        tiles: path of an image -> number of its tile.
    """
    image_map = data.image_map
    if image_map is None:
        return None
    names = _legend(image_map, data.model.classes)
    number = {name: i for i, name in enumerate(names)}
    marks, paths_shown = _marks(data), PathsShown(data.base)
    points = [
        MapPoint(
            x=round(1000 * float(image_map.points[i, 0]), 1),
            y=round(640 * (1 - float(image_map.points[i, 1])), 1),
            label=number.get(image_map.labels[i], len(names) - 1),
            split=image_map.splits[i],
            mark=marks.get(image_map.paths[i], ""),
            tile=tiles.get(image_map.paths[i], -1),
            path=paths_shown(image_map.paths[i]),
        )
        for i in drawn_images(data)
    ]
    points.sort(key=lambda point: bool(point.mark))
    colours = tuple(COLOURS[i % len(COLOURS)] for i in range(len(names)))
    return MapDrawing(tuple(points), tuple(names), colours, len(image_map.paths))


def drawn_images(data: ReportData) -> list[int]:
    """Indices of the drawn images: all, or the marked ones and an evenly spaced sample of the others."""
    image_map = data.image_map
    count = 0 if image_map is None else len(image_map.paths)
    if image_map is None or count <= MAX_POINTS:
        return list(range(count))
    marks = _marks(data)
    drawn = {i for i, path in enumerate(image_map.paths) if path in marks}
    return sorted(drawn | set(np.linspace(0, count - 1, MAX_POINTS).astype(int).tolist()))


def _legend(image_map: ImageMap, classes: tuple[str, ...]) -> list[str]:
    """The most frequent labels in class order, then "others" if there are more."""
    order = {name: i for i, name in enumerate(classes)}
    counts = Counter(image_map.labels)
    names = sorted((name for name, _ in counts.most_common(LEGEND)), key=lambda name: order.get(name, len(order)))
    return [*names, "others"] if len(counts) > len(names) else names


def _marks(data: ReportData) -> dict[str, str]:
    """Path of an image -> reason for its mark on the map."""
    marks: dict[str, str] = {}
    for part in data.evaluated:
        for place in part.mistakes():
            marks.setdefault(part.paths[place], f"mistake: predicted {part.names_of(part.given[[place]])[0]}")
    for finding in data.findings:
        if finding.kind in MARKED_FINDINGS:
            for item, paths in zip(finding.items, finding.images, strict=True):
                reason = item.rpartition(": ")[2]
                marks |= {path_of(join(data.base, path)): f"{finding.kind}: {reason}" for path in paths}
    return marks
