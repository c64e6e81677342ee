"""TIFF files: integer tags, and the page that shows the image rather than a thumbnail or a mask."""

from __future__ import annotations

from PIL import Image

MAX_PAGES_SEARCHED = 100
"""Pages at the start of a TIFF that are searched for one that is not a thumbnail."""

NEW_SUBFILE_TYPE, THUMBNAIL_OR_MASK = 254, 1 | 4
"""Tag NewSubfileType, and its bits for a reduced image and for a transparency mask."""

SUBFILE_TYPE, REDUCED = 255, 2
"""Tag SubfileType (TIFF 5 and older), and its value for a reduced image."""


def tag(image: Image.Image, number: int) -> int | None:
    """An integer TIFF tag; None if it is missing or not an integer."""
    value = getattr(image, "tag_v2", {}).get(number)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else None


def seek_main_page(image: Image.Image) -> None:
    """Moves a TIFF to the first page that is not a thumbnail or a mask; if there is none, to the largest page."""
    areas: list[int] = []
    for page in range(MAX_PAGES_SEARCHED):
        try:
            image.seek(page)
        except Exception:  # behind the last page, or damaged: Pillow raises a dozen types
            break
        if not (tag(image, NEW_SUBFILE_TYPE) or 0) & THUMBNAIL_OR_MASK and tag(image, SUBFILE_TYPE) != REDUCED:
            return
        areas.append(image.width * image.height)
    if areas:
        image.seek(areas.index(max(areas)))
