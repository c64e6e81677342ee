"""ONNX file: opening a file that ``headstart export`` wrote, and running it with ONNX Runtime."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, final

import numpy as np
import numpy.typing as npt

from ..engine.onnx_runtime import new_session
from ..errors import ExportError, first_line
from ..exports.metadata import INPUT, KEY, OUTPUTS, ExportMetadata, is_unchanged

_CODE: Final = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
"""What ONNX Runtime writes before the reason of an error."""


@final
class OnnxFile:
    """An opened ONNX file.

    Args:
        file: path of the file.
        threads: of the computation; 0 for the number of processors.

    Attributes:
        metadata: of the file.

    Raises:
        ExportError: the file is missing, damaged or changed, or Headstart did not write it.
    """

    def __init__(self, file: Path, *, threads: int = 0) -> None:
        self.file = file
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ExportError(f"{file}: cannot be read ({error.strerror or error}).") from error
        try:
            self.session = new_session(content, threads=threads)
        except Exception as error:  # the runtime raises a dozen types
            reason = _CODE.sub("", first_line(error))
            raise ExportError(f"{file}: damaged, or not an ONNX file ({reason}). Copy or export it again.") from error
        properties = self.session.get_modelmeta().custom_metadata_map
        if KEY not in properties:
            raise ExportError(f"{file}: not written by Headstart. Expected a file written by headstart export.")
        self.metadata = ExportMetadata.read(properties[KEY], file)
        if not is_unchanged(content, self.metadata):
            raise ExportError(
                f"{file}: its content does not match its checksum: it was damaged or changed after the export. Copy or "
                "export it again."
            )
        self._check_graph()

    def _check_graph(self) -> None:
        """Checks inputs and outputs of the graph against the metadata.

        Raises:
            ExportError: they do not fit.
        """
        inputs = [one.name for one in self.session.get_inputs()]
        outputs = {one.name: one.shape for one in self.session.get_outputs()}
        expected = OUTPUTS[: 1 if self.metadata.none_above is None else 2]
        count = len(self.metadata.classes)
        last = outputs.get(OUTPUTS[0], [None])[-1]
        if inputs != [INPUT] or tuple(outputs) != expected or (isinstance(last, int) and last != count):
            raise ExportError(
                f"{self.file}: graph and metadata do not fit: {count:,} classes and the outputs {', '.join(expected)} "
                f"are expected, found {', '.join(f'{name} {shape}' for name, shape in outputs.items())}. Export it "
                "again."
            )

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        """(N, H, W, 3) uint8 -> (N, classes) probabilities, and (N,) outlier scores if the file has them."""
        found: list[npt.NDArray[np.float32]] = self.session.run(None, {INPUT: pixels})
        return found
