"""Model: the trained image classifier. ``load`` reads it, ``predict`` classifies images, ``save`` writes it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headstart.backbone.licenses import license_text
from headstart.backbone.pixel_net import FeatureNet
from headstart.data.image_inputs import ImageLike, OneImage, read_sources
from headstart.data.image_source import ImageSource
from headstart.data.preprocessing import Preprocessing, Rgb
from headstart.engine.device import settle_after_fork
from headstart.errors import ModelFileError, OptionError, first_line
from headstart.extras import version_of
from headstart.figures import count_text, interval_text
from headstart.files import not_written, unicode_text, user_path, write_atomically
from headstart.html import paragraph, table
from headstart.hub import fetch, read_address
from headstart.model_file import (
    HUB_MODEL_FILE,
    MODEL_FILE,
    ModelContent,
    digest,
    model_bytes,
    model_content,
    network_header,
    network_of,
    network_tensors,
    ood_detector_of,
    ood_tensors,
    read_model_file,
)
from headstart.model_schema import FORMAT_VERSION
from headstart.prediction import NONE_OF_THESE, Prediction, make_prediction, unreadable_prediction
from headstart.predictor import Predictor
from headstart.progress import Progress, SilentProgress
from headstart.runtime.onnx_model import OnnxModel, is_onnx
from headstart.training.custom_heads import describe
from headstart.training.heads import head_from
from headstart.training.losses import probabilities_of
from headstart.training.recipe import Recipe
from headstart.trust.calibration import Calibration
from headstart.trust.ood import OodDetector

LIBRARIES = ("headstart", "torch", "timm", "torchvision", "numpy", "pillow", "scikit-learn", "safetensors")
"""Libraries whose versions a model file records."""

SHOWN_CLASSES = 12
"""Class names that a notebook shows."""


@final
@dataclass(frozen=True, eq=False, repr=False, init=False)
class Model:
    """A trained image classifier: backbone, head, class names, preprocessing and provenance.

    Threads and forked processes may share one; each process builds its inference engine at its first prediction.
    A model does not change once it is made: ``replace`` gives another one.

    Args:
        net: uint8 pixels -> features; frozen.
        head: (N, ...) features -> (N, classes) logits; a head of ``training.heads``, or composed of PyTorch layers (see
            ``training.custom_heads``).
        classes: class names, in the order of the logits.
        recipe: options of the training run.
        data: counts and fingerprint of the training data; a JSON document.
        scores: evaluation results by set ("val", "test"); a JSON document.
        libraries: library -> version that the model was trained with; default: the installed ones.
        thresholds: multi-label models only: (classes,) probability from which each label is assigned.
        calibration: temperature and confidence threshold, fitted on validation images.
        ood_detector: out-of-distribution detector; None for a model without one.

    Raises:
        OptionError: the head contains a layer that a model file cannot restore.

    Examples:
        >>> model = hs.load("runs/flowers")
        >>> model.predict("rose.jpg").label
        'roses'
    """

    net: FeatureNet
    head: nn.Module
    classes: tuple[str, ...]
    recipe: Recipe
    data: dict[str, Any]
    scores: dict[str, Any]
    libraries: dict[str, str]
    thresholds: tuple[float, ...] | None
    calibration: Calibration
    ood_detector: OodDetector | None
    _predictor: Predictor = dataclasses.field(init=False)

    def __init__(
        self,
        net: FeatureNet,
        head: nn.Module,
        classes: Sequence[str],
        *,
        recipe: Recipe,
        data: dict[str, Any],
        scores: dict[str, Any],
        libraries: dict[str, str] | None = None,
        thresholds: Sequence[float] | None = None,
        calibration: Calibration | None = None,
        ood_detector: OodDetector | None = None,
    ) -> None:
        head = describe(head).requires_grad_(False).eval()
        self.__dict__.update(
            net=net,
            head=head,
            classes=tuple(map(unicode_text, classes)),  # files of earlier versions may contain unpaired surrogates
            recipe=recipe,
            data=data,
            scores=scores,
            libraries=libraries or {name: version_of(name) for name in LIBRARIES},
            thresholds=None if thresholds is None else tuple(map(float, thresholds)),
            calibration=calibration or Calibration(),
            ood_detector=ood_detector,
            _predictor=Predictor(net, head),
        )

    def replace(self, **changes: Any) -> Model:
        """A copy with other values of some constructor arguments; weights and engines are shared.

        Args:
            **changes: constructor arguments, such as ``calibration``, ``thresholds``, ``ood_detector`` or ``scores``.

        Examples:
            >>> model = hs.load("runs/flowers")
            >>> renamed = model.replace(classes=[name.upper() for name in model.classes])
        """
        other = dataclasses.replace(self, **changes)
        if other.net is self.net and other.head is self.head:
            other.__dict__["_predictor"] = self._predictor
        return other

    def __repr__(self) -> str:
        return f"Model({len(self.classes)} classes, {self.net.backbone.architecture})"

    def _repr_html_(self) -> str:
        """Scores, classes and parts as two tables, for a notebook."""
        backbone = self.net.backbone
        names = ", ".join(self.classes[:SHOWN_CLASSES]) + (", ..." if len(self.classes) > SHOWN_CLASSES else "")
        scored = [
            [
                name,
                count_text(s["correct"], s["count"]),
                interval_text(s["low"], s["high"]),
            ]
            for name, s in self.scores.items()
        ]
        parts = [
            ["classes" if self.thresholds is None else "labels", f"{len(self.classes):,}: {names}"],
            ["backbone", f"{backbone.architecture}, {backbone.parameters:,} weights, from {backbone.source}"],
            ["licence of the pretrained weights", license_text(backbone.license)],
            ["head", f"{sum(t.numel() for t in self.head.state_dict().values()):,} weights"],
            ["input", self.preprocessing.sentence],
        ]
        metric = "accuracy" if self.thresholds is None else "all labels correct"
        figures = table(["set", metric, "95 % CI"], scored) if scored else ""
        return paragraph(repr(self), strong=True) + figures + table(["", ""], parts)

    @property
    def preprocessing(self) -> Preprocessing:
        """Crop, size and normalisation of the input."""
        return self.net.backbone.preprocessing

    @property
    def is_calibrated(self) -> bool:
        """Whether the probabilities are calibrated."""
        return self.calibration.images > 0

    @property
    def calibration_text(self) -> str:
        """One sentence: what was calibrated on which images, or why nothing was and what to do."""
        text = self.calibration.sentence
        if self.ood_detector is None:
            text += f' There is no out-of-distribution detector, so the model never answers "{NONE_OF_THESE}".'
        return text

    def probabilities(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """(N, ...) float32 features -> (N, classes) float64 probabilities, after temperature scaling.

        Rows sum to 1, except those of a multi-label model.
        """
        logits = self.logits(features) / self.calibration.temperature
        return probabilities_of(logits, multi_label=self.thresholds is not None)

    def logits(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """(N, ...) float32 features -> (N, classes) float64 logits, before temperature scaling."""
        return self._predictor.logits(features)

    def embed(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(N, ...) float32 features -> (N, D) float32 vectors, whose distances out-of-distribution detection uses."""
        return self._predictor.embed(features)

    def outlier_scores(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64] | None:
        """(N, ...) float32 features -> (N,) out-of-distribution scores in [0, 1]; None without a detector."""
        return None if self.ood_detector is None else self.ood_detector.outlier_scores(self.embed(features))

    @overload
    def predict(  # type: ignore[overload-overlap]  # a path is a str, and a str is iterable
        self, images: OneImage, *, top: int = 5, device: str = "auto", progress: Progress | None = None
    ) -> Prediction: ...

    @overload
    def predict(
        self, images: Iterable[ImageLike], *, top: int = 5, device: str = "auto", progress: Progress | None = None
    ) -> list[Prediction]: ...

    def predict(
        self, images: object, *, top: int = 5, device: str = "auto", progress: Progress | None = None
    ) -> Prediction | list[Prediction]:
        """Classifies one image or many.

        Args:
            images: a path, the bytes of a file, an open binary file (read from its beginning) or an HTTP response of
                ``requests``, a Pillow image, an array or a tensor; or many: a list or other iterable of images, a
                folder (its images in natural order), a ``Dataset``, or a pandas, polars or pyarrow frame with a column
                of paths.

                Arrays are (H, W) or (H, W, 1, 3 or 4) of uint8, uint16, bool (True is white), or floats in [0, 1];
                (N, H, W, C) is a batch. Tensors are the same, or (C, H, W) if the first axis is 1, 3 or 4.
            top: number of classes that each prediction lists, at least 1.
            device: "auto", "cpu", "cuda" or "mps".
            progress: receives progress updates.

        Returns:
            One ``Prediction`` for one image, a list in input order for many. An image that cannot be read gets a
            prediction without a label, whose ``error`` says why.

        Raises:
            OptionError: ``images`` has none of these types, or another argument is out of its range.
            DataError: a single path does not exist, or a folder contains no image.

        Examples:
            >>> model = hs.load("runs/flowers")
            >>> model.predict("rose.jpg").label
            'roses'
            >>> [p.label for p in model.predict(["rose.jpg", "tulip.jpg"], top=1)]
            ['roses', 'tulips']
        """
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise OptionError(f"top {top!r}: expected a whole number of at least 1.")
        sources, is_one = read_sources(images)
        probabilities, outliers, errors = self._predict(sources, device, progress)
        predictions = [
            unreadable_prediction(source.name, errors[i])
            if i in errors
            else self.make_prediction(source.name, probabilities[i], outliers[i], top=top)
            for i, source in enumerate(sources)
        ]
        return predictions[0] if is_one else predictions

    def predict_proba(
        self, images: object, *, device: str = "auto", progress: Progress | None = None
    ) -> tuple[npt.NDArray[np.float64], dict[int, str]]:
        """Class probabilities of images; arguments and errors as for ``predict``.

        Returns:
            (N, classes) float64, with a row of NaN for each image that cannot be read; and position -> reason for
            those. One image gives one row, a folder one row per image in it.
        """
        probabilities, _, errors = self.predict_with_outliers(images, device=device, progress=progress)
        return probabilities, errors

    def predict_with_outliers(
        self, images: object, *, device: str = "auto", progress: Progress | None = None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], dict[int, str]]:
        """Class probabilities and out-of-distribution scores; arguments and errors as for ``predict``.

        Returns:
            (N, classes) float64 probabilities, (N,) float64 scores (see ``Prediction.outlier``; NaN if there is none),
            and position -> reason for each image that cannot be read.
        """
        return self._predict(read_sources(images)[0], device, progress)

    def _predict(
        self, sources: Sequence[ImageSource], device: str, progress: Progress | None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], dict[int, str]]:
        progress = progress or SilentProgress()
        probabilities, outliers = np.full((len(sources), len(self.classes)), np.nan), np.full(len(sources), np.nan)
        errors: dict[int, str] = {}
        with progress.task("Predicting", len(sources)) as advance:
            for batch in self._predictor.batches(sources, device, progress):
                errors |= batch.errors
                if batch.features is not None:
                    rows = batch.positions
                    probabilities[rows], outliers[rows] = self.predict_features(batch.features)
                advance(batch.num_images)
        return probabilities, outliers, errors

    def predict_features(
        self, features: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(N, ...) float32 features -> (N, classes) probabilities and (N,) outlier scores, NaN without a detector."""
        scores = self.outlier_scores(features)
        return self.probabilities(features), np.full(len(features), np.nan) if scores is None else scores

    def make_prediction(
        self, path: str, probabilities: npt.NDArray[np.float64], outlier: float, *, top: int | None = None
    ) -> Prediction:
        """The prediction for one image.

        Args:
            path: of the image, as it was given.
            probabilities: (classes,) in [0, 1].
            outlier: out-of-distribution score in [0, 1]; NaN for none.
            top: number of classes listed; None lists all.
        """
        return make_prediction(
            path,
            probabilities,
            outlier,
            classes=self.classes,
            thresholds=self.thresholds,
            unsure_below=self.calibration.threshold,
            top=top,
        )

    def preprocess(
        self, image: ImageLike, *, max_pixels: int | None = None, max_decoded_pixels: int | None = None
    ) -> Rgb | str:
        """Decodes, crops and resizes an image as the backbone's input.

        Args:
            image: one image, see ``predict``.
            max_pixels: refuse files of more pixels, see ``decode``; None for no limit.
            max_decoded_pixels: raise instead of decoding more pixels than this, see ``decode``; None for no limit.

        Returns:
            (H, W, 3) uint8, or why the image cannot be read.

        Raises:
            LargeImage: decoding takes more than ``max_decoded_pixels`` pixels.
        """
        return self._predictor.preprocess(image, max_pixels=max_pixels, max_decoded_pixels=max_decoded_pixels)

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Writes the model file under a temporary name, then renames it.

        Returns:
            The file.

        Raises:
            ModelFileError: the file cannot be written, or a value is one that ``load`` would refuse.

        Examples:
            >>> file = hs.load("runs/flowers").save("flowers.safetensors")
            >>> hs.load(file).classes
            ('roses', 'tulips')
        """
        path = user_path(file)
        try:
            write_atomically(path, self.as_bytes())
        except OSError as error:
            raise ModelFileError(f"{not_written(path, error)}, or name another file.") from error
        return path

    def as_bytes(self) -> bytes:
        """The content of the model file. It contains no absolute path.

        Raises:
            ModelFileError: a value is one that ``load`` would refuse.
        """
        return model_bytes(self._header(), self._tensors())

    @cached_property
    def version(self) -> str:
        """SHA-256 of everything that the model file holds, in hex; also in the file's header."""
        return digest(self._header(), self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        tensors = network_tensors(self.net)
        tensors |= {f"head.{name}": tensor.cpu() for name, tensor in self.head.state_dict().items()}
        tensors |= ood_tensors(self.ood_detector) if self.ood_detector is not None else {}
        return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}

    def _header(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "classes": list(self.classes),
            **network_header(self.net),
            "head": self.head.about,
            "recipe": self.recipe.without_paths().as_json(),
            "data": self.data,
            "scores": self.scores,
            "libraries": self.libraries,
            "thresholds": self.thresholds,
            "calibration": self.calibration.as_json(),
        }


def load(run_or_model: str | os.PathLike[str]) -> Model:
    """Loads a model from a run folder, a model file or the Hugging Face hub; ``loading.load`` also opens ONNX files.

    Args:
        run_or_model: a run folder, a model file, or ``hf://OWNER/NAME``, optionally with ``@REVISION``.

    Raises:
        HubError: the model cannot be downloaded.
        ModelFileError: no such file, damaged, not a Headstart model, or of a newer format.

    Examples:
        >>> hs.load("runs/flowers").classes
        ('roses', 'tulips')
    """
    _refuse_exported(run_or_model)
    address = read_address(run_or_model)
    path = fetch(address, HUB_MODEL_FILE, MODEL_FILE) if address else user_path(run_or_model)
    if path.is_dir():
        path = path / MODEL_FILE
    content = read_model_file(path)
    try:
        model = _build(content)
        _try_prediction(model)
    except Exception as error:  # timm's and torch's constructors raise whatever they like
        written = ", ".join(f"{k} {v}" for k, v in content.header["libraries"].items())
        raise ModelFileError(
            f"{path}: cannot be loaded with the installed library versions ({first_line(error)}). It was written with "
            f"{written}."
        ) from error
    return model


def _refuse_exported(model: object) -> None:
    """Raises ``ModelFileError`` for an ONNX file, where the layers of a model are needed."""
    if isinstance(model, OnnxModel) or is_onnx(model):
        file = getattr(model, "file", model)
        raise ModelFileError(
            f"{file}: an exported file. hs.load, headstart predict and headstart serve accept it; for anything else, "
            "give the run folder or the model file (.safetensors) that it was exported from."
        )


def model_from_bytes(data: bytes) -> Model:
    """The model whose ``as_bytes`` these are."""
    return _build(model_content(data))


def _build(content: ModelContent) -> Model:
    header = content.header
    model = Model(
        network_of(content),
        head_from(header["head"], content.tensors_of("head"), len(header["classes"])),
        header["classes"],
        recipe=Recipe.from_json(header["recipe"]),
        data=header["data"],
        scores=header["scores"],
        libraries=header["libraries"],
        thresholds=header.get("thresholds"),
        calibration=Calibration.from_json(header.get("calibration", {})),
        ood_detector=ood_detector_of(content),
    )
    model.__dict__["version"] = content.sha256  # of a file in an earlier format it cannot be computed again
    return model


def _try_prediction(model: Model) -> None:
    """Predicts a random image, so that parts that do not fit together are found here and not at a prediction.

    Raises:
        ModelFileError: the features or probabilities are not finite, or not one for each class.
    """
    size = model.preprocessing
    pixels = np.random.default_rng(0).integers(0, 256, (1, size.height, size.width, 3), dtype=np.uint8)
    settle_after_fork()
    with torch.inference_mode():
        features = model.net(torch.from_numpy(pixels)).float().numpy()
    if not np.isfinite(features).all():
        raise ModelFileError("the backbone's weights give features that are not finite")
    probabilities, _ = model.predict_features(features)
    if probabilities.shape != (1, len(model.classes)) or not np.isfinite(probabilities).all():
        raise ModelFileError(f"the head does not give one probability for each of {len(model.classes):,} classes")
