"""Images of a report that are computed once: thumbnails and Grad-CAM overlays, cached by the content of the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from headstart.backbone.weights import fingerprint
from headstart.cache.computed import computed_rows
from headstart.cache.keys import content_key
from headstart.concurrency import map_images
from headstart.data.bit_depth import ValueRange
from headstart.data.decode import decode
from headstart.data.pixel_cache import read_unchanged
from headstart.data.preprocessing import DECODER_VERSION, Rgb
from headstart.data.sources.read import read_image
from headstart.engine.interface import summation_order
from headstart.errors import DataError, UnreadableImage
from headstart.extras import version_of
from headstart.model import Model
from headstart.reports.gradcam import GRADCAM_VERSION, heat_map_overlay, heat_maps

THUMBNAIL_VERSION = 1
"""Version of the method; incremented to invalidate cached thumbnails."""


def thumbnails(
    paths: Sequence[str],
    side: int,
    resampling: Image.Resampling,
    *,
    value_range: ValueRange | None = None,
    cache: Path | None = None,
) -> list[Image.Image | None]:
    """Reduces the images of N files; None for a file that cannot be read.

    Args:
        paths: N paths.
        side: of the square in pixels that a thumbnail fits into; smaller images are not enlarged.
        resampling: Pillow's filter.
        value_range: see ``Preprocessing``; images are shown as the model sees them.
        cache: the cache folder.
    """
    about = {
        "side": side,
        "resampling": resampling.name,
        "value_range": value_range and list(value_range),
        "decoder": DECODER_VERSION,
        "Pillow": version_of("pillow"),
        "version": THUMBNAIL_VERSION,
    }
    row = np.dtype([("height", "<u2"), ("width", "<u2"), ("pixels", "u1", (side, side, 3))])
    keys = _file_keys(paths)

    def thumbnail(position: int) -> npt.NDArray[Any] | None:
        try:
            data = read_unchanged(paths[position], keys[position])
            image = decode(data, min_side=side, value_range=value_range).image
        except DataError:
            return None
        image.thumbnail((side, side), resampling)
        made = np.zeros((), row)
        made["height"], made["width"] = image.height, image.width
        made["pixels"][: image.height, : image.width] = image
        return made

    rows = computed_rows(
        "thumbnails", about, keys, row, (), lambda missing: list(map_images(thumbnail, missing)), cache=cache
    )
    return [r if r is None else Image.fromarray(r["pixels"][: r["height"], : r["width"]]) for r in rows]


def heat_map_overlays(
    model: Model, paths: Sequence[str], classes: Sequence[int], *, cache: Path | None = None
) -> list[Rgb | None]:
    """Draws the Grad-CAM heat maps of N images over them.

    Args:
        model: the classifier.
        paths: N paths.
        classes: N class indices: the class to explain in each image.
        cache: the cache folder.

    Returns:
        N arrays (H, W, 3) uint8; None for a file that cannot be read, or if the network has no spatial activation.
    """
    about = model.net.describe() | {
        "head": fingerprint(model.head.state_dict()),
        "head_layers": model.head.about,
        "pixels": model.preprocessing.pixel_key(),
        "machine": summation_order(model.net.scale.device),
        "torch": version_of("torch"),
        "Pillow": version_of("pillow"),
        "version": GRADCAM_VERSION,
    }
    files = _file_keys(paths)
    keys = [content_key(key + index.to_bytes(4, "little")) for key, index in zip(files, classes, strict=True)]

    def overlays(missing: list[int]) -> list[Rgb | None]:
        pixels = {i: seen for i in missing if (seen := _preprocessed(model, paths[i], files[i])) is not None}
        heats = heat_maps(model, list(pixels.values()), [classes[i] for i in pixels])
        drawn = {} if heats is None else dict(zip(pixels, map(heat_map_overlay, pixels.values(), heats), strict=True))
        return [drawn.get(i) for i in missing]

    shape = (model.preprocessing.height, model.preprocessing.width, 3)
    return computed_rows("heat-maps", about, keys, np.uint8, shape, overlays, cache=cache)


def _preprocessed(model: Model, path: str, key: bytes) -> Rgb | None:
    """The pixels that the network sees; None if the file cannot be read or has changed since it was hashed."""
    try:
        seen = model.preprocess(read_unchanged(path, key))
    except DataError:
        return None
    return None if isinstance(seen, str) else seen


def _file_keys(paths: Sequence[str]) -> list[bytes]:
    """Content hashes; b"" for a file that cannot be read. Files are read again later: few are in memory at once."""
    return list(map_images(_file_key, paths))


def _file_key(path: str) -> bytes:
    try:
        return content_key(read_image(path))
    except UnreadableImage:
        return b""
