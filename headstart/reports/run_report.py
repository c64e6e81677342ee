"""The report of a run: one HTML file that needs nothing else, for a reader who was not there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from headstart.data.decode import thumbnail
from headstart.data.finding import Finding
from headstart.data.inspection import Inspection
from headstart.evaluation.comparison import Compared
from headstart.evaluation.metrics import CROSS_VALIDATION, Scores, class_figures
from headstart.evaluation.predictions import MANY_CLASSES, Evaluated
from headstart.evaluation.reliability import BINS, Reliability, usual_kept
from headstart.files import json_text, path_of
from headstart.html import data_address
from headstart.model import Model
from headstart.reports.calibration_chart import calibration_charts
from headstart.reports.comparison_chart import comparison_chart
from headstart.reports.contact_sheets import ACROSS, DOWN, SIDE, Sheets, make_sheets
from headstart.reports.curves import CurvePoint, curve_charts
from headstart.reports.gradcam import heat_map_jpeg, heat_maps
from headstart.reports.image_map import ImageMap
from headstart.training.ladder import KNN, RungResult
from headstart.training.losses import is_multi_label
from headstart.trust.ood import INLIER_SHARE

MISTAKES = 24
THUMBNAIL = 200
LISTED_ITEMS = 20
MANY_COLUMNS = 40
"""Classes up to which a confusion matrix is drawn."""

LEGEND = 24
"""Classes, or combinations of labels, that the map tells apart: those of most images; the rest are others."""

POINTED = 6000
"""Images that the map draws at most; what is odd among them always."""

LISTED_RIGHT = 60
"""Images that a cell of the confusion matrix shows."""

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
"""Of classes on the map; the first six are told apart by people with any colour vision (Okabe and Ito)."""


@dataclass(frozen=True)
class Told:
    """What a report tells of; all of it lies in the run's folder.

    Attributes:
        name: of the data.
        base: folder that paths are shown from.
        model: the finished classifier.
        head: its name, how its settings were come by ("reason"), and how many of its numbers stayed ("frozen").
        counts: split -> class -> images.
        sizes: split -> images.
        split_origin: where the split comes from, see ``data.splits.Split.origin``.
        fingerprint: of the training images and their labels, SHA-256.
        findings: of the data check.
        evaluated: predictions by split.
        rungs: of the ladder.
        best: the name of the one that was kept.
        curves: epochs of all that was trained by steps.
        reliable: calibration before and after.
        image_map: None where there is none.
        brief: without Grad-CAM, and with small pictures of mistakes and findings alone.
        uses: how often test was scored, in words; "" for never.
        proof: fingerprints of what was frozen, and the engines.
        seconds: by step.
    """

    name: str
    base: Path
    model: Model
    head: Mapping[str, Any]
    counts: Mapping[str, Mapping[str, int]]
    sizes: Mapping[str, int]
    split_origin: str
    fingerprint: str
    findings: Sequence[Finding]
    evaluated: Sequence[Evaluated]
    rungs: Sequence[RungResult]
    best: str
    curves: Sequence[CurvePoint]
    reliable: Sequence[Reliability]
    image_map: ImageMap | None
    brief: bool
    uses: str
    proof: Mapping[str, Any]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class _Mistake:
    path: str
    shown: str
    right: str
    given: str
    chances: str
    picture: str
    heat: str
    nearest: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Gallery:
    finding: Finding
    items: tuple[tuple[str, tuple[str, ...]], ...]


def render_report(told: Told) -> str:
    """The report as HTML, pictures included; images that are gone are said to be."""
    model, several = told.model, told.model.thresholds is not None
    galleries = [_gallery(finding, told.base) for finding in told.findings]
    near = {} if told.image_map is None else dict(zip(told.image_map.paths, told.image_map.nearest, strict=True))
    wrong = {id(part): part.mistakes()[:MISTAKES] for part in told.evaluated}
    shown = _worth_showing(told, galleries, near, wrong)
    sheets = make_sheets(shown, value_range=model.preprocessing.value_range)
    points = _points(told, sheets)
    names = [label for label in model.classes if len(model.classes) <= MANY_CLASSES or _occurs(told, label)]
    own_labels = {} if told.image_map is None else dict(zip(told.image_map.paths, told.image_map.labels, strict=True))
    return (
        _pages()
        .get_template("report.html")
        .render(
            told=told,
            model=model,
            several=several,
            counted=names,
            head_weights=sum(t.numel() for t in model.head.state_dict().values()),
            parts=[
                _Part(part, _mistakes(told, part, wrong[id(part)], near, own_labels), _matrix(part))
                for part in told.evaluated
            ],
            ladder=[Markup(chart) for chart in _ladder(told)],
            curves=[Markup(chart) for chart in curve_charts(told.curves)] if told.curves else [],
            trust=[Markup(chart) for chart in calibration_charts(model.calibration, told.reliable, told.evaluated)],
            reliable={own.name: own for own in told.reliable},
            usual=usual_kept(model.calibration, told.evaluated),
            galleries=galleries,
            points=points,
            sheets=sheets,
            recipe=model.recipe.without_paths().as_json(),
            data=_data(told, sheets, points),
            style=_asset("report.css"),
            script=_asset("report.js"),
            place=_Placer(sheets),
            kept=INLIER_SHARE,
            bins=BINS,
            listed=LISTED_ITEMS,
            knn=KNN,
            rows_of=lambda scores: zip(class_figures(scores), scores.classes, strict=True),
            many=MANY_CLASSES,
            side=SIDE,
            shown_from=_shown_from(told.base),
        )
    )


def render_check(look: Inspection) -> str:
    """What a data check found as one HTML page, with the pictures of it."""
    galleries = [_gallery(finding, look.dataset.base) for finding in look.findings]
    sheets = make_sheets(path for own in galleries for _, paths in own.items for path in paths)
    return (
        _pages()
        .get_template("check.html")
        .render(
            name=look.dataset.root.resolve().name,
            usable=int(look.scanned.usable.sum()),
            count=len(look.dataset),
            serious=sum(finding.severity == "serious" for finding in look.findings),
            sizes=look.split.sizes,
            split_origin=look.split.origin,
            galleries=galleries,
            sheets=sheets,
            style=_asset("report.css"),
            place=_Placer(sheets),
            listed=LISTED_ITEMS,
            side=SIDE,
            shown_from=_shown_from(look.dataset.base),
        )
    )


@cache
def _pages() -> Environment:
    return Environment(
        loader=PackageLoader("headstart.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@dataclass(frozen=True)
class _Part:
    own: Evaluated
    mistakes: list[_Mistake]
    matrix: list[list[dict[str, Any]]]


class _Placer:
    """Where an image's tile is: number of its sheet and an offset in pixels; None where it has none."""

    def __init__(self, sheets: Sheets) -> None:
        self.tiles = sheets.tiles

    def __call__(self, path: str) -> dict[str, int] | None:
        tile = self.tiles.get(path)
        if tile is None:
            return None
        sheet, own = divmod(tile, ACROSS * DOWN)
        return {"sheet": sheet, "x": -SIDE * (own % ACROSS), "y": -SIDE * (own // ACROSS)}


def _shown_from(base: Path) -> Callable[[str], str]:
    return lambda path: shown_path(path, base)


def shown_path(path: str, base: Path) -> str:
    """A path as a report shows it: from the data's folder; the name alone where that would name a user's home.

    Args:
        path: absolute.
        base: the data's folder.
    """
    common = Path(os.path.commonpath([os.path.abspath(path), os.path.abspath(base)]))
    if common in Path.home().parents:
        return os.path.join("...", os.path.basename(path))
    return os.path.relpath(path, base)


def _worth_showing(
    told: Told, galleries: Sequence[_Gallery], near: Mapping[str, tuple[str, ...]], wrong: Mapping[int, list[int]]
) -> Iterator[str]:
    """What matters most first: there may not be room for all."""
    for part in told.evaluated:
        for place in wrong[id(part)]:
            yield part.paths[place]
            yield from near.get(part.paths[place], ())
    for gallery in galleries:
        for _, paths in gallery.items:
            yield from paths
    for part in told.evaluated:
        yield from (part.paths[i] for i in part.mistakes())
    if told.brief:
        return
    for part in told.evaluated:
        yield from part.paths
    if told.image_map is not None:
        yield from (told.image_map.paths[i] for i in _drawn(told))


def _gallery(finding: Finding, base: Path) -> _Gallery:
    paths: Sequence[tuple[str, ...]] = finding.images or ((),) * len(finding.items)
    rows = []
    for item, own in zip(finding.items[:LISTED_ITEMS], paths, strict=False):
        files = tuple(path_of(os.path.join(base, path)) for path in own)
        for path, file in zip(own, files, strict=True):
            item = item.replace(path, shown_path(file, base))
        rows.append((item, () if finding.kind == "unreadable" else files))
    return _Gallery(finding, tuple(rows))


def _occurs(told: Told, label: str) -> bool:
    return any(own.get(label) for own in told.counts.values())


def _matrix(part: Evaluated) -> list[list[dict[str, Any]]]:
    """Rows of cells: images, and the share of the row's class, which sets the shade; none of too many classes."""
    if not isinstance(part.scores, Scores) or len(part.classes) > MANY_COLUMNS:
        return []
    return [
        [
            {"label": part.classes[i], "count": count, "share": count / max(1, sum(row)), "right": i == j}
            for j, count in enumerate(row)
        ]
        for i, row in enumerate(part.scores.confusion)
    ]


def _mistakes(
    told: Told,
    part: Evaluated,
    places: Sequence[int],
    near: Mapping[str, tuple[str, ...]],
    labels: Mapping[str, str],
) -> list[_Mistake]:
    without = told.brief or part.scores.name == CROSS_VALIDATION  # whose answers are not the finished model's
    heats = {} if without else _heats(told, part, places)
    found = []
    for place in places:
        path = part.paths[place]
        right, given, chances = part.labels[place], part.given[place], part.probabilities[place]
        if is_multi_label(part.labels):
            names = [", ".join(part.classes[i] for i in own.nonzero()[0]) or "none" for own in (right, given)]
            wrong = [(i, "missed" if right[i] else "wrongly") for i in (right != given).nonzero()[0]]
            words = "; ".join(f"{how} {part.classes[i]} ({100 * chances[i]:.1f} %)" for i, how in wrong)
        else:
            names = [part.classes[right], part.classes[given]]
            words = f"{100 * chances[given]:.1f} % against {100 * chances[right]:.1f} %"
        shown, nearest = shown_path(path, told.base), tuple((p, labels.get(p, "")) for p in near.get(path, ()))
        found.append(
            _Mistake(path, shown, names[0], names[1], words, thumbnail(path, THUMBNAIL), heats.get(place, ""), nearest)
        )
    return found


def _heats(told: Told, part: Evaluated, places: Sequence[int]) -> dict[int, str]:
    """Position -> a picture of where the network looked for what it wrongly gave."""
    model = told.model
    seen = {place: pixels for place in places if not isinstance(pixels := model.preprocess(part.paths[place]), str)}
    numbers = {name: i for i, name in enumerate(model.classes)}
    asked = []
    for place in seen:
        given = part.given[place]
        if is_multi_label(part.labels):
            wrong = part.labels[place] != given
            given = int(np.where(wrong, np.maximum(part.probabilities[place], 1e-9), 0).argmax())
        asked.append(numbers[part.classes[int(given)]])
    maps = heat_maps(model, list(seen.values()), asked)
    if maps is None:
        return {}
    pictures = (heat_map_jpeg(pixels, heat) for pixels, heat in zip(seen.values(), maps, strict=True))
    return {place: data_address(data, "jpeg") for place, data in zip(seen, pictures, strict=True)}


def _ladder(told: Told) -> list[str]:
    rows = [
        Compared("depths", r.name, r.correct, r.count, r.low, r.high, r.log_loss, r.seconds, r.epochs, "")
        for r in told.rungs
    ]
    return [comparison_chart(rows)] if rows else []


def _drawn(told: Told) -> list[int]:
    """Positions of the map's images that are drawn: all, or what is odd and an even choice of the others."""
    assert told.image_map is not None
    count = len(told.image_map.paths)
    if count <= POINTED:
        return list(range(count))
    odd = _odd(told)
    kept = {i for i, path in enumerate(told.image_map.paths) if path in odd}
    kept |= set(np.linspace(0, count - 1, POINTED).astype(int).tolist())
    return sorted(kept)


def _odd(told: Told) -> dict[str, str]:
    """Path -> why it is marked on the map."""
    marked: dict[str, str] = {}
    for part in told.evaluated:
        for place in part.mistakes():
            marked.setdefault(part.paths[place], f"mistake: taken for {part.names_of(part.given[[place]])[0]}")
    for finding in told.findings:
        if finding.kind in ("wrong-label", "outlier"):
            for item, paths in zip(finding.items, finding.images, strict=True):
                words = item.rpartition(": ")[2]
                marked |= {path_of(os.path.join(told.base, path)): f"{finding.kind}: {words}" for path in paths}
    return marked


def _points(told: Told, sheets: Sheets) -> dict[str, Any] | None:
    """What the map draws: per point place, class, mark, tile and words."""
    own = told.image_map
    if own is None:
        return None
    often = Counter(own.labels).most_common(LEGEND)
    order = {name: i for i, name in enumerate(told.model.classes)}
    names = sorted((name for name, _ in often), key=lambda name: order.get(name, len(order)))
    number = {name: i for i, name in enumerate(names)}
    if len(set(own.labels)) > len(names):
        names.append("others")
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    odd, drawn = _odd(told), _drawn(told)
    points = [
        {
            "x": round(1000 * float(own.points[i, 0]), 1),
            "y": round(640 * (1 - float(own.points[i, 1])), 1),
            "label": number.get(own.labels[i], len(number)),
            "split": own.splits[i],
            "mark": odd.get(own.paths[i], ""),
            "tile": sheets.tiles.get(own.paths[i], -1),
            "path": shown_path(own.paths[i], told.base),
        }
        for i in drawn
    ]
    points.sort(key=lambda point: bool(point["mark"]))
    return {"points": points, "names": names, "colours": [colour[name] for name in names], "count": len(own.paths)}


def _data(told: Told, sheets: Sheets, points: dict[str, Any] | None) -> Markup:
    """What the page's script shows when a cell is asked about, as JSON that is safe within HTML."""
    parts = {}
    for part in told.evaluated:
        if _matrix(part):
            cells: dict[str, list[list[Any]]] = {}
            order = np.argsort(-part.probabilities.max(axis=1), kind="stable").tolist()
            for i in order:
                own = cells.setdefault(f"{part.labels[i]}-{part.given[i]}", [])
                if len(own) < LISTED_RIGHT:
                    chance = float(part.probabilities[i, part.given[i]])
                    path = part.paths[i]
                    own.append([sheets.tiles.get(path, -1), shown_path(path, told.base), round(chance, 4)])
            parts[part.scores.name] = {"cells": cells, "classes": part.classes}
    document = {
        "side": SIDE,
        "across": ACROSS,
        "sheet": ACROSS * DOWN,
        "parts": parts,
        "map": points and {"names": points["names"], "points": [_short(p) for p in points["points"]]},
    }
    return Markup(json_text(document).replace("<", "\\u003c").replace("&", "\\u0026"))  # nothing ends the script


def _short(point: Mapping[str, Any]) -> list[Any]:
    return [point[name] for name in ("x", "y", "label", "split", "mark", "tile", "path")]


def _asset(name: str) -> Markup:
    return Markup((Path(__file__).parent / "templates" / name).read_text(encoding="utf-8"))
