"""Report of a run: a self-contained HTML file.

A section is a function from ``ReportContent`` to its blocks, a template in ``templates/sections/``, and a line in
``SECTIONS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from headstart.backbone.licenses import license_text
from headstart.evaluation.comparison import Compared
from headstart.evaluation.metrics import class_figures
from headstart.evaluation.predictions import MANY_CLASSES
from headstart.evaluation.reliability import BINS, reliabilities, usual_kept
from headstart.files import json_text
from headstart.prediction import INLIER_SHARE
from headstart.progress import Progress
from headstart.reports.calibration_chart import calibration_charts
from headstart.reports.comparison_chart import comparison_chart
from headstart.reports.confusion import cell_images, confusion_rows
from headstart.reports.contact_sheets import ACROSS, DOWN, SIDE, Sheets, make_sheets
from headstart.reports.curves import curve_charts
from headstart.reports.finding_galleries import LISTED_CASES, FindingGallery, finding_galleries, gallery_paths
from headstart.reports.map_drawing import MapDrawing, drawn_images, map_drawing
from headstart.reports.mistakes import Mistake, shown_mistakes
from headstart.reports.report_data import ReportData
from headstart.reports.report_page import PathsShown, asset, render
from headstart.selection.results import CandidateResult
from headstart.training.ladder import KNN


@dataclass(frozen=True)
class ReportContent:
    """Input of the sections.

    Attributes:
        data: data of the run.
        galleries: findings with their images.
        sheets: contact sheets of all images on the page.
        drawing: drawing of the image map; None without a map.
        mistakes: mistakes by evaluated set.
    """

    data: ReportData
    galleries: Sequence[FindingGallery]
    sheets: Sheets
    drawing: MapDrawing | None
    mistakes: Sequence[Sequence[Mistake]]


@dataclass(frozen=True)
class Block:
    """One section on the page.

    Attributes:
        anchor: id of the element.
        link: name in the navigation.
        values: variables of the template, in addition to ``data``.
        script: JSON object for the script of the page.
    """

    anchor: str
    link: str
    values: Mapping[str, Any] = field(default_factory=dict)
    script: Mapping[str, Any] = field(default_factory=dict)


def result_section(_content: ReportContent) -> Iterator[Block]:
    """Main results, and the data that selected the model."""
    yield Block("result", "Result")


def selection_section(content: ReportContent) -> Iterator[Block]:
    """Candidates for the backbone with accuracy, log loss, cost and decision."""
    selection = content.data.selection
    if selection is None:
        return
    results = [CandidateResult(**row) for row in selection["candidates"]]
    values = {
        "rows": results,
        "chosen": selection["chosen"],
        "stopped": selection["stopped"],
        "skipped": selection.get("skipped", []),
        "charts": [Markup(comparison_chart([result.compared() for result in results]))] if results else [],
    }
    yield Block("selection", "Backbone", values)


def ladder_section(content: ReportContent) -> Iterator[Block]:
    """Rungs of the ladder with accuracy, log loss and seconds."""
    data = content.data
    if not data.rungs:
        return
    rows = [
        Compared("depths", r.name, r.correct, r.count, r.low, r.high, r.log_loss, r.seconds, r.epochs, "")
        for r in data.rungs
    ]
    yield Block("ladder", "Ladder", {"charts": [Markup(comparison_chart(rows))], "knn": KNN})


def curves_section(content: ReportContent) -> Iterator[Block]:
    """Learning curves."""
    if content.data.curves:
        yield Block("curves", "Curves", {"charts": [Markup(chart) for chart in curve_charts(content.data.curves)]})


def evaluated_section(content: ReportContent) -> Iterator[Block]:
    """Metrics by class and group, confusion matrix and mistakes of each evaluated set."""
    paths_shown = PathsShown(content.data.base)
    for number, (part, mistakes) in enumerate(zip(content.data.evaluated, content.mistakes, strict=True), start=1):
        rows = confusion_rows(part)
        values = {
            "part": part,
            "name": part.scores.name,
            "rows": list(zip(class_figures(part.scores), part.scores.classes, strict=True)),
            "matrix": rows,
            "mistakes": mistakes,
            "has_map": content.drawing is not None,
            "many": MANY_CLASSES,
            "listed": LISTED_CASES,
        }
        script: dict[str, Any] = {}
        if rows:
            cells = cell_images(part, content.sheets.tiles, paths_shown)
            script = {"parts": {part.scores.name: {"cells": cells, "classes": part.classes}}}
        yield Block(f"set-{number}", part.scores.name, values, script)


def calibration_section(content: ReportContent) -> Iterator[Block]:
    """Reliability diagram, accuracy against coverage, and acceptance rate of out-of-distribution detection."""
    data = content.data
    calibration, found = data.model.calibration, reliabilities(data.model.calibration, data.evaluated)
    charts = [Markup(chart) for chart in calibration_charts(calibration, found, data.evaluated)]
    if charts:
        values = {
            "calibration": calibration,
            "reliabilities": found,
            "accepted": usual_kept(calibration, data.evaluated),
            "charts": charts,
            "bins": BINS,
            "nominal": INLIER_SHARE,
        }
        yield Block("calibration", "Calibration", values)


def map_section(content: ReportContent) -> Iterator[Block]:
    """Image map."""
    drawing = content.drawing
    if drawing is not None:
        script = {"names": drawing.names, "points": [point.as_list() for point in drawing.points]}
        yield Block("map", "Map", {"drawing": drawing}, {"map": script})


def images_section(content: ReportContent) -> Iterator[Block]:
    """Number of images by class and split, and findings of the data check."""
    data = content.data
    occurring = [name for name in data.model.classes if any(counts.get(name) for counts in data.counts.values())]
    names = occurring if len(data.model.classes) > MANY_CLASSES else data.model.classes
    yield Block("images", "Data", {"names": names, "galleries": content.galleries})


def model_section(content: ReportContent) -> Iterator[Block]:
    """Model, frozen proof, time by step, recipe and environment."""
    head_weights = sum(tensor.numel() for tensor in content.data.model.head.state_dict().values())
    recipe = content.data.model.recipe.without_paths().as_json()
    license = license_text(content.data.model.net.backbone.license)
    yield Block("model", "Model", {"head_weights": head_weights, "recipe": recipe, "license": license})


def exports_section(content: ReportContent) -> Iterator[Block]:
    """Files for other programs, compared with the model."""
    if content.data.exports is not None:
        yield Block("exports", "Exports", content.data.exports)


Section = Callable[[ReportContent], Iterator[Block]]

SECTIONS: Mapping[str, Section] = {
    "result": result_section,
    "selection": selection_section,
    "ladder": ladder_section,
    "curves": curves_section,
    "evaluated": evaluated_section,
    "calibration": calibration_section,
    "map": map_section,
    "images": images_section,
    "model": model_section,
    "exports": exports_section,
}
"""Template name in ``templates/sections/`` -> function, in the order of the page."""


def render_report(data: ReportData, cache: Path | None = None, progress: Progress | None = None) -> str:
    """Renders the report as HTML with embedded images; images that can no longer be read are marked.

    Args:
        data: data of the run.
        cache: the cache folder, where thumbnails and heat maps are kept.
        progress: receives a message about images that can no longer be read.
    """
    galleries = finding_galleries(data.findings, data.base)
    value_range = data.model.preprocessing.value_range
    sheets = make_sheets(_shown_images(data, galleries), value_range=value_range, cache=cache)
    if sheets.unread and progress is not None:
        progress.say(
            f"Warning: {len(sheets.unread):,} image(s) can no longer be read and are missing in the report. The first: "
            f"{sheets.unread[0]}. Put them back where they were and write the report again."
        )
    drawing = map_drawing(data, sheets.tiles)
    content = ReportContent(data, galleries, sheets, drawing, shown_mistakes(data, cache))
    blocks = [(template, block) for template, section in SECTIONS.items() for block in section(content)]
    return render(
        "report.html",
        sheets,
        data.base,
        data=data,
        model=data.model,
        blocks=blocks,
        script_data=_script_data([block for _, block in blocks]),
        script=asset("report.js"),
    )


def _shown_images(data: ReportData, galleries: Sequence[FindingGallery]) -> Iterator[str]:
    """Paths of all images on the page, most important first, because the size of the contact sheets is limited."""
    for part, places in zip(data.evaluated, data.shown_mistakes, strict=True):
        for place in places:
            yield part.paths[place]
            yield from data.nearest.get(part.paths[place], ())
    yield from gallery_paths(galleries)
    for part in data.evaluated:
        yield from (part.paths[i] for i in part.mistakes())
    if data.is_brief:
        return
    for part in data.evaluated:
        yield from part.paths
    if data.image_map is not None:
        yield from (data.image_map.paths[i] for i in drawn_images(data))


def _script_data(blocks: Sequence[Block]) -> Markup:
    """Data for the script of the page, as JSON that is safe inside HTML."""
    document: dict[str, Any] = {"side": SIDE, "across": ACROSS, "sheet": ACROSS * DOWN, "parts": {}, "map": None}
    for block in blocks:
        for name, value in block.script.items():
            document[name] = document[name] | value if name == "parts" else value
    return Markup(json_text(document).replace("<", "\\u003c").replace("&", "\\u0026"))  # cannot close the script
