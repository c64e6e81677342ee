"""Metadata in an exported file: all that is needed to use the file without Headstart.

This module does not import the model, so that opening a file depends on the file alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headstart.data.bit_depth import ValueRange
from headstart.errors import ExportError

EXPORT_VERSION = 1
"""Version of the document; incremented whenever a key changes its meaning."""

KEY = "headstart"
"""Key of the document in ONNX metadata."""

INPUT = "pixels"
LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
"""Loggers of the exporters, which report every step."""

OUTPUTS = ("probabilities", "outlier")
"""Names of the outputs; the second only if the model has an out-of-distribution detector."""


@dataclass(frozen=True)
class ExportMetadata:
    """The document in an exported file.

    Attributes:
        headstart_export: version of the document.
        classes: class names, in the order of the probabilities.
        thresholds: multi-label models only: probability from which each label is assigned; else None.
        unsure_below: probability of the best class below which the answer is ``unsure``; 0: never.
        none_above: outlier score above which the answer is ``none``; None if the file has no such output.
        unsure: text of the answer when the probability is too low.
        none: text of the answer for an out-of-distribution image.
        decode_at_least: shorter side, in pixels, that a JPEG may be reduced to while it is decoded (see ``decode``).
        preprocessing: preprocessing in the graph, see ``Preprocessing``. ``value_range`` is the exception: it is
            applied before the graph, when an image is decoded to 8 bits.
        temperature: by which the graph divides the logits.
        precision: "float32" or "int8".
        model: ``Model.version`` of the exported model.
        backbone: architecture of the backbone.
        headstart: version of Headstart that wrote the file.
        written_with: other library -> version.
    """

    headstart_export: int
    classes: tuple[str, ...]
    thresholds: tuple[float, ...] | None
    unsure_below: float
    none_above: float | None
    unsure: str
    none: str
    decode_at_least: int
    preprocessing: dict[str, Any]
    temperature: float
    precision: str
    model: str
    backbone: str
    headstart: str
    written_with: dict[str, str]

    @property
    def value_range(self) -> ValueRange | None:
        """(black, white) for images of more than 8 bits, see ``Preprocessing``; None for the full scale."""
        found = self.preprocessing.get("value_range")
        return (float(found[0]), float(found[1])) if found else None

    def text(self) -> str:
        """The document as one line of ASCII that begins with its version."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str, file: Path) -> ExportMetadata:
        """Reads what ``text`` wrote.

        Args:
            text: the document.
            file: for error messages.

        Raises:
            ExportError: the document is damaged, or was written by a newer version.
        """
        try:
            document = json.loads(text)
            if document["headstart_export"] > EXPORT_VERSION:
                raise ExportError(f"{file}: exported by Headstart {document['headstart']}. Install a newer Headstart.")
            thresholds = None if document["thresholds"] is None else tuple(document["thresholds"])
            return cls(**document | {"classes": tuple(document["classes"]), "thresholds": thresholds})
        except (ValueError, KeyError, TypeError) as error:
            raise ExportError(f"{file}: the metadata is damaged ({error}). Export it again.") from error
