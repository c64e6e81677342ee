"""What an exported file says of itself, so that it can be used with nothing else at hand.

Neither this nor ``opened`` imports the model: what opens a file is to know the file alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headstart.data.bit_depth import ValueRange
from headstart.errors import ExportError

EXPORT_VERSION = 1

KEY = "headstart"
"""Under which ONNX's metadata hold the document."""

INPUT = "pixels"
LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
"""Of the exporters, which tell of each of their steps."""

OUTPUTS = ("probabilities", "outlier")
"""The second is there where the model knows what is usual."""


@dataclass(frozen=True)
class ExportMetadata:
    """The document in an exported file.

    Attributes:
        headstart_export: version of the document.
        classes: names, in the order of the probabilities.
        thresholds: where a picture may bear any number of labels, the probability from which on it is given each; None
            where each picture has one class.
        unsure_below: probability of the best class below which the answer is ``unsure``; 0: never.
        none_above: outlier score above which the answer is ``none``; None where the file has no such output.
        unsure: the words for an answer that is too unsure.
        none: the words for a picture of something else.
        decode_at_least: shorter side, in pixels, that a JPEG may be reduced to while it is decoded (see ``decode``).
        preprocessing: what the graph does with the pixels, see ``Preprocessing``; its ``value_range`` alone comes
            before the graph, where a picture is decoded to 8 bits.
        temperature: that the graph divides logits by.
        precision: "float32" or "int8".
        model: ``Model.version`` of the model that it was made from.
        backbone: its architecture.
        headstart: the version that wrote it.
        written_with: what else took part, by its name: version.
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
        """What becomes black and white of pictures of more than 8 bits before the graph sees them; see there."""
        found = self.preprocessing.get("value_range")
        return (float(found[0]), float(found[1])) if found else None

    def text(self) -> str:
        """One line of ASCII that begins with its version."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str, file: Path) -> ExportMetadata:
        """What ``text`` wrote.

        Raises:
            ExportError: it is damaged, or from a newer version.
        """
        try:
            document = json.loads(text)
            if document["headstart_export"] > EXPORT_VERSION:
                raise ExportError(f"{file}: exported by Headstart {document['headstart']}. Install a newer Headstart.")
            several = document["thresholds"]
            own = {"classes": tuple(document["classes"]), "thresholds": None if several is None else tuple(several)}
            return cls(**document | own)
        except (ValueError, KeyError, TypeError) as error:
            raise ExportError(f"{file}: what it says of itself is damaged ({error}). Export it again.") from error
