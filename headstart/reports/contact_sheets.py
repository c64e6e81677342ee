"""Contact sheets: thumbnails of many images in a few JPEG files, for pages that can show any of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from headstart.data.bit_depth import ValueRange
from headstart.data.decode import jpeg_bytes
from headstart.html import data_address
from headstart.reports.shown_images import thumbnails

SIDE = 88
"""Width and height of a tile, in pixels."""

ACROSS, DOWN = 20, 20
"""Number of tiles on a sheet."""

QUALITY = 72
GROUND = (238, 240, 243)

MOST_BYTES = 7_000_000
"""Maximum size of all sheets, in bytes before base64, which adds a third."""


@dataclass(frozen=True)
class Sheets:
    """Contact sheets of a report.

    Attributes:
        addresses: data: URLs of the sheets, each ``ACROSS`` tiles wide.
        tiles: path of an image -> number of its tile, counted row by row over all sheets.
        unread: paths of images that can no longer be read.
    """

    addresses: tuple[str, ...]
    tiles: dict[str, int]
    unread: tuple[str, ...]


def make_sheets(
    paths: Iterable[str],
    *,
    value_range: ValueRange | None = None,
    most_bytes: int = MOST_BYTES,
    cache: Path | None = None,
) -> Sheets:
    """Draws each image once, in the given order, until the sheets reach their maximum size.

    Args:
        paths: paths of the image files, most important first.
        value_range: see ``Preprocessing``; images are shown as the model sees them.
        most_bytes: maximum size of all sheets, in bytes before base64.
        cache: the cache folder, where the tiles are kept.
    """
    addresses: list[str] = []
    tiles: dict[str, int] = {}
    unread: list[str] = []
    held: list[Image.Image] = []
    used = 0

    def close() -> None:
        nonlocal used
        sheet = Image.new("RGB", (ACROSS * SIDE, math.ceil(len(held) / ACROSS) * SIDE), GROUND)
        for place, tile in enumerate(held):
            corner = place % ACROSS * SIDE + (SIDE - tile.width) // 2
            sheet.paste(tile, (corner, place // ACROSS * SIDE + (SIDE - tile.height) // 2))
        data = jpeg_bytes(sheet, quality=QUALITY)
        used += len(data)
        addresses.append(data_address(data, "jpeg"))
        held.clear()

    for path, tile in _tiles(dict.fromkeys(paths), value_range, cache):
        if tile is None:
            unread.append(path)
            continue
        tiles[path] = len(addresses) * ACROSS * DOWN + len(held)
        held.append(tile)
        if len(held) == ACROSS * DOWN:
            close()
            if used + used / len(addresses) > most_bytes:
                break
    if held:
        close()
    return Sheets(tuple(addresses), tiles, tuple(unread))


def _tiles(
    paths: Iterable[str], value_range: ValueRange | None, cache: Path | None
) -> Iterator[tuple[str, Image.Image | None]]:
    """(path, tile) of each image; None if it cannot be read. As many as a sheet holds are read at once."""
    remaining = iter(paths)
    while batch := list(islice(remaining, ACROSS * DOWN)):
        tiles = thumbnails(batch, SIDE, Image.Resampling.BILINEAR, value_range=value_range, cache=cache)
        yield from zip(batch, tiles, strict=True)
