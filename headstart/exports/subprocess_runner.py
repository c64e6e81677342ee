"""Running an exported file on images in a new process, so that the result depends on the file alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headstart.data.decode import decode, map_images
from headstart.data.preprocessing import Rgb
from headstart.data.sources.addresses import absolute
from headstart.errors import ExportError, HeadstartError, UnreadableImage
from headstart.exports.formats.interface import ExportFile
from headstart.exports.formats.registry import open_export
from headstart.exports.metadata import ExportMetadata

Probabilities = npt.NDArray[np.float64]

JOB_FILE, ANSWERS_FILE, FAULT_FILE = "job.json", "answers.npz", "fault.txt"
"""Files in the folder through which the two processes communicate."""

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
    """

    metadata: ExportMetadata
    probabilities: Probabilities
    outliers: Probabilities
    full_size: Probabilities
    seconds: float


def run_in_subprocess(file: Path, paths: Sequence[str], *, full_size: bool = False) -> FilePredictions:
    """Runs an exported file on images in a new process.

    Args:
        file: the exported file.
        paths: of the images.
        full_size: predict large JPEGs a second time, decoded at full size.

    Raises:
        ExportError: the file cannot be used, or the process fails.
    """
    with tempfile.TemporaryDirectory(prefix="headstart-") as name:
        folder = Path(name)
        job = {"file": os.path.abspath(file), "paths": list(map(absolute, paths)), "full_size": full_size}
        (folder / JOB_FILE).write_text(json.dumps(job))
        done = subprocess.run(
            [sys.executable, "-m", __name__, name], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if (folder / FAULT_FILE).is_file():
            raise ExportError((folder / FAULT_FILE).read_text(encoding="utf-8"))
        if done.returncode or not (folder / ANSWERS_FILE).is_file():
            said = done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"]
            raise ExportError(f"{file}: cannot be run in a separate process ({said[-1]}).")
        with np.load(folder / ANSWERS_FILE) as found:
            metadata = ExportMetadata.read(str(found["metadata"]), file)
            return FilePredictions(
                metadata, found["probabilities"], found["outliers"], found["full_size"], float(found["seconds"])
            )


def _run(folder: Path) -> None:
    """The new process: does the job of ``run_in_subprocess``."""
    job = json.loads((folder / JOB_FILE).read_text())
    try:
        opened = open_export(Path(job["file"]))
    except HeadstartError as error:
        (folder / FAULT_FILE).write_text(str(error), encoding="utf-8", errors="backslashreplace")
        return
    metadata, paths = opened.metadata, job["paths"]
    for image in _decoded(paths[:1], metadata):  # warm-up: the first run is slower
        if image is not None:
            opened(image[None])
    started = time.perf_counter()
    probabilities, outliers = _predict(opened, _decoded(paths, metadata), len(paths))
    seconds = time.perf_counter() - started
    full_size = np.full_like(probabilities, np.nan)
    if job["full_size"]:
        full_size, _ = _predict(opened, _decoded(paths, metadata, only_reduced=True), len(paths))
    np.savez(
        folder / ANSWERS_FILE,
        probabilities=probabilities,
        outliers=outliers,
        full_size=full_size,
        seconds=seconds,
        metadata=opened.metadata.text(),
    )


def _predict(opened: ExportFile, images: Iterator[Rgb | None], count: int) -> tuple[Probabilities, Probabilities]:
    probabilities, outliers = np.full((count, len(opened.metadata.classes)), np.nan), np.full(count, np.nan)
    for place, image in enumerate(images):
        if image is not None:
            first, *others = opened(image[None])
            probabilities[place] = first[0]
            if others:
                outliers[place] = others[0][0]
    return probabilities, outliers


def _decoded(paths: Sequence[str], metadata: ExportMetadata, *, only_reduced: bool = False) -> Iterator[Rgb | None]:
    """Decoded images, None for unreadable ones; or only those that decoding reduces, at full size."""

    def one(path: str) -> Rgb | None:
        try:
            found = decode(path, min_side=metadata.decode_at_least, value_range=metadata.value_range)
            if only_reduced:
                reduced = found.image.size != (found.width, found.height)
                return np.array(decode(path, min_side=FULL_SIZE).image) if reduced else None
            return np.array(found.image)
        except UnreadableImage:
            return None

    return map_images(one, paths, ahead=8)


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
