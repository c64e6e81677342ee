"""The finished classifier: one safetensors file that needs neither the network nor the backbone's own file."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, final, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from headstart.backbone.layers import Layout
from headstart.backbone.pixel_net import FeatureNet
from headstart.backbone.weights import Backbone, build_architecture
from headstart.concurrency import ProcessLock
from headstart.data.decode import Preprocessing, Rgb, as_rgb, decode, fit_to, map_images
from headstart.data.sources import ImageSource, OneImage, Picture, read_source, read_sources
from headstart.engine.device import resolve_device, settle_after_fork
from headstart.engine.select import MEASURE_FROM, Engine, choose_engine, run_in_batches
from headstart.errors import ModelFileError, OptionError, UnreadableImage, first_line
from headstart.files import not_written, unicode_text, user_path, write_atomically
from headstart.html import paragraph, table
from headstart.hub import fetch, read_address
from headstart.model_file import FORMAT_VERSION, KEY, check_model, digest, read_model_file
from headstart.progress import Progress, SilentProgress
from headstart.training.custom_heads import describe
from headstart.training.heads import head_from, logits_on, vectors_of
from headstart.training.losses import probabilities_of
from headstart.training.recipe import Recipe
from headstart.trust.calibration import Calibration
from headstart.trust.ood import KEPT, Familiar

MODEL_FILE = "model.safetensors"
"""The model's name in a run folder."""

LIBRARIES = ("headstart", "torch", "timm", "torchvision", "numpy", "pillow", "scikit-learn", "safetensors")

NONE_OF_THESE = "none of these"
UNSURE = "unsure: ask a person"
"""Answers where the model would rather give no class."""

SHOWN_CLASSES = 12
"""Names of classes that a notebook shows."""

Item = TypeVar("Item")

_BUILDING = ProcessLock()
"""Held while an engine is measured and built: several threads at a time would measure how they disturb each other."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of one picture.

    Attributes:
        path: as it was given; "<bytes>", "<image>" or "<array>" for a picture in memory.
        label: the most probable class, or None where the picture cannot be read.
        probability: of that class, in [0, 1].
        top: the most probable classes with their probabilities, best first.
        error: why the picture cannot be read, or None.
        outlier: how unlike the pictures that the model learnt from this one is: the share of usual pictures that are
            nearer to them, in [0, 1]; None where the model does not know, or the picture cannot be read.
        unsure: whether ``probability`` is too low for the accuracy that was asked for.
        labels: where a picture may bear any number of them, those that are at least as probable as their thresholds,
            the surest first, with their probabilities; None of a model that gives each picture one class.
    """

    path: str
    label: str | None
    probability: float
    top: tuple[tuple[str, float], ...]
    error: str | None = None
    labels: tuple[tuple[str, float], ...] | None = None
    outlier: float | None = None
    unsure: bool = False

    @property
    def answer(self) -> str | None:
        """``label``, or ``NONE_OF_THESE``, or ``UNSURE``: what can be relied on; None where it cannot be read.

        Where a picture may bear any number of labels, the answer is ``NONE_OF_THESE`` or "", beside ``labels``.
        """
        if self.label is None:
            return None
        if self.outlier is not None and self.outlier > KEPT:
            return NONE_OF_THESE
        if self.labels is not None:
            return ""
        return UNSURE if self.unsure else self.label


@final
class Model:
    """A classifier: backbone, head, class names, preprocessing, and where it all came from.

    Threads may share one; so may forked processes, each of which builds its own engine at its first prediction and
    computes on one thread (see ``engine.device.settle_after_fork``).

    Args:
        net: the frozen pass to features.
        head: (N, ...) features -> (N, classes) logits; one of ``training.heads``, or composed of PyTorch's layers (see
            ``training.custom_heads``).
        classes: names, in the order of the logits.
        recipe: how it was trained.
        data: what it was trained on: counts and a fingerprint; a JSON document.
        scores: what it scored, by the name of the set; a JSON document.
        thresholds: where a picture may bear any number of labels, the probability from which on it is given each; None
            where each picture has one class.
        calibration: what was fitted on validation images; none where it is not given.
        familiar: what usual pictures look like; None where it is not known.

    Raises:
        OptionError: the head holds a layer that a model file cannot restore.
    """

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
        familiar: Familiar | None = None,
    ) -> None:
        self.calibration, self.familiar = calibration or Calibration(), familiar
        self.net = net
        self.thresholds = None if thresholds is None else tuple(map(float, thresholds))
        self.head = describe(head).requires_grad_(False).eval()
        self._exact: nn.Module | None = None
        self._engines: dict[tuple[object, ...], Engine] = {}
        self.classes = tuple(map(unicode_text, classes))  # names of earlier versions may hold halves of characters
        self.recipe = recipe
        self.data = data
        self.scores = scores
        self.libraries = libraries or {name: version(name) for name in LIBRARIES}

    def __getstate__(self) -> dict[str, Any]:
        """Without its engines, which belong to one process."""
        return self.__dict__ | {"_engines": {}}

    def __repr__(self) -> str:
        return f"Model({len(self.classes)} classes, {self.net.backbone.architecture})"

    def _repr_html_(self) -> str:
        """For a notebook: what it tells apart, how well, and what it is made of."""
        size, backbone = self.preprocessing, self.net.backbone
        names = ", ".join(self.classes[:SHOWN_CLASSES]) + (", ..." if len(self.classes) > SHOWN_CLASSES else "")
        scored = [
            [name, f"{s['correct']:,} of {s['count']:,}", f"{100 * s['low']:.1f}-{100 * s['high']:.1f}"]
            for name, s in self.scores.items()
        ]
        made_of = [
            ["classes" if self.thresholds is None else "labels", f"{len(self.classes):,}: {names}"],
            ["backbone", f"{backbone.architecture}, {backbone.parameters:,} weights, from {backbone.source}"],
            ["head", f"{sum(t.numel() for t in self.head.state_dict().values()):,} numbers"],
            ["pictures", f"{size.height} x {size.width} pixels"],
        ]
        right = "right" if self.thresholds is None else "every label right"
        figures = table(["scored on", right, "95 % interval"], scored) if scored else ""
        return paragraph(repr(self), strong=True) + figures + table(["", ""], made_of)

    @property
    def preprocessing(self) -> Preprocessing:
        """What becomes of a picture before the network sees it."""
        return self.net.backbone.preprocessing

    @property
    def calibration_words(self) -> str:
        """What was fitted on images that it did not learn from; or why nothing was, and what to do."""
        words = self.calibration.sentence
        if self.familiar is None:
            words = f'{words.rstrip(".")}; it never answers "{NONE_OF_THESE}".'
        return words

    def probabilities(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """(N, ...) float32 features -> (N, classes) float64 probabilities.

        Rows sum to 1 where each picture has one class.
        """
        logits = self.logits(features) / self.calibration.temperature
        return probabilities_of(logits, several=self.thresholds is not None)

    def logits(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """(N, ...) float32 features -> (N, classes) float64, before the temperature."""
        settle_after_fork()
        if self._exact is None:
            self._exact = copy.deepcopy(self.head).double()
        return logits_on(self._exact, features, torch.float64)

    def vectors(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(N, ...) features -> (N, D), by whose distances pictures are told to be unusual."""
        return vectors_of(features, Layout.of(self.net.backbone.module))

    def outlier_scores(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64] | None:
        """(N,) of features, see ``Prediction.outlier``; None where it is not known what is usual."""
        return None if self.familiar is None else self.familiar.outlier_scores(self.vectors(features))

    @overload
    def predict(  # type: ignore[overload-overlap]  # a path is a str, and a str is iterable
        self, pictures: OneImage, *, top: int = 5, device: str = "auto", progress: Progress | None = None
    ) -> Prediction: ...

    @overload
    def predict(
        self, pictures: Iterable[Picture], *, top: int = 5, device: str = "auto", progress: Progress | None = None
    ) -> list[Prediction]: ...

    def predict(
        self, pictures: object, *, top: int = 5, device: str = "auto", progress: Progress | None = None
    ) -> Prediction | list[Prediction]:
        """Classifies one image or several.

        Args:
            pictures: a path, a file's bytes, an open binary file (read from its beginning), a Pillow image, an array
                or a tensor; or several of them in a list or any other iterable, a folder (the images in it, in natural
                order), a data set, or a frame of pandas, polars or pyarrow with a column of paths.

                Arrays are (H, W) or (H, W, 1, 3 or 4), of uint8, uint16, bool (True is white), or floats in [0, 1];
                (N, H, W, C) are several. Tensors are likewise, or (C, H, W) where the first axis is 1, 3 or 4.
            top: how many classes each prediction lists, at least 1.
            device: "auto", "cpu", "cuda" or "mps".
            progress: told of each image.

        Returns:
            One ``Prediction`` for one image, a list of them, in order, for several. An image that cannot be read has a
            prediction without a label whose ``error`` says why; it shifts no other.

        Raises:
            OptionError: ``pictures`` is none of these, or another argument has a value that it cannot take.
            DataError: a single path does not exist, or a folder holds no image.
        """
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise OptionError(f"top {top!r}: expected a whole number from 1 on.")
        sources, is_one = read_sources(pictures)
        probabilities, odd, faults = self._examine(sources, device, progress)
        answers = [
            unreadable(source.name, faults[place])
            if place in faults
            else self.prediction(source.name, probabilities[place], odd[place], top=top)
            for place, source in enumerate(sources)
        ]
        return answers[0] if is_one else answers

    def predict_proba(
        self, pictures: object, *, device: str = "auto", progress: Progress | None = None
    ) -> tuple[npt.NDArray[np.float64], dict[int, str]]:
        """Probabilities of several images; arguments and errors as ``predict``.

        Returns:
            (N, classes) float64, a row of NaN where an image cannot be read, and position -> reason of those. One
            image has one row; a folder as many as there are images in it.
        """
        probabilities, _, faults = self.examine(pictures, device=device, progress=progress)
        return probabilities, faults

    def examine(
        self, pictures: object, *, device: str = "auto", progress: Progress | None = None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], dict[int, str]]:
        """Probabilities and outlier scores of several images; arguments and errors as ``predict``.

        Returns:
            As ``predict_proba``, and between the two (N,) float64 outlier scores (see ``Prediction.outlier``), NaN
            where there is none.
        """
        return self._examine(read_sources(pictures)[0], device, progress)

    def _examine(
        self, sources: Sequence[ImageSource], device: str, progress: Progress | None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], dict[int, str]]:
        progress = progress or SilentProgress()
        out, odd = np.full((len(sources), len(self.classes)), np.nan), np.full(len(sources), np.nan)
        faults: dict[int, str] = {}
        engine: Engine | None = None
        with progress.task("Predicting", len(sources)) as advance:
            for batch in _batches(enumerate(map_images(self.pixels, sources)), 32):
                faults |= {place: seen for place, seen in batch if isinstance(seen, str)}
                good = [(place, seen) for place, seen in batch if not isinstance(seen, str)]
                if good:
                    pixels = np.stack([seen for _, seen in good])
                    if engine is None:
                        engine = self._engine(len(sources), pixels, device, progress)
                    places = [place for place, _ in good]
                    out[places], odd[places] = self.judge(run_in_batches(engine, pixels))
                advance(len(batch))
        return out, odd, faults

    def _engine(self, count: int, sample: npt.NDArray[np.uint8], device: str, progress: Progress) -> Engine:
        """For so many images; built once for each process and device."""
        place = resolve_device(device)
        key = os.getpid(), str(place), count >= MEASURE_FROM
        with _BUILDING:
            if key not in self._engines:
                self._engines[key] = choose_engine(
                    self.net, count=count, sample=sample, device=str(place), progress=progress
                )
            return self._engines[key]

    def judge(self, features: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(N, ...) features -> (N, classes) probabilities and (N,) outlier scores, NaN where there are none."""
        scores = self.outlier_scores(features)
        return self.probabilities(features), np.full(len(features), np.nan) if scores is None else scores

    def prediction(
        self, name: str, chances: npt.NDArray[np.float64], outlier: float, *, top: int | None = None
    ) -> Prediction:
        """What is said of one picture.

        Args:
            name: of the picture, as it was given.
            chances: (classes,) its probabilities.
            outlier: its outlier score, NaN for none.
            top: how many classes are listed; None for all.
        """
        best = np.argsort(-chances, kind="stable")[: None if top is None else max(1, top)]
        ranked = tuple((self.classes[i], float(chances[i])) for i in best)
        return Prediction(
            name,
            *ranked[0],
            ranked,
            labels=self._given(chances),
            outlier=None if np.isnan(outlier) else float(outlier),
            unsure=ranked[0][1] < self.calibration.threshold,
        )

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Writes the model file, whole or not at all.

        Raises:
            ModelFileError: the folder cannot be written, or a value is one that ``load`` would refuse.
        """
        path = user_path(file)
        try:
            write_atomically(path, self.as_bytes())
        except OSError as error:
            raise ModelFileError(f"{not_written(path, error)}, or name another file.") from error
        return path

    def as_bytes(self) -> bytes:
        """What ``save`` writes. It names no file of this machine but by its last part.

        Raises:
            ModelFileError: a value is one that ``load`` would refuse.
        """
        tensors, header = self._tensors(), json.loads(json.dumps(self._header()))
        check_model(header, tensors)
        header["sha256"] = digest(header, tensors)
        return save(tensors, {KEY: json.dumps(header)})

    @cached_property
    def version(self) -> str:
        """SHA-256, in hex, of all that its file holds; the file's header has it too."""
        return digest(self._header(), self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"backbone.{name}": t.cpu() for name, t in self.net.state().items()}
        tensors |= {f"head.{name}": tensor.cpu() for name, tensor in self.head.state_dict().items()}
        if self.familiar is not None:
            tensors["familiar.references"] = torch.from_numpy(self.familiar.references)
            tensors["familiar.usual"] = torch.from_numpy(self.familiar.usual)
            if self.familiar.limits is not None:
                tensors["familiar.limits"] = torch.from_numpy(self.familiar.limits)
        return {name: t.detach().clone().contiguous() for name, t in tensors.items()}

    def _header(self) -> dict[str, Any]:
        backbone = self.net.backbone
        return {
            "format_version": FORMAT_VERSION,
            "classes": list(self.classes),
            "preprocessing": asdict(backbone.preprocessing),
            "backbone": {
                "architecture": backbone.architecture,
                "source": backbone.source,
                "fingerprint": backbone.fingerprint,
                "build": backbone.build,
                "pool": self.net.pool,
                "cut": self.net.cut,
            },
            "head": self.head.about,
            "recipe": self.recipe.without_paths().as_json(),
            "data": self.data,
            "scores": self.scores,
            "libraries": self.libraries,
            "thresholds": self.thresholds,
            "calibration": self.calibration.as_json(),
        }

    def pixels(self, picture: Picture, *, most: int | None = None, at_once: int | None = None) -> Rgb | str:
        """(H, W, 3) uint8 as the network sees the picture, or why it cannot be read.

        Args:
            picture: see ``predict``.
            most: pixels that its file may hold, see ``decode``; None for any number.
            at_once: pixels that may be decoded now, see ``decode``; None for any number.

        Raises:
            LargeImage: it takes more than ``at_once``.
        """
        content, own = read_source(picture).content, self.preprocessing
        try:
            if isinstance(content, (Image.Image, np.ndarray)):
                image = as_rgb(content, value_range=own.value_range)
            else:
                image = decode(
                    content, at_least=own.decode_at_least, value_range=own.value_range, most=most, at_once=at_once
                ).image
            return fit_to(image, own, at_once=at_once)
        except UnreadableImage as error:
            return error.reason

    def _given(self, chances: npt.NDArray[np.float64]) -> tuple[tuple[str, float], ...] | None:
        if self.thresholds is None:
            return None
        order = np.argsort(-chances, kind="stable")
        return tuple((self.classes[i], float(chances[i])) for i in order if chances[i] >= self.thresholds[i])


def unreadable(name: str, reason: str) -> Prediction:
    """Of a picture that cannot be read, and why."""
    return Prediction(name, None, 0.0, (), reason)


def load(run_or_model: str | os.PathLike[str]) -> Model:
    """Reads a model file, the one in a run folder, or one on the Hugging Face hub.

    Args:
        run_or_model: a run folder, a model file, or ``hf://OWNER/NAME``, perhaps with ``@REVISION``.

    Raises:
        HubError: it cannot be fetched.
        ModelFileError: no such file, damaged, not a Headstart model, or of a newer format.
    """
    address = read_address(run_or_model)
    path = fetch(address, MODEL_FILE) if address else user_path(run_or_model)
    if path.is_dir():
        path = path / MODEL_FILE
    header, tensors = read_model_file(path)
    try:
        model = _build(header, tensors)
        _rehearse(model)
    except Exception as error:  # timm's and torch's constructors raise whatever they like
        written = ", ".join(f"{k} {v}" for k, v in header["libraries"].items())
        raise ModelFileError(
            f"{path}: cannot be loaded with the installed library versions ({first_line(error)}). It was written with "
            f"{written}."
        ) from error
    return model


def _build(header: dict[str, Any], tensors: dict[str, Tensor]) -> Model:
    backbone = _backbone(header, _under("backbone.", tensors))
    net = FeatureNet(backbone, pool=header["backbone"]["pool"], cut=header["backbone"]["cut"])
    if missing := [name for name in net.state() if f"backbone.{name}" not in tensors]:
        raise ModelFileError(f"tensor backbone.{missing[0]}: missing")
    return Model(
        net,
        head_from(header["head"], _under("head.", tensors), len(header["classes"])),
        header["classes"],
        recipe=Recipe.from_json(header["recipe"]),
        data=header["data"],
        scores=header["scores"],
        libraries=header["libraries"],
        thresholds=header.get("thresholds"),
        calibration=Calibration(**header.get("calibration", {})),
        familiar=_familiar(_under("familiar.", tensors)),
    )


def _rehearse(model: Model) -> None:
    """Runs one made-up image, so that parts that do not fit together are found here and not at a prediction.

    Raises:
        ModelFileError: the numbers are not finite, or not one for each class.
    """
    size = model.preprocessing
    pixels = np.random.default_rng(0).integers(0, 256, (1, size.height, size.width, 3), dtype=np.uint8)
    settle_after_fork()
    with torch.inference_mode():
        features = model.net(torch.from_numpy(pixels)).float().numpy()
    if not np.isfinite(features).all():
        raise ModelFileError("the backbone's weights give features that are not finite")
    chances, _ = model.judge(features)
    if chances.shape != (1, len(model.classes)) or not np.isfinite(chances).all():
        raise ModelFileError(f"the head does not give one probability for each of {len(model.classes):,} classes")


def _backbone(header: dict[str, Any], state: dict[str, Tensor]) -> Backbone:
    about = header["backbone"]
    built = about["build"]
    module = build_architecture(built["name"], image_size=built["image_size"], drawn=bool(about["cut"]), tried=False)
    own = module.state_dict()
    for name, tensor in state.items():
        if name not in own or own[name].shape != tensor.shape:
            found = f"{tuple(tensor.shape)}, expected {tuple(own[name].shape)}" if name in own else "unknown"
            raise ModelFileError(f"tensor backbone.{name:.100} does not fit {built['name']}: {found}")
    module.load_state_dict(state, strict=not about["cut"])
    preprocessing: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in header["preprocessing"].items()
    }
    return Backbone(
        architecture=about["architecture"],
        source=about["source"],
        module=module.requires_grad_(False),
        preprocessing=Preprocessing(**preprocessing),
        fingerprint=about["fingerprint"],
        build=built,
    )


def data_fingerprint(keys: Iterable[bytes], labels: Iterable[str]) -> str:
    """SHA-256 of a labelled set of images, whatever their order and names."""
    lines = sorted(key.hex() + " " + label for key, label in zip(keys, labels, strict=True))
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _familiar(tensors: dict[str, Tensor]) -> Familiar | None:
    if not tensors:
        return None
    limits = tensors.get("limits")
    return Familiar(tensors["references"].numpy(), tensors["usual"].numpy(), None if limits is None else limits.numpy())


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
