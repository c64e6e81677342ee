"""Images for exported files: decoded as the metadata say; an image that cannot be read is None, or left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from headstart.concurrency import map_images
from headstart.data.decode import decode
from headstart.data.rgb import DecodedImage
from headstart.errors import ExportError, UnreadableImage
from headstart.exports.metadata import ExportMetadata

NOTHING_TO_CALIBRATE_ON: Final = (
    "no training image can be read to calibrate int8 on. Name a folder with readable images (option data, --data), or "
    "export without quantize (--quantize)."
)

T = TypeVar("T")


def decode_or_none(path: str, metadata: ExportMetadata, *, min_side: int | None = None) -> DecodedImage | None:
    """Decodes an image.

    Args:
        path: of the image.
        metadata: of the exported file.
        min_side: shorter side that decoding must keep, in pixels; None for that of the metadata.

    Returns:
        The image, with pixels before the resize of the graph; None if it cannot be read.
    """
    at_least = metadata.decode_at_least if min_side is None else min_side
    try:
        return decode(path, min_side=at_least, value_range=metadata.value_range)
    except UnreadableImage:
        return None


def map_decoded(
    function: Callable[[DecodedImage], T], paths: Sequence[str], metadata: ExportMetadata
) -> Iterator[T | None]:
    """Decodes images and applies a function in threads; None for an image that cannot be read.

    Args:
        function: of a decoded image.
        paths: of the images.
        metadata: of the exported file.
    """

    def one(path: str) -> T | None:
        found = decode_or_none(path, metadata)
        return None if found is None else function(found)

    return map_images(one, paths, ahead=8)


def calibration_images(
    function: Callable[[DecodedImage], T], paths: Sequence[str], metadata: ExportMetadata
) -> Iterator[T]:
    """As ``map_decoded``, without the images that cannot be read.

    Raises:
        ExportError: no image can be read.
    """
    is_empty = True
    for found in map_decoded(function, paths, metadata):
        if found is not None:
            is_empty = False
            yield found
    if is_empty:
        raise ExportError(NOTHING_TO_CALIBRATE_ON)
