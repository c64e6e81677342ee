"""Running an exported file in a fresh process, on picture files: only what lies in the file can take part."""

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
from headstart.errors import ExportError, HeadstartError, UnreadableImage
from headstart.exports.loaders import ExportFile, open_export
from headstart.exports.metadata import ExportMetadata

Chances = npt.NDArray[np.float64]

JOB_FILE, ANSWERS_FILE, FAULT_FILE = "job.json", "answers.npz", "fault.txt"
"""In the folder over which the two processes speak."""

WHOLE = 10**9
"""Shorter side, in pixels, that decoding is to keep: no picture is larger."""


@dataclass(frozen=True)
class FilePredictions:
    """What a file gave for N pictures.

    Attributes:
        metadata: what it says of itself.
        probabilities: (N, classes) float64, NaN where a picture cannot be read.
        outliers: (N,) float64, NaN likewise, and where the file has no such output.
        whole: as ``probabilities``, of JPEGs that decoding reduces, but decoded whole; NaN of others.
        seconds: from files to answers, one picture after the other; the whole ones aside.
    """

    metadata: ExportMetadata
    probabilities: Chances
    outliers: Chances
    whole: Chances
    seconds: float


def run_in_subprocess(file: Path, paths: Sequence[str], *, whole: bool = False) -> FilePredictions:
    """Runs a file on pictures, in a process of its own.

    Args:
        file: which one.
        paths: of the pictures.
        whole: decode JPEGs whole as well.

    Raises:
        ExportError: it cannot be used, or the process fails.
    """
    with tempfile.TemporaryDirectory(prefix="headstart-") as name:
        folder = Path(name)
        job = {"file": os.path.abspath(file), "paths": list(map(os.path.abspath, paths)), "whole": whole}
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
                metadata, found["probabilities"], found["outliers"], found["whole"], float(found["seconds"])
            )


def _run(folder: Path) -> None:
    """The fresh process: what ``run_in_subprocess`` asked for."""
    job = json.loads((folder / JOB_FILE).read_text())
    try:
        opened = open_export(Path(job["file"]))
    except HeadstartError as error:
        (folder / FAULT_FILE).write_text(str(error), encoding="utf-8", errors="backslashreplace")
        return
    metadata, paths = opened.metadata, job["paths"]
    for image in _decoded(paths[:1], metadata):  # the first run of all is slower
        if image is not None:
            opened(image[None])
    started = time.perf_counter()
    probabilities, outliers = _answers(opened, _decoded(paths, metadata), len(paths))
    seconds = time.perf_counter() - started
    whole = np.full_like(probabilities, np.nan)
    if job["whole"]:
        whole, _ = _answers(opened, _decoded(paths, metadata, only_whole=True), len(paths))
    np.savez(
        folder / ANSWERS_FILE,
        probabilities=probabilities,
        outliers=outliers,
        whole=whole,
        seconds=seconds,
        metadata=opened.metadata.text(),
    )


def _answers(opened: ExportFile, images: Iterator[Rgb | None], count: int) -> tuple[Chances, Chances]:
    probabilities, outliers = np.full((count, len(opened.metadata.classes)), np.nan), np.full(count, np.nan)
    for place, image in enumerate(images):
        if image is not None:
            first, *others = opened(image[None])
            probabilities[place] = first[0]
            if others:
                outliers[place] = others[0][0]
    return probabilities, outliers


def _decoded(paths: Sequence[str], metadata: ExportMetadata, *, only_whole: bool = False) -> Iterator[Rgb | None]:
    """Pictures as Headstart decodes them; or, whole, those that it reduces; None for the others."""

    def one(path: str) -> Rgb | None:
        try:
            found = decode(path, min_side=metadata.decode_at_least, value_range=metadata.value_range)
            if only_whole:
                reduced = found.image.size != (found.width, found.height)
                return np.array(decode(path, min_side=WHOLE).image) if reduced else None
            return np.array(found.image)
        except UnreadableImage:
            return None

    return map_images(one, paths, ahead=8)


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
