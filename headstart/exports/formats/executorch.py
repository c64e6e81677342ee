"""ExecuTorch (.pte): PyTorch's runtime for phones, with XNNPACK on the CPU.

Converter and runtime are in an isolated environment, see ``isolated_environment``.
"""

from __future__ import annotations

from typing import Final

from headstart.exports.formats.fitted import (
    CONVERTERS,
    append_metadata,
    before_graph,
    environment,
    write_fitted_program,
)
from headstart.exports.formats.interface import ExportFormat, WriteRequest, WrittenFiles
from headstart.exports.phone_snippets import executorch_snippet

NAME: Final = "executorch"
ENVIRONMENT: Final = environment(NAME, "export to ExecuTorch", download=30, size=170)
CONVERTER: Final = CONVERTERS / "executorch_converter.py"


def _write(request: WriteRequest) -> WrittenFiles:
    from headstart.exports.graph import export_metadata

    target = request.model.preprocessing
    metadata = export_metadata(
        request.model,
        written_with=ENVIRONMENT.versions("executorch"),
        before_graph=before_graph(target, f"pixels, uint8 [1, {target.height}, {target.width}, 3], 0-255"),
    )
    ENVIRONMENT.ensure(request.progress)
    program = request.scratch / "program.pt2"
    write_fitted_program(request.model, program)
    with request.progress.task("Converting", 1):
        ENVIRONMENT.run(CONVERTER, [program, request.file], request.progress)
    append_metadata(request.file, metadata)
    return WrittenFiles(metadata, {NAME: request.file})


FORMAT = ExportFormat(
    NAME,
    ".pte",
    _write,
    "executorch_reader.py",
    snippets={"python": executorch_snippet},
    environment=ENVIRONMENT,
)
