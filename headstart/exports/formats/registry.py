"""The registry of export formats. A new format is a file beside this one and a line in ``FORMATS``."""

from __future__ import annotations

from pathlib import Path

from headstart.errors import ExportError
from headstart.exports.formats import coreml, executorch, litert, onnx, openvino, timm, torch_export, web
from headstart.exports.formats.interface import ExportFormat
from headstart.exports.reader_process import OpenedExport
from headstart.progress import Progress, SilentProgress

FORMATS: dict[str, ExportFormat] = {
    one.name: one
    for one in (
        onnx.FORMAT,
        torch_export.FORMAT,
        timm.FORMAT,
        openvino.FORMAT,
        web.FORMAT,
        litert.FORMAT,
        coreml.FORMAT,
        executorch.FORMAT,
    )
}
"""Name -> format."""


def format_of(file: Path) -> ExportFormat:
    """The format of a file, by its suffix, or of a folder, by what is in it.

    Raises:
        ExportError: it is of no format.
    """
    for one in FORMATS.values():
        if one.is_format_of(file):
            return one
    suffixes = " or ".join(one.suffix for one in FORMATS.values() if not one.marker)
    raise ExportError(f"{file}: expected a file written by headstart export, ending in {suffixes}, or such a folder.")


def open_export(file: Path, progress: Progress | None = None) -> OpenedExport:
    """Opens an exported file or folder in a new process, in which nothing of Headstart is imported.

    Args:
        file: the file or folder.
        progress: receives what is installed, if the format needs an isolated environment that does not exist yet.

    Raises:
        ExportError: it does not exist, is damaged, or is not an export.
    """
    if not file.exists():
        raise ExportError(f"{file}: no such file or folder.")
    form = format_of(file)
    if why := form.cannot_run():
        raise ExportError(f"{file}: {why}.")
    interpreter = str(form.environment.ensure(progress or SilentProgress())) if form.environment else ""
    return OpenedExport(file, form.reader, interpreter)
