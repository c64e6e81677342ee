"""ONNX model: predictions of an exported file, with the answers and errors of the model that it was exported from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, final, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..concurrency import ProcessLock, map_images, usable_cpus
from ..data.image_source import ImageSource
from ..data.preprocessing import Preprocessing, resized_size
from ..data.rgb import as_rgb, decode_content
from ..data.sources.local_file import read_local_file
from ..errors import ExportError, OptionError, UnreadableImage, first_line
from ..exports.metadata import ExportMetadata
from ..files import user_path
from ..prediction import INLIER_SHARE, Prediction, make_prediction, unreadable_prediction
from ..progress import Progress, SilentProgress
from .local_images import read_local
from .onnx_file import OnnxFile

SUFFIX = ".onnx"
DEVICES = ("auto", "cpu")

ROUNDING = 1e-6
"""Probability by which the confidence threshold is lowered. It is the probability of a validation image in float64, and
the graph computes in float32."""

ReadImages = Callable[[object], tuple[list[ImageSource], bool]]
"""Images in any form -> the images, and whether a single one was given."""

OneImage = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | npt.NDArray[Any] | ImageSource
)
"""One image; see ``local_images.ACCEPTED``."""

Scored = tuple[npt.NDArray[np.float64], float]
"""(classes,) probabilities and outlier score of an image."""

_OF_THE_MODEL = (
    "as_bytes",
    "calibration",
    "data",
    "embed",
    "head",
    "libraries",
    "logits",
    "make_prediction",
    "net",
    "ood_detector",
    "outlier_scores",
    "predict_features",
    "preprocess",
    "probabilities",
    "recipe",
    "replace",
    "save",
)
"""Attributes of ``Model`` that need its layers, or the history of its training."""

_LOCK = ProcessLock()
"""Held while a file is opened."""


def _one_for_each_processor(_addresses: list[str]) -> int:
    return usable_cpus()


@final
class OnnxModel:
    """An exported model: its predictions are those of the model that it was exported from. It cannot do anything else.

    Threads and forked processes may share one; each process opens the file once.

    Args:
        file: a file written by ``headstart export --to onnx``.
        read_images: parses the images of a prediction.
        read_content: the bytes of an image by its path.
        num_reading_threads: addresses of images -> threads that read and decode them.

    Attributes:
        file: path of the file.
        metadata: the document in the file: class names, thresholds, preprocessing and provenance.
        preprocessing: crop, size and normalisation of the input, which the graph applies.

    Raises:
        ExportError: the file is missing, damaged or changed, or Headstart did not write it.

    Examples:
        >>> exported = hs.export("runs/flowers", "onnx", out="flowers.onnx")
        >>> model = hs.load("flowers.onnx")
        >>> model.predict("rose.jpg").label
        'roses'
    """

    def __init__(
        self,
        file: Path,
        *,
        read_images: ReadImages = read_local,
        read_content: Callable[[str], bytes] = read_local_file,
        num_reading_threads: Callable[[list[str]], int] = _one_for_each_processor,
    ) -> None:
        if not file.is_file():
            raise ExportError(f"{file}: no such file.")
        self.file = file
        opened = OnnxFile(file, threads=usable_cpus())
        self._opened: tuple[int, OnnxFile] | None = (os.getpid(), opened)
        self.metadata = opened.metadata
        self.preprocessing = _preprocessing_of(self.metadata, file)
        self._read_images, self._read_content = read_images, read_content
        self._num_reading_threads = num_reading_threads

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the probabilities."""
        return self.metadata.classes

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """Multi-label models only: probability from which each label is assigned."""
        return self.metadata.thresholds

    @property
    def version(self) -> str:
        """SHA-256 of the model that the file was exported from."""
        return self.metadata.model

    @property
    def scores(self) -> dict[str, Any]:
        """Evaluation results of the model by set; empty for files of earlier versions."""
        return self.metadata.scores

    @property
    def is_calibrated(self) -> bool:
        """Whether the probabilities are calibrated; True for files of earlier versions, which do not say."""
        return self.metadata.is_calibrated is not False

    @property
    def calibration_text(self) -> str:
        """What was calibrated on which images, or why nothing was; "" for files of earlier versions."""
        return self.metadata.calibration

    def __repr__(self) -> str:
        return f"OnnxModel({len(self.classes)} classes, {self.metadata.backbone})"

    def __getstate__(self) -> dict[str, Any]:
        """Without the session, which cannot leave its process."""
        return self.__dict__ | {"_opened": None}

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in _OF_THE_MODEL:
                raise AttributeError(
                    f"OnnxModel has no {name!r}: {self.file} is an exported file, which predicts only. Load the run "
                    "folder or the model file (.safetensors) that it was exported from."
                )
            raise AttributeError(f"OnnxModel has no attribute {name!r}")

    @overload
    def predict(  # type: ignore[overload-overlap]  # a path is a str, and a str is iterable
        self, images: OneImage, *, top: int = 5, device: str = "auto", progress: Progress | None = None
    ) -> Prediction: ...

    @overload
    def predict(
        self, images: Iterable[Any], *, top: int = 5, device: str = "auto", progress: Progress | None = None
    ) -> list[Prediction]: ...

    def predict(
        self, images: object, *, top: int = 5, device: str = "auto", progress: Progress | None = None
    ) -> Prediction | list[Prediction]:
        """Classifies one image or many.

        Args:
            images: a path, the bytes of a file, an open binary file, a Pillow image, an array, or many in a list; with
                Headstart installed, everything that ``Model.predict`` accepts.
            top: number of classes that each prediction lists, at least 1.
            device: "auto" or "cpu"; the file runs on the CPU.
            progress: receives progress updates.

        Returns:
            One ``Prediction`` for one image, a list in input order for many. An image that cannot be read gets a
            prediction without a label, whose ``error`` says why.

        Raises:
            OptionError: ``images`` has none of these types, or another argument is out of its range.
            DataError: a single path does not exist.
            ExportError: the file cannot be run.

        Examples:
            >>> exported = hs.export("runs/flowers", "onnx", out="flowers.onnx")
            >>> [p.label for p in hs.load("flowers.onnx").predict(["rose.jpg", "tulip.jpg"], top=1)]
            ['roses', 'tulips']
        """
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise OptionError(f"top {top!r}: expected a whole number of at least 1.")
        sources, is_one = self._read_images(images)
        scored = self._score(sources, device, progress)
        predictions = [self._prediction(source.name, one, top) for source, one in zip(sources, scored, strict=True)]
        return predictions[0] if is_one else predictions

    def predict_with_outliers(
        self, images: object, *, device: str = "auto", progress: Progress | None = None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], dict[int, str]]:
        """Class probabilities and out-of-distribution scores; arguments and errors as for ``predict``.

        Returns:
            (N, classes) float64 probabilities, (N,) float64 scores (NaN without a detector), and position -> reason
            for each image that cannot be read, whose rows are NaN.
        """
        sources, _ = self._read_images(images)
        probabilities, outliers = np.full((len(sources), len(self.classes)), np.nan), np.full(len(sources), np.nan)
        errors: dict[int, str] = {}
        for place, one in enumerate(self._score(sources, device, progress)):
            if isinstance(one, str):
                errors[place] = one
            else:
                probabilities[place], outliers[place] = one
        return probabilities, outliers, errors

    def predict_proba(
        self, images: object, *, device: str = "auto", progress: Progress | None = None
    ) -> tuple[npt.NDArray[np.float64], dict[int, str]]:
        """Class probabilities of images; arguments and errors as for ``predict``.

        Returns:
            (N, classes) float64, with a row of NaN for each image that cannot be read; and position -> reason for
            those.
        """
        probabilities, _, errors = self.predict_with_outliers(images, device=device, progress=progress)
        return probabilities, errors

    def predict_content(
        self, name: str, data: bytes, *, max_pixels: int | None = None, max_decoded_pixels: int | None = None
    ) -> Prediction:
        """Classifies the content of an image file, with all classes listed.

        Args:
            name: of the file, for the prediction.
            data: content of the file.
            max_pixels: larger images are refused from their header, before decoding; None for no limit.
            max_decoded_pixels: raise instead of decoding more pixels than this; None for no limit.

        Raises:
            LargeImage: decoding takes more than ``max_decoded_pixels`` pixels.
            ExportError: the file cannot be run.
        """
        pixels = self._decode(ImageSource(name, data), max_pixels=max_pixels, max_decoded_pixels=max_decoded_pixels)
        return self._prediction(name, pixels if isinstance(pixels, str) else self._run(pixels), None)

    def _prediction(self, name: str, scored: Scored | str, top: int | None) -> Prediction:
        if isinstance(scored, str):
            return unreadable_prediction(name, scored)
        unsure_below = self.metadata.unsure_below - ROUNDING
        return make_prediction(
            name, *scored, classes=self.classes, thresholds=self.thresholds, unsure_below=unsure_below, top=top
        )

    def _score(self, sources: list[ImageSource], device: str, progress: Progress | None) -> list[Scored | str]:
        """Probabilities and outlier score of each image, or why it cannot be read."""
        if device not in DEVICES:
            raise OptionError(f"device {device!r}: an ONNX file runs on the CPU; expected one of {', '.join(DEVICES)}.")
        addresses = [source.content for source in sources if isinstance(source.content, str)]
        threads = self._num_reading_threads(addresses)
        found: list[Scored | str] = []
        with (progress or SilentProgress()).task("Predicting", len(sources)) as advance:
            for pixels in map_images(self._decode, sources, ahead=2 * threads, threads=threads):
                found.append(pixels if isinstance(pixels, str) else self._run(pixels))
                advance(1)
        return found

    def _decode(
        self, source: ImageSource, *, max_pixels: int | None = None, max_decoded_pixels: int | None = None
    ) -> npt.NDArray[np.uint8] | str:
        """(H, W, 3) uint8 pixels, or why the image cannot be read."""
        content, size = source.content, self.preprocessing
        try:
            if isinstance(content, (Image.Image, np.ndarray)):
                rgb = as_rgb(content, value_range=size.value_range)
            else:
                rgb = decode_content(
                    "<bytes>" if isinstance(content, bytes) else content,
                    content if isinstance(content, bytes) else self._read_content(content),
                    min_side=self.metadata.decode_at_least,
                    value_range=size.value_range,
                    max_pixels=max_pixels,
                    max_decoded_pixels=max_decoded_pixels,
                ).image
            resized_size(rgb.size, size, max_decoded_pixels=max_decoded_pixels)  # raises before the graph does it
            return np.asarray(rgb)
        except UnreadableImage as error:
            return error.reason

    def _session(self) -> OnnxFile:
        """The session of this process: threads of a session do not survive a fork."""
        with _LOCK:
            if self._opened is None or self._opened[0] != os.getpid():
                opened = OnnxFile(self.file, threads=usable_cpus())
                if opened.metadata != self.metadata:
                    raise ExportError(f"{self.file}: the file was replaced after it was loaded. Load it again.")
                self._opened = os.getpid(), opened
            return self._opened[1]

    def _run(self, pixels: npt.NDArray[np.uint8]) -> Scored:
        """Runs the graph on an image of any size.

        Raises:
            ExportError: the graph fails, or gives no probabilities.
        """
        session = self._session()
        try:
            probabilities, *outliers = session(pixels[None])
        except Exception as error:  # the runtime raises a dozen types
            raise ExportError(f"{self.file}: cannot be run ({first_line(error)}).") from error
        row = probabilities[0].astype(np.float64)
        if row.shape != (len(self.classes),) or not np.isfinite(row).all():
            raise ExportError(f"{self.file}: damaged: it does not give one probability for each class.")
        return row, float(outliers[0][0]) if outliers else float("nan")


def _preprocessing_of(metadata: ExportMetadata, file: Path) -> Preprocessing:
    """The preprocessing in a file.

    Raises:
        ExportError: it is damaged, or answers follow rules of another version.
    """
    try:
        given: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in metadata.preprocessing.items()
        }
        preprocessing = Preprocessing(**given)
        _ = preprocessing.sentence
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ExportError(f"{file}: the metadata is damaged ({error}). Export it again.") from error
    if metadata.none_above not in (None, INLIER_SHARE):
        raise ExportError(
            f"{file}: answers none of these above {metadata.none_above:g}, this version above {INLIER_SHARE:g}. "
            "Export it again."
        )
    return preprocessing


def is_onnx(file: object) -> bool:
    """Whether a name is that of an ONNX file."""
    return isinstance(file, (str, os.PathLike)) and os.fspath(file).lower().endswith(SUFFIX)


def load(file: str | os.PathLike[str]) -> OnnxModel:
    """Opens an exported ONNX file, with NumPy, Pillow and ONNX Runtime alone.

    Args:
        file: a file written by ``headstart export --to onnx``.

    Raises:
        ExportError: the file is missing, damaged or changed, or Headstart did not write it.
        OptionError: not a path.

    Examples:
        >>> from headstart.runtime import load
        >>> exported = hs.export("runs/flowers", "onnx", out="flowers.onnx")
        >>> load("flowers.onnx").classes
        ('roses', 'tulips')
    """
    path = user_path(file)
    if not is_onnx(path):
        raise ExportError(f"{path}: expected an ONNX file (.onnx) written by headstart export.")
    return OnnxModel(path)
