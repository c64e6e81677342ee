"""Metadata in an exported file: all that is needed to use the file without Headstart.

This module does not import the model, so that opening a file depends on the file alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..data.bit_depth import ValueRange
from ..errors import ExportError

EXPORT_VERSION = 1
"""Version of the document; incremented whenever a key changes its meaning."""

KEY = "headstart"
"""Key of the document in ONNX metadata."""

INPUT = "pixels"
LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
"""Loggers of the exporters, which report every step."""

OUTPUTS = ("probabilities", "outlier")
"""Names of the outputs; the second only if the model has an out-of-distribution detector."""


_LATER = ("before_graph", "unverified")
"""Keys that earlier versions do not know: left out where they are empty."""


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
        precision: "float32", "float16" or "int8".
        model: ``Model.version`` of the exported model.
        backbone: architecture of the backbone.
        headstart: version of Headstart that wrote the file.
        written_with: other library -> version.
        scores: evaluation results of the model by set, see ``Model.scores``; empty in files of earlier versions.
        is_calibrated: whether the probabilities are calibrated; None in files of earlier versions.
        calibration: what was calibrated on which images, or why nothing was; "" in files of earlier versions.
        sha256: of the file before this value, for formats that end with the document (see ``sealed``); else "".
        before_graph: what a program must do with a decoded image before it runs the graph, in words; "" if the graph
            accepts images of any size.
        unverified: why the file was not compared with the model when it was written; "" if it was.
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
    scores: dict[str, Any] = field(default_factory=dict)
    is_calibrated: bool | None = None
    calibration: str = ""
    sha256: str = ""
    before_graph: str = ""
    unverified: str = ""

    @property
    def value_range(self) -> ValueRange | None:
        """(black, white) for images of more than 8 bits, see ``Preprocessing``; None for the full scale."""
        found = self.preprocessing.get("value_range")
        return (float(found[0]), float(found[1])) if found else None

    def text(self) -> str:
        """The document as one line of ASCII that begins with its version."""
        document = asdict(self)
        return json.dumps({key: value for key, value in document.items() if value or key not in _LATER})

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
            metadata = cls(**{name: _tuple(document[name]) for name in _names(document)})
            _check_classes(metadata)
            return metadata
        except (ValueError, KeyError, TypeError) as error:
            raise ExportError(f"{file}: the metadata is damaged ({error}). Export it again.") from error


def _names(document: dict[str, Any]) -> list[str]:
    """The fields that a document must have, and the optional ones that it has; further keys are ignored."""
    return [one.name for one in fields(ExportMetadata) if one.name in document or _is_required(one)]


def _check_classes(metadata: ExportMetadata) -> None:
    """Raises ValueError if classes and thresholds do not fit."""
    classes, thresholds = metadata.classes, metadata.thresholds
    if not isinstance(classes, tuple) or not classes or not all(isinstance(name, str) for name in classes):
        raise ValueError("the classes are not a list of names")
    if thresholds is not None and len(thresholds) != len(classes):
        raise ValueError("not one threshold for each class")


def _is_required(one: Any) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_DIGEST = 64
"""Characters of a SHA-256 in hex."""

_END = 2
"""Characters of a document after its SHA-256, which is the last value."""


def to_be_sealed(metadata: ExportMetadata) -> ExportMetadata:
    """The metadata for a file that ends with the document, with a place for its SHA-256."""
    return replace(metadata, sha256="0" * _DIGEST)


def sealed(content: bytes) -> bytes:
    """The content of a file that ends with a document from ``to_be_sealed``, with its SHA-256."""
    return content[: -_DIGEST - _END] + _digest(content).encode() + content[-_END:]


def is_unchanged(content: bytes, metadata: ExportMetadata) -> bool:
    """Whether a file has the SHA-256 that is in its document; True if it has none, as in earlier versions."""
    return not metadata.sha256 or (
        metadata.sha256 == _digest(content) and content.endswith(f'{metadata.sha256}"}}'.encode())
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(memoryview(content)[: -_DIGEST - _END]).hexdigest()
