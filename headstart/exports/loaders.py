"""Exported files, opened: an ONNX file with ONNX Runtime, a program with PyTorch and without unpickling anything."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt

from headstart.engine.onnx_runtime import onnxruntime
from headstart.errors import ExportError, first_line
from headstart.exports.metadata import INPUT, KEY, LOGGERS, ExportMetadata

ABOUT_FILE = f"{KEY}.json"
"""In the archive's folder of extra files."""

_PLAIN = re.compile(
    r"models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt"
    rf"|extra/{re.escape(ABOUT_FILE)}|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
"""Entries of an archive in which torch looks for nothing that is pickled; of the sample inputs if they are empty."""


@final
class OnnxFile:
    """An exported ONNX file, opened.

    Args:
        file: which one.
        threads: of the computation; 0 for as many as there are processors.

    Attributes:
        metadata: what it says of itself.

    Raises:
        ExportError: no such file, damaged, or no export of Headstart.
    """

    def __init__(self, file: Path, *, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises a dozen kinds
            raise ExportError(f"{file}: damaged, or no ONNX file ({first_line(error)}).") from error
        metadata = self.session.get_modelmeta().custom_metadata_map
        if KEY not in metadata:
            raise ExportError(
                f"{file}: no export of Headstart. ReferencePredictions a file that headstart export wrote."
            )
        self.metadata = ExportMetadata.read(metadata[KEY], file)

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        """(N, H, W, 3) uint8 -> (N, classes) probabilities, and (N,) outlier scores where the file has them."""
        found: list[npt.NDArray[np.float32]] = self.session.run(None, {INPUT: pixels})
        return found


@final
class TorchExportFile:
    """An exported .pt2 file, opened.

    ``torch.export.load`` unpickles whatever a file gives it to unpickle; so one that does is not handed to it.

    Args:
        file: which one.

    Attributes:
        metadata: what it says of itself.

    Raises:
        ExportError: no such file, damaged, no export of Headstart, or with something pickled in it.
    """

    def __init__(self, file: Path) -> None:
        import torch  # seconds, which an ONNX file need not wait for

        from headstart.backbone.weights import quiet

        self.metadata = _read_about(file)
        try:
            with quiet(*LOGGERS), open(file, "rb") as opened:
                self.module = torch.export.load(opened).module()
        except Exception as error:  # torch raises a dozen kinds
            raise ExportError(
                f"{file}: cannot be opened by torch {torch.__version__} ({first_line(error)})."
            ) from error

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        """(N, H, W, 3) uint8 -> (N, classes) probabilities, and (N,) outlier scores where the file has them."""
        import torch

        with torch.inference_mode():
            return [out.numpy() for out in self.module(torch.from_numpy(pixels))]


def _read_about(file: Path) -> ExportMetadata:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {name.partition("/")[2]: name for name in archive.namelist()}
            if f"extra/{ABOUT_FILE}" not in entries:
                raise ExportError(
                    f"{file}: no export of Headstart. ReferencePredictions a file that headstart export wrote."
                )
            strange = [name for name in entries if not _PLAIN.fullmatch(name)]
            for kind in ("weights", "constants"):
                config = json.loads(archive.read(entries[f"data/{kind}/model_{kind}_config.json"]))["config"]
                strange += [name for name, own in config.items() if own["use_pickle"]]
            if strange or archive.getinfo(entries["data/sample_inputs/model.pt"]).file_size:
                raise ExportError(
                    f"{file}: holds what torch would unpickle ({', '.join(strange[:3]) or 'sample inputs'}), and no "
                    "export of Headstart does. It is not opened."
                )
            return ExportMetadata.read(archive.read(entries[f"extra/{ABOUT_FILE}"]).decode(), file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ExportError(f"{file}: damaged, or no exported program ({first_line(error)}).") from error


ExportFile = OnnxFile | TorchExportFile


def open_export(file: Path) -> ExportFile:
    """An exported file, ready to run.

    Raises:
        ExportError: it cannot be used.
    """
    if not file.is_file():
        raise ExportError(f"{file}: no such file.")
    kinds: dict[str, type[ExportFile]] = {".onnx": OnnxFile, ".pt2": TorchExportFile}
    if file.suffix.lower() not in kinds:
        raise ExportError(f"{file}: expected a file that headstart export wrote, .onnx or .pt2.")
    return kinds[file.suffix.lower()](file)
