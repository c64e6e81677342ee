"""What formats with a fixed input size share: the program that is handed to a converter, and words for the metadata.

Their graphs take one image that is resized and cropped already. The converter runs in an isolated environment.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from headstart.data.preprocessing import Preprocessing, resize_and_crop
from headstart.exports.decoded_images import calibration_images
from headstart.exports.formats.torch_export import write_program
from headstart.exports.metadata import ExportMetadata
from headstart.exports.readers.litert_reader import METADATA_FILE
from headstart.isolated_environment import IsolatedEnvironment

if TYPE_CHECKING:
    from headstart.model import Model

_FOLDER: Final = Path(__file__).parents[1]
CONVERTERS: Final = _FOLDER / "converters"


def environment(name: str, purpose: str, *, download: int, size: int) -> IsolatedEnvironment:
    """An environment with the requirements ``exports/environments/NAME.txt``; sizes in MB."""
    return IsolatedEnvironment(
        name, purpose, _FOLDER / "environments" / f"{name}.txt", download * 1_000_000, size * 1_000_000
    )


def write_fitted_program(model: Model, file: Path, *, planes: bool = False) -> None:
    """Writes the program that a converter reads.

    Args:
        model: the model.
        file: of the program.
        planes: see ``exports.graph.FittedGraph``.

    Raises:
        ExportError: the exporter cannot express the model.
    """
    from headstart.exports.graph import capture_fitted

    write_program(capture_fitted(model, planes=planes), file)


def before_graph(preprocessing: Preprocessing, model_input: str) -> str:
    """What an app must do with an image, for the metadata."""
    filters = f"Pillow's {preprocessing.interpolation} filter (antialiased, columns before rows, rounded to 8 bits)"
    return f"Decode to upright RGB. {preprocessing.sentence} Resize with {filters}. Input: {model_input}."


def append_metadata(file: Path, metadata: ExportMetadata) -> None:
    """Adds the metadata as a ZIP archive at the end of a file, where Android's and Python's ZIP readers find them."""
    entry = zipfile.ZipInfo(METADATA_FILE)  # of 1980: equal models give equal files
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(entry, metadata.text())


def write_calibration(paths: Sequence[str], preprocessing: Preprocessing, metadata: ExportMetadata, file: Path) -> None:
    """Writes training images, resized and cropped, as (N, height, width, 3) uint8 in a .npy file.

    Raises:
        ExportError: no image can be read.
    """
    found = calibration_images(lambda one: resize_and_crop(one.image, preprocessing), paths, metadata)
    np.save(file, np.stack(list(found)))
