"""Shared parts of the HTML reports: template environment, styles, displayed paths and thumbnails."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from headstart.data.sources.addresses import absolute, is_url, relative_to
from headstart.reports.contact_sheets import ACROSS, DOWN, SIDE, Sheets


def render(template: str, sheets: Sheets, base: str, **values: Any) -> str:
    """Renders a page from a template.

    Args:
        template: name of the template.
        sheets: contact sheets of all images on the page.
        base: folder of the data; paths are shown relative to it.
        **values: other variables of the template.
    """
    shared = {
        "sheets": sheets,
        "style": asset("report.css"),
        "tile_at": TilePlaces(sheets.tiles),
        "side": SIDE,
        "shown_path": PathsShown(base),
    }
    return _environment().get_template(template).render(**shared, **values)


def asset(name: str) -> Markup:
    """Reads a file of the template folder as unescaped text."""
    return Markup((Path(__file__).parent / "templates" / name).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class TilePlaces:
    """Finds the tile of an image: index of its sheet and offset in pixels; None without a tile."""

    tiles: dict[str, int]

    def __call__(self, path: str) -> dict[str, int] | None:
        """The tile of one image."""
        tile = self.tiles.get(path)
        if tile is None:
            return None
        sheet, place = divmod(tile, ACROSS * DOWN)
        return {"sheet": sheet, "x": -SIDE * (place % ACROSS), "y": -SIDE * (place // ACROSS)}


class PathsShown:
    """``shown_path`` for one data folder; resolves the folder once.

    Args:
        base: folder of the data.
    """

    def __init__(self, base: str) -> None:
        self._base = absolute(base)
        self._inside = os.path.join(self._base, "")
        self._homes = {str(parent) for parent in Path.home().parents}

    def __call__(self, path: str) -> str:
        """The displayed form of one address."""
        if is_url(self._base) or is_url(path):
            return relative_to(path, self._base).partition("?")[0]  # a query may hold a signature
        path = absolute(path)
        common = self._base if path.startswith(self._inside) else os.path.commonpath([path, self._base])
        if common in self._homes:
            return os.path.join("...", os.path.basename(path))
        return os.path.relpath(path, self._base) if common != self._base else path.removeprefix(self._inside)


def shown_path(path: str, base: str) -> str:
    """The displayed form of a path: relative to the data folder, or the file name if it would reveal a home folder.

    Args:
        path: absolute path.
        base: folder of the data.
    """
    return PathsShown(base)(path)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("headstart.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
