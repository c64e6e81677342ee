"""Opens an ExportedProgram (.pt2) with PyTorch alone. Runs outside Headstart: imports nothing of it.

``torch.export.load`` unpickles some entries of an archive, so archives with such entries are refused before.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable

import numpy

METADATA_FILE = "headstart.json"
"""Name of the metadata among the archive's extra files."""

_ALLOWED_ENTRY = re.compile(
    r"models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt"
    rf"|extra/{re.escape(METADATA_FILE)}|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
"""Archive entries that torch does not unpickle; the sample inputs only if they are empty."""


def open_file(path: str) -> tuple[str, Callable[[numpy.ndarray], list[numpy.ndarray]]]:
    """See ``onnx_reader.open_file``."""
    metadata = read_metadata(path)
    import torch

    try:
        with open(path, "rb") as opened:
            module = torch.export.load(opened).module()
    except Exception as error:  # torch raises a dozen types
        raise ValueError(f"cannot be opened by torch {torch.__version__} ({_first_line(error)})") from error

    def run(pixels: numpy.ndarray) -> list[numpy.ndarray]:
        with torch.inference_mode():
            return [out.numpy() for out in module(torch.from_numpy(pixels))]

    return metadata, run


def read_metadata(path: str) -> str:
    """The metadata of a file that contains nothing to unpickle.

    Raises:
        ValueError: what is wrong with the file, in words.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {name.partition("/")[2]: name for name in archive.namelist()}
            if f"extra/{METADATA_FILE}" not in entries:
                raise _Refused("not written by Headstart. Expected a file written by headstart export")
            if pickled := _pickled_entries(archive, entries):
                raise _Refused(
                    f"contains entries that torch would unpickle ({', '.join(pickled[:3])}), which a file written by "
                    "Headstart never contains. The file is not opened"
                )
            return archive.read(entries[f"extra/{METADATA_FILE}"]).decode()
    except _Refused:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"damaged, or not an exported program ({_first_line(error)})") from error


class _Refused(ValueError):
    """A file that is not opened, for a reason that is stated."""


def _pickled_entries(archive: zipfile.ZipFile, entries: dict[str, str]) -> list[str]:
    found = [name for name in entries if not _ALLOWED_ENTRY.fullmatch(name)]
    for kind in ("weights", "constants"):
        config = json.loads(archive.read(entries[f"data/{kind}/model_{kind}_config.json"]))["config"]
        found += [name for name, entry in config.items() if entry["use_pickle"]]
    if archive.getinfo(entries["data/sample_inputs/model.pt"]).file_size:
        found.append("sample inputs")
    return found


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
