"""The classifier that is extended: its classes, its frozen network, and images of its classes to rehearse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.backbone.licenses import require_accepted
from headstart.backbone.pixel_net import FeatureNet
from headstart.backbone.weights import DEFAULT_BACKBONE, load_with_classifier
from headstart.data.listing import find_images
from headstart.data.scan import scan
from headstart.data.sources.read import is_gone
from headstart.errors import DataError, OptionError
from headstart.files import csv_text, user_path
from headstart.model import load
from headstart.pipeline.load import Job
from headstart.progress import Progress, with_example
from headstart.runs.folder import rehearsal_rows, split_rows
from headstart.training.extend import Rows
from headstart.training.heads import LayeredHead, OneLogit, linear_head
from headstart.training.losses import Labels
from headstart.training.recipe import PRETRAINED, Recipe


@dataclass(frozen=True)
class BaseClassifier:
    """A classifier that is extended by new classes.

    Attributes:
        net: its frozen pass to features.
        classes: its classes, which stay first.
        head: on the features; its last layer has a row for each class.
        folder: its run, where it has one.
    """

    net: FeatureNet
    classes: tuple[str, ...]
    head: LayeredHead
    folder: Path | None

    @property
    def rows(self) -> Rows:
        """The last layer's weights, one row for each class."""
        return last_rows(self.head)


@dataclass(frozen=True)
class ImageSet:
    """Images of a base classifier's classes.

    Attributes:
        files: N paths.
        keys: N content hashes.
        labels: (N,) int64, the class of each; -1 where nobody said.
    """

    files: list[str]
    keys: list[bytes]
    labels: Labels

    def divide(self, first: Sequence[bool]) -> tuple[ImageSet, ImageSet]:
        """(the images that are marked, the others)."""
        return self._some([i for i, mark in enumerate(first) if mark]), self._some(
            [i for i, mark in enumerate(first) if not mark]
        )

    def _some(self, places: list[int]) -> ImageSet:
        return ImageSet([self.files[i] for i in places], [self.keys[i] for i in places], self.labels[places])


@dataclass(frozen=True)
class RehearsalImages:
    """Images of the old classes.

    Attributes:
        train: the new classes are trained against them.
        val: they show whether anything was forgotten.
    """

    train: ImageSet
    val: ImageSet

    @property
    def files(self) -> dict[bytes, str]:
        """Content hash -> path, for every image."""
        return {key: file for part in (self.train, self.val) for key, file in zip(part.keys, part.files, strict=True)}


def load_base(recipe: Recipe, progress: Progress) -> BaseClassifier:
    """Loads the classifier that a recipe extends.

    Args:
        recipe: its ``extend``; for "pretrained" also the backbone.
        progress: receives the progress of a download.

    Raises:
        LicenseError: the licence of the pretrained weights is restricted, and the recipe does not accept it.
        OptionError: it is of a kind that cannot be extended.
        ModelFileError: no such model.
        WeightsError: the pretrained weights cannot be loaded.
    """
    if recipe.extend == PRETRAINED:
        backbone, classifier = load_with_classifier(
            recipe.backbone or DEFAULT_BACKBONE,
            weights=recipe.weights,
            image_size=recipe.image_size,
            fit=recipe.fit,
            accept_license=recipe.accept_license,
            progress=progress,
        )
        head = linear_head(classifier.weight.numpy(), classifier.bias.numpy())
        assert isinstance(head, LayeredHead)
        return BaseClassifier(FeatureNet(backbone), classifier.classes, head, None)
    model = load(recipe.extend or "")
    require_accepted(
        f"{recipe.extend}: made from {model.net.backbone.architecture}",
        model.net.backbone.license,
        accepted=recipe.accept_license,
    )
    if model.thresholds is not None:
        raise OptionError(
            f"{recipe.extend}: a multi-label model cannot be extended. Train a new model on a table that includes "
            "the new labels."
        )
    if not isinstance(model.head, LayeredHead):
        raise OptionError(
            f"{recipe.extend}: its classifier ({type(model.head).__name__}) has no weights per class, so it cannot "
            "be extended. Train it with probe logistic, or with a trained head (option head)."
        )
    path = user_path(recipe.extend or "")
    return BaseClassifier(model.net, model.classes, model.head, path if path.is_dir() else None)


def find_rehearsal_images(job: Job, base: BaseClassifier) -> RehearsalImages:
    """Finds images of the old classes: those of the model's run, and those in the folder that the recipe names.

    Raises:
        DataError: none of the named images can be read.
    """
    parts: list[tuple[ImageSet, ImageSet]] = []
    if base.folder is not None:
        parts.append(_images_of_run(job, base, base.folder))
    if job.recipe.rehearsal:
        named = _read(job, base, find_images(job.recipe.rehearsal), None)
        if not named.files:
            raise DataError(f"{job.recipe.rehearsal}: no image in this folder can be read.")
        parts.append(named.divide([key[0] < 128 for key in named.keys]))
    return RehearsalImages(_joined([train for train, _ in parts]), _joined([val for _, val in parts]))


def _images_of_run(job: Job, base: BaseClassifier, folder: Path) -> tuple[ImageSet, ImageSet]:
    number = {name: i for i, name in enumerate(base.classes)}
    rows = [row for row in split_rows(folder) if row["split"] and row["label"] in number]
    rows += rehearsal_rows(folder)
    existing = [row for row in rows if not is_gone(row["path"])]
    if len(existing) < len(rows):
        gone = sorted({row["path"] for row in rows} - {row["path"] for row in existing})
        job.progress.say(
            with_example(f"Warning: {len(gone):,} of {len(rows):,} images of {folder} no longer exist", gone)
        )
    numbers = [number.get(row["label"], -1) for row in existing]
    read = _read(job, base, [row["path"] for row in existing], numbers)
    split = {row["path"]: row["split"] for row in existing}
    return read.divide([split[file] == "train" for file in read.files])


def _read(job: Job, base: BaseClassifier, files: list[str], numbers: list[int] | None) -> ImageSet:
    preprocessing = base.net.backbone.preprocessing
    scanned = scan(files, preprocessing=preprocessing, cache=job.cache, progress=job.progress)
    if scanned.faults:
        bad = [f"{files[i]}: {reason}" for i, reason in scanned.faults.items()]
        job.progress.say(with_example(f"Warning: {len(bad):,} rehearsal images cannot be read", bad))
    good = [i for i in range(len(files)) if i not in scanned.faults]
    labels = np.array([-1 if numbers is None else numbers[i] for i in good], np.int64)
    return ImageSet([files[i] for i in good], [scanned.keys[i] for i in good], labels)


def rehearsal_csv(base: BaseClassifier, images: RehearsalImages) -> str:
    """The rehearsal images as a table; without a label where nobody said what they show."""
    rows = [["path", "label", "split", "content"]]
    for part, split in ((images.train, "train"), (images.val, "val")):
        for file, key, label in zip(part.files, part.keys, part.labels, strict=True):
            rows.append([file, "" if label < 0 else base.classes[label], split, key.hex()])
    return csv_text(rows)


def kept_tensors(base: BaseClassifier, head: nn.Module) -> dict[str, Tensor]:
    """Tensors of a head that extending must not change: the rows of the old classes, and the layers before them.

    Args:
        base: the classifier to extend.
        head: the head of ``base``, or the extended head.
    """
    assert isinstance(head, LayeredHead)
    rows, count, last = last_rows(head), len(base.classes), f"{last_linear(head)}."
    kept = {f"head.{name}": tensor for name, tensor in head.state_dict().items() if not name.startswith(last)}
    old = {
        ("head, weights of the old classes"): rows.weight[:count],
        "head, biases of the old classes": rows.bias[:count],
    }
    return kept | {name: torch.from_numpy(array) for name, array in old.items()}


def last_rows(head: LayeredHead) -> Rows:
    """The last layer as one row for each class; a single logit becomes two rows."""
    layer: Any = head[last_linear(head)]
    weight, bias = (t.detach().double().numpy() for t in (layer.weight, layer.bias))
    if isinstance(head[-1], OneLogit):
        weight, bias = (np.concatenate([np.zeros_like(values), values]) for values in (weight, bias))
    return Rows(weight, bias)


def last_linear(head: LayeredHead) -> int:
    """Position of the last linear layer."""
    return len(head) - (2 if isinstance(head[-1], OneLogit) else 1)


def _joined(parts: Sequence[ImageSet]) -> ImageSet:
    labels = [part.labels for part in parts]
    return ImageSet(
        [file for part in parts for file in part.files],
        [key for part in parts for key in part.keys],
        np.concatenate(labels) if labels else np.empty(0, np.int64),
    )
