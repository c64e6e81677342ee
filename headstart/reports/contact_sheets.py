"""Contact sheets: thumbnails of many images in a few JPEG files, for pages that can show any of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from PIL import Image

from headstart.data.bit_depth import ValueRange
from headstart.data.decode import decode, jpeg_bytes, map_images
from headstart.errors import UnreadableImage
from headstart.html import data_address

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


def make_sheets(paths: Iterable[str], *, value_range: ValueRange | None = None, most_bytes: int = MOST_BYTES) -> Sheets:
    """Draws each image once, in the given order, until the sheets reach their maximum size.

    Args:
        paths: paths of the image files, most important first.
        value_range: see ``Preprocessing``; images are shown as the model sees them.
        most_bytes: maximum size of all sheets, in bytes before base64.
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

    unique = dict.fromkeys(paths)
    for path, tile in zip(unique, map_images(partial(_tile, value_range=value_range), unique), strict=True):
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


def _tile(path: str, *, value_range: ValueRange | None) -> Image.Image | None:
    try:
        image = decode(path, min_side=SIDE, value_range=value_range).image
    except UnreadableImage:
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    return image
