"""Core ML (.mlpackage), for iPhones, iPads and Macs. Written anywhere; only macOS can run it.

The converter is in an isolated environment, see ``isolated_environment``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Final

from headstart.exports.formats.fitted import CONVERTERS, before_graph, environment, write_fitted_program
from headstart.exports.formats.interface import ExportFormat, WriteRequest, WrittenFiles
from headstart.exports.phone_snippets import swift_snippet

NAME: Final = "coreml"
ENVIRONMENT: Final = environment(NAME, "export to Core ML", download=5, size=35)
CONVERTER: Final = CONVERTERS / "coreml_converter.py"
UNVERIFIED: Final = "Core ML runs on macOS only: compare the file with its model there (headstart verify)"


def _write(request: WriteRequest) -> WrittenFiles:
    from headstart.exports.graph import export_metadata

    target = request.model.preprocessing
    metadata = export_metadata(
        request.model,
        written_with=ENVIRONMENT.versions("coremltools"),
        before_graph=before_graph(target, f"pixels, an RGB image of {target.width} x {target.height} pixels"),
        unverified=cannot_run(),
    )
    ENVIRONMENT.ensure(request.progress)
    program, text, package = (request.scratch / name for name in ("program.pt2", "metadata.json", "model.mlpackage"))
    write_fitted_program(request.model, program, planes=True)
    text.write_text(metadata.text(), encoding="utf-8")
    with request.progress.task("Converting", 1):
        ENVIRONMENT.run(CONVERTER, [program, text, package], request.progress)
    shutil.copytree(package, request.file, dirs_exist_ok=True, copy_function=shutil.copyfile)
    for folder in request.file.rglob("*"):
        folder.chmod(0o755 if folder.is_dir() else 0o644)
    return WrittenFiles(metadata, {NAME: request.file})


def cannot_run() -> str:
    """Why this machine cannot run a Core ML file; "" on macOS."""
    return "" if sys.platform == "darwin" else UNVERIFIED


FORMAT = ExportFormat(
    NAME,
    ".mlpackage",
    _write,
    "coreml_reader.py",
    snippets={"swift": swift_snippet},
    marker=str(Path("Data", "com.apple.CoreML", "model.mlmodel")),
    environment=ENVIRONMENT,
    cannot_run=cannot_run,
)
