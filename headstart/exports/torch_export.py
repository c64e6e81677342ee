"""PyTorch's ExportedProgram (.pt2): writing the graph."""

from __future__ import annotations

from pathlib import Path

import torch

from headstart.backbone.weights import quiet
from headstart.errors import ExportError, first_line
from headstart.exports.graph import ExportGraph
from headstart.exports.loaders import ABOUT_FILE
from headstart.exports.metadata import LOGGERS, ExportMetadata
from headstart.exports.onnx import EXAMPLE, dynamic_shape
from headstart.files import replacing
from headstart.model import Model


def capture(model: Model) -> torch.export.ExportedProgram:
    """A model as an ExportedProgram, raw pixels in, probabilities out.

    Raises:
        ExportError: the exporter cannot express it.
    """
    graph = ExportGraph(model)
    try:
        with quiet(*LOGGERS), torch.no_grad():
            return torch.export.export(
                graph, (torch.zeros(EXAMPLE, dtype=torch.uint8),), dynamic_shapes=dynamic_shape(), strict=False
            )
    except Exception as error:  # the exporter raises its own, and what the network's code raises when it is captured
        raise ExportError(f"{model.net.backbone.architecture} cannot be exported: {first_line(error)}.") from error


def write_program(program: torch.export.ExportedProgram, metadata: ExportMetadata, file: Path) -> None:
    """Writes a program with what it says of itself. Its example input is left out: torch would pickle it.

    Raises:
        OSError: it cannot be written.
    """
    program.example_inputs = None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine
    with replacing(file) as partial, quiet(*LOGGERS), open(partial, "wb") as opened:
        torch.export.save(program, opened, extra_files={ABOUT_FILE: metadata.text()})
