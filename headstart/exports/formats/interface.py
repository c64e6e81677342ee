"""What an export format provides: a writer, the program that reads it, and code that uses the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from headstart.exports.metadata import ExportMetadata
from headstart.extras import require_extra
from headstart.isolated_environment import IsolatedEnvironment
from headstart.progress import Progress

if TYPE_CHECKING:
    from headstart.model import Model

NUM_CALIBRATION_IMAGES = 100
"""Training images on which a quantised variant measures ranges of activations."""


@dataclass(frozen=True)
class WriteRequest:
    """What a writer needs.

    Attributes:
        model: the model to export.
        file: where to write it; for a format of folders an empty folder.
        variant: "" for float32, or one of the format's variants.
        calibration_images: paths of training images that calibrate the ranges of activations, for int8.
        scratch: an empty folder for intermediate files.
        progress: receives messages.
        runtime_files: folder or archive of the runtime that the format includes; None to look for it.
        may_download: whether such a runtime may be downloaded.
    """

    model: Model
    file: Path
    variant: str
    calibration_images: Sequence[str]
    scratch: Path
    progress: Progress
    runtime_files: Path | None = None
    may_download: bool = True


@dataclass(frozen=True)
class WrittenFiles:
    """What a writer wrote.

    Attributes:
        metadata: of the exported file.
        files: name of each row of the comparison -> its file; the exported one last, before it files to compare with.
    """

    metadata: ExportMetadata
    files: dict[str, Path]


@dataclass(frozen=True)
class QuantizedLayers:
    """How much of a graph computes in 8 bits, counted in the graph itself.

    Attributes:
        convolutions: (in 8 bits, all) convolutions.
        products: (in 8 bits, all) matrix products with weights.
    """

    convolutions: tuple[int, int]
    products: tuple[int, int]

    def __str__(self) -> str:
        parts = [
            f"{done:,} of {count:,} {what}"
            for what, (done, count) in (("convolutions", self.convolutions), ("matrix products", self.products))
            if count
        ]
        return f"{' and '.join(parts)} in 8 bits"


@dataclass(frozen=True)
class ExportFormat:
    """An export format; an entry of ``registry.FORMATS``.

    Attributes:
        name: value of the option ``--to``.
        suffix: of its files; of a format of folders the end of their names, such as "_web".
        write: writes a model; raises ``ExportError`` if the format cannot express it.
        reader: name of the program of ``exports.readers`` that opens a file with nothing of Headstart imported.
        variants: other precisions than float32.
        snippets: language -> function from (file, metadata) to a few lines of code that use the file.
        count_quantized: counts the layers of a quantised file; None for a format without such variants.
        marker: name of a file that only folders of this format have; "" for a format of single files.
        extra: optional dependencies of Headstart that it needs, see ``extras.require_extra``; "" for none.
        environment: packages apart from this Python in which the reader runs, created if it does not exist; None for
            this Python.
        cannot_run: why this machine cannot run files of this format, so that they are not compared; "" if it can.
        has_outlier_scores: whether files of models with an out-of-distribution detector give outlier scores.
        not_checked: a sentence about what the comparison does not cover; "" if it covers everything.
    """

    name: str
    suffix: str
    write: Callable[[WriteRequest], WrittenFiles]
    reader: str
    variants: tuple[str, ...] = ()
    snippets: Mapping[str, Callable[[Path, ExportMetadata], str]] = field(default_factory=dict)
    count_quantized: Callable[[Path], QuantizedLayers] | None = None
    marker: str = ""
    extra: str = ""
    environment: IsolatedEnvironment | None = None
    cannot_run: Callable[[], str] = str
    has_outlier_scores: bool = True
    not_checked: str = ""

    def require(self) -> None:
        """Checks that its extra is installed.

        Raises:
            MissingExtra: it is not.
        """
        if self.extra:
            require_extra(self.extra, f"export to {self.name}")

    def file_name(self, stem: str, variant: str) -> str:
        """Name of a file or folder, such as model-int8.onnx; arguments: its beginning, and "" for float32."""
        return f"{stem}{f'-{variant}' if variant else ''}{self.suffix}"

    def is_format_of(self, file: Path) -> bool:
        """Whether a file or folder is of this format, by its suffix or its marker."""
        return (file / self.marker).is_file() if self.marker else file.suffix.lower() == self.suffix
