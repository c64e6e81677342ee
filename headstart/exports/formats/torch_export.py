"""PyTorch ExportedProgram (.pt2): writing a model with ``torch.export``.

Whatever needs PyTorch or the model is imported when it is used: the other formats do without.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headstart.exports.formats.interface import ExportFormat, WriteRequest, WrittenFiles
from headstart.exports.metadata import LOGGERS, ExportMetadata
from headstart.exports.readers.torch_reader import METADATA_FILE
from headstart.exports.snippets import python_snippet
from headstart.files import replacing

if TYPE_CHECKING:
    import torch


def write_program(program: torch.export.ExportedProgram, file: Path, metadata: ExportMetadata | None = None) -> None:
    """Writes a program, without its example input, which torch would pickle.

    Args:
        program: changed: example input and traces are removed.
        file: to write.
        metadata: of an export; None for a program that a converter reads.

    Raises:
        OSError: the file cannot be written.
    """
    import torch

    from headstart.quiet import quiet

    program.example_inputs = None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine
    with replacing(file) as partial, quiet(*LOGGERS), open(partial, "wb") as opened:
        torch.export.save(program, opened, extra_files={METADATA_FILE: metadata.text()} if metadata else None)


def _write(request: WriteRequest) -> WrittenFiles:
    import torch

    from headstart.exports.graph import capture, export_metadata

    metadata = export_metadata(request.model, written_with={"torch": str(torch.__version__)})
    write_program(capture(request.model), request.file, metadata)
    return WrittenFiles(metadata, {FORMAT.name: request.file})


FORMAT = ExportFormat("torch", ".pt2", _write, "torch_reader.py", snippets={"python": python_snippet})
