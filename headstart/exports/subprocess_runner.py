"""Predictions of an exported file for images, computed by a new process that has the file and the pixels alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headstart.concurrency import map_images
from headstart.data.preprocessing import Rgb
from headstart.exports.decoded_images import decode_or_none, map_decoded
from headstart.exports.formats.registry import open_export
from headstart.exports.metadata import ExportMetadata
from headstart.exports.reader_process import OpenedExport

Probabilities = npt.NDArray[np.float64]

FULL_SIZE = 10**9
"""Shorter side in pixels that decoding must keep, larger than any image: no JPEG is reduced."""


@dataclass(frozen=True)
class FilePredictions:
    """Predictions of an exported file for N images.

    Attributes:
        metadata: of the file.
        probabilities: (N, classes) float64; NaN for an unreadable image.
        outliers: (N,) float64 outlier scores; NaN for an unreadable image, or if the file has no such output.
        full_size: as ``probabilities``, for JPEGs that decoding would reduce, decoded at full size; NaN for others.
        seconds: time from image files to predictions, one image at a time, without those at full size.
        load_seconds: from the start of the process until the file was open.
    """

    metadata: ExportMetadata
    probabilities: Probabilities
    outliers: Probabilities
    full_size: Probabilities
    seconds: float
    load_seconds: float


def run_in_subprocess(file: Path, paths: Sequence[str], *, full_size: bool = False) -> FilePredictions:
    """Runs an exported file on images in a new process.

    Args:
        file: the exported file.
        paths: of the images.
        full_size: predict large JPEGs a second time, decoded at full size.

    Raises:
        ExportError: the file cannot be used, or the process fails.
    """
    with open_export(file) as opened:
        metadata = opened.metadata
        for image in _decoded(paths[:1], metadata):  # warm-up: the first run is slower
            if image is not None:
                opened(image[None])
        started = time.perf_counter()
        probabilities, outliers = _predict(opened, _decoded(paths, metadata), len(paths))
        seconds = time.perf_counter() - started
        whole = np.full_like(probabilities, np.nan)
        if full_size:
            whole, _ = _predict(opened, _reduced_at_full_size(paths, metadata), len(paths))
    return FilePredictions(metadata, probabilities, outliers, whole, seconds, opened.seconds)


def _predict(opened: OpenedExport, images: Iterator[Rgb | None], count: int) -> tuple[Probabilities, Probabilities]:
    probabilities, outliers = np.full((count, len(opened.metadata.classes)), np.nan), np.full(count, np.nan)
    for place, image in enumerate(images):
        if image is not None:
            first, *others = opened(image[None])
            probabilities[place] = first[0]
            if others:
                outliers[place] = others[0][0]
    return probabilities, outliers


def _decoded(paths: Sequence[str], metadata: ExportMetadata) -> Iterator[Rgb | None]:
    return map_decoded(lambda found: np.array(found.image), paths, metadata)


def _reduced_at_full_size(paths: Sequence[str], metadata: ExportMetadata) -> Iterator[Rgb | None]:
    """The images that decoding reduces, at full size; None for others."""

    def one(path: str) -> Rgb | None:
        found = decode_or_none(path, metadata)
        if found is None or found.image.size == (found.width, found.height):
            return None
        whole = decode_or_none(path, metadata, min_side=FULL_SIZE)
        return None if whole is None else np.array(whole.image)

    return map_images(one, paths, ahead=8)
