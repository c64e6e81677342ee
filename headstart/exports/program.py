"""PyTorch's ExportedProgram (.pt2): writing the graph, and running a file without unpickling anything."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt
import torch

from headstart.backbone.engine import EXPORT_LOGGERS
from headstart.backbone.weights import quiet
from headstart.errors import ExportError
from headstart.exports.about import KEY, About
from headstart.exports.graph import Graph
from headstart.exports.onnx import EXAMPLE, dynamic_shape, first_line
from headstart.files import replacing
from headstart.model import Model

ABOUT_FILE = f"{KEY}.json"
"""In the archive's folder of extra files."""

_PLAIN = re.compile(
    r"models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt"
    rf"|extra/{re.escape(ABOUT_FILE)}|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
"""Entries of an archive in which torch looks for nothing that is pickled; of the sample inputs if they are empty."""


def capture(model: Model) -> torch.export.ExportedProgram:
    """A model as an ExportedProgram, raw pixels in, probabilities out.

    Raises:
        ExportError: the exporter cannot express it.
    """
    graph = Graph(model)
    try:
        with quiet(*EXPORT_LOGGERS), torch.no_grad():
            return torch.export.export(
                graph, (torch.zeros(EXAMPLE, dtype=torch.uint8),), dynamic_shapes=dynamic_shape(), strict=False
            )
    except Exception as error:  # the exporter raises its own, and what the network's code raises when it is captured
        raise ExportError(f"{model.net.backbone.architecture} cannot be exported: {first_line(error)}.") from error


def write_program(program: torch.export.ExportedProgram, about: About, file: Path) -> None:
    """Writes a program with what it says of itself. Its example input is left out: torch would pickle it.

    Raises:
        OSError: it cannot be written.
    """
    program.example_inputs = None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine
    with replacing(file) as partial, quiet(*EXPORT_LOGGERS), open(partial, "wb") as opened:
        torch.export.save(program, opened, extra_files={ABOUT_FILE: about.text()})


@final
class ProgramFile:
    """An exported .pt2 file, opened.

    ``torch.export.load`` unpickles whatever a file gives it to unpickle; so one that does is not handed to it.

    Args:
        file: which one.

    Attributes:
        about: what it says of itself.

    Raises:
        ExportError: no such file, damaged, no export of Headstart, or with something pickled in it.
    """

    def __init__(self, file: Path) -> None:
        self.about = _read_about(file)
        try:
            with quiet(*EXPORT_LOGGERS), open(file, "rb") as opened:
                self.module = torch.export.load(opened).module()
        except Exception as error:  # torch raises a dozen kinds
            raise ExportError(
                f"{file}: cannot be opened by torch {torch.__version__} ({first_line(error)})."
            ) from error

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        """(N, H, W, 3) uint8 -> (N, classes) probabilities, and (N,) outlier scores where the file has them."""
        with torch.inference_mode():
            return [out.numpy() for out in self.module(torch.from_numpy(pixels))]


def _read_about(file: Path) -> About:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {name.partition("/")[2]: name for name in archive.namelist()}
            if f"extra/{ABOUT_FILE}" not in entries:
                raise ExportError(f"{file}: no export of Headstart. Expected a file that headstart export wrote.")
            strange = [name for name in entries if not _PLAIN.fullmatch(name)]
            for kind in ("weights", "constants"):
                config = json.loads(archive.read(entries[f"data/{kind}/model_{kind}_config.json"]))["config"]
                strange += [name for name, own in config.items() if own["use_pickle"]]
            if strange or archive.getinfo(entries["data/sample_inputs/model.pt"]).file_size:
                raise ExportError(
                    f"{file}: holds what torch would unpickle ({', '.join(strange[:3]) or 'sample inputs'}), and no "
                    "export of Headstart does. It is not opened."
                )
            return About.read(archive.read(entries[f"extra/{ABOUT_FILE}"]).decode(), file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ExportError(f"{file}: damaged, or no exported program ({first_line(error)}).") from error
