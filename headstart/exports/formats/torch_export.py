"""PyTorch ExportedProgram (.pt2): writing a model with ``torch.export``, and loading it without unpickling anything.

Whatever needs PyTorch or the model is imported when it is used: the other formats do without.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
import numpy.typing as npt

from headstart.errors import ExportError, first_line
from headstart.exports.formats.interface import ExportFormat, WriteRequest, WrittenFiles
from headstart.exports.metadata import KEY, LOGGERS, ExportMetadata
from headstart.exports.snippets import python_snippet
from headstart.files import replacing

if TYPE_CHECKING:
    import torch


METADATA_FILE = f"{KEY}.json"
"""Name of the metadata among the archive's extra files."""

_ALLOWED_ENTRY = re.compile(
    r"models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt"
    rf"|extra/{re.escape(METADATA_FILE)}|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
"""Archive entries that torch does not unpickle; the sample inputs only if they are empty."""


@final
class TorchExportFile:
    """An opened .pt2 file.

    ``torch.export.load`` unpickles some entries of an archive, so archives with such entries are refused before.

    Args:
        file: path of the file.

    Attributes:
        metadata: of the file.

    Raises:
        ExportError: the file is missing or damaged, Headstart did not write it, or it contains pickled entries.
    """

    def __init__(self, file: Path) -> None:
        import torch

        from headstart.quiet import quiet

        self.metadata = _read_metadata(file)
        try:
            with quiet(*LOGGERS), open(file, "rb") as opened:
                self.module = torch.export.load(opened).module()
        except Exception as error:  # torch raises a dozen types
            raise ExportError(
                f"{file}: cannot be opened by torch {torch.__version__} ({first_line(error)})."
            ) from error

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        """(N, H, W, 3) uint8 -> (N, classes) probabilities, and (N,) outlier scores if the file has them."""
        import torch

        with torch.inference_mode():
            return [out.numpy() for out in self.module(torch.from_numpy(pixels))]


def _read_metadata(file: Path) -> ExportMetadata:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {name.partition("/")[2]: name for name in archive.namelist()}
            if f"extra/{METADATA_FILE}" not in entries:
                raise ExportError(f"{file}: not written by Headstart. Expected a file written by headstart export.")
            pickled = _pickled_entries(archive, entries)
            if pickled:
                raise ExportError(
                    f"{file}: contains entries that torch would unpickle ({', '.join(pickled[:3])})), which a "
                    "file written by Headstart never contains. The file is not opened."
                )
            return ExportMetadata.read(archive.read(entries[f"extra/{METADATA_FILE}"]).decode(), file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ExportError(f"{file}: damaged, or not an exported program ({first_line(error)}).") from error


def _pickled_entries(archive: zipfile.ZipFile, entries: dict[str, str]) -> list[str]:
    found = [name for name in entries if not _ALLOWED_ENTRY.fullmatch(name)]
    for kind in ("weights", "constants"):
        config = json.loads(archive.read(entries[f"data/{kind}/model_{kind}_config.json"]))["config"]
        found += [name for name, entry in config.items() if entry["use_pickle"]]
    if archive.getinfo(entries["data/sample_inputs/model.pt"]).file_size:
        found.append("sample inputs")
    return found


def write_program(program: torch.export.ExportedProgram, metadata: ExportMetadata, file: Path) -> None:
    """Writes a program with its metadata, without its example input, which torch would pickle.

    Raises:
        OSError: the file cannot be written.
    """
    import torch

    from headstart.quiet import quiet

    program.example_inputs = None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine
    with replacing(file) as partial, quiet(*LOGGERS), open(partial, "wb") as opened:
        torch.export.save(program, opened, extra_files={METADATA_FILE: metadata.text()})


def _write(request: WriteRequest) -> WrittenFiles:
    import torch

    from headstart.exports.graph import capture, export_metadata

    metadata = export_metadata(request.model, written_with={"torch": str(torch.__version__)})
    write_program(capture(request.model), metadata, request.file)
    return WrittenFiles(metadata, {FORMAT.name: request.file})


FORMAT = ExportFormat("torch", ".pt2", _write, TorchExportFile, snippets={"python": python_snippet})
