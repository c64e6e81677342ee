"""A classifier that is extended: what it knows, and what is remembered of that."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headstart.backbone.batchnorm_prior import average_features
from headstart.backbone.pixel_net import FeatureNet
from headstart.backbone.weights import DEFAULT_BACKBONE, load_with_classifier
from headstart.data.dataset import find_images
from headstart.data.scan import scan
from headstart.errors import DataError, OptionError, RunError
from headstart.evaluation.predictions import Evaluated, evaluate_predictions
from headstart.files import csv_text, read_rows, user_path
from headstart.model import Model, load
from headstart.progress import Progress, with_example
from headstart.training.extend import Remembered, Rows, extend_rows, imagine
from headstart.training.fit_head import Fitted
from headstart.training.heads import LayeredHead, OneLogit, head_with_rows, linear_head, logits_on
from headstart.training.losses import Labels, Parts
from headstart.training.recipe import PRETRAINED, Recipe

REMEMBERED_FILE = "remembered.csv"
"""In the folder of a run that extended a model: the pictures of what that model knew."""

SAME_AMONG = 20
"""Old classes from which on it says something that most pictures of a new class were given the same one."""

SAME_CLASS = 0.5
"""Share of a new class's images that one old class was given, from which on both may well be the same."""

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Pictures:
    """Pictures of what a classifier knows.

    Attributes:
        files: N paths.
        keys: N content hashes.
        labels: (N,) the right old classes; -1 where nobody said.
    """

    files: list[str]
    keys: list[bytes]
    labels: Labels

    def parted(self, first: Sequence[bool]) -> tuple[_Pictures, _Pictures]:
        """(those that are marked, the others)."""

        def some(wanted: bool) -> _Pictures:
            places = [i for i, mark in enumerate(first) if mark is wanted]
            return _Pictures([self.files[i] for i in places], [self.keys[i] for i in places], self.labels[places])

        return some(True), some(False)


def split_rows(folder: Path, name: str = "split.csv") -> list[dict[str, str]]:
    """The rows of a run's table of images.

    Raises:
        RunError: there is none.
    """
    try:
        return read_rows(folder / name)
    except OSError as error:
        raise RunError(f"{folder / name}: {error.strerror}. Name the data to score the model on.") from error


@final
class Known:
    """A classifier to be extended.

    Args:
        recipe: its ``extend`` and ``remember``; for "pretrained" also the backbone.

    Raises:
        OptionError: its classifier is of a kind that cannot be extended.
        ModelFileError: no such model.
        WeightsError: the pretrained weights cannot be had.

    Attributes:
        net: the frozen pass to features.
        classes: that it knows.
        rehearsed: what it is trained on again.
        judged: what shows whether it has forgotten anything.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.folder: Path | None = None
        self.rehearsed = self.judged = _Pictures([], [], np.empty(0, np.int64))
        if recipe.extend == PRETRAINED:
            backbone, known = load_with_classifier(
                recipe.backbone or DEFAULT_BACKBONE,
                weights=recipe.weights,
                image_size=recipe.image_size,
            )
            self.net, self.classes = FeatureNet(backbone), known.classes
            self.head = linear_head(known.weight.numpy(), known.bias.numpy())
        else:
            model = load(recipe.extend or "")
            if model.thresholds is not None:
                raise OptionError(
                    f"{recipe.extend}: it gives any number of labels to an image, and what can be extended tells "
                    "classes apart. Train it anew on a table that has the new labels as well."
                )
            if not isinstance(model.head, LayeredHead):
                raise OptionError(
                    f"{recipe.extend}: its classifier ({type(model.head).__name__}) has no row for each class; train "
                    "it with --probe logistic, or with a --head, to extend it."
                )
            self.net, self.classes, self.head = model.net, model.classes, model.head
            path = user_path(recipe.extend or "")
            self.folder = path if path.is_dir() else None
        self.rows = _rows(self.head)

    def remember(self, cache: Path | None, progress: Progress) -> None:
        """Finds pictures of what is known: those of the model's own run, and those that the recipe names.

        Raises:
            DataError: none of the named pictures can be read.
        """
        parts: list[tuple[_Pictures, _Pictures]] = []
        if self.folder is not None:
            parts.append(self._of_the_run(cache, progress))
        if self.recipe.rehearsal:
            named = self._read(find_images(self.recipe.rehearsal), None, cache, progress)
            if not named.files:
                raise DataError(f"{self.recipe.rehearsal}: none of these pictures can be read.")
            parts.append(named.parted([key[0] < 128 for key in named.keys]))
        self.rehearsed, self.judged = (_joined([part[side] for part in parts]) for side in (0, 1))

    def _of_the_run(self, cache: Path | None, progress: Progress) -> tuple[_Pictures, _Pictures]:
        assert self.folder is not None
        number = {name: i for i, name in enumerate(self.classes)}
        rows = [row for row in split_rows(self.folder) if row["split"] and row["label"] in number]
        if (self.folder / REMEMBERED_FILE).is_file():
            rows += split_rows(self.folder, REMEMBERED_FILE)
        there = [row for row in rows if os.path.isfile(row["path"])]
        if len(there) < len(rows):
            gone = sorted({row["path"] for row in rows} - {row["path"] for row in there})
            progress.say(
                with_example(f"Warning: {len(gone):,} of {len(rows):,} images of {self.folder} are gone", gone)
            )
        numbers = [number.get(row["label"], -1) for row in there]
        read = self._read([row["path"] for row in there], numbers, cache, progress)
        split = {row["path"]: row["split"] for row in there}
        return read.parted([split[file] == "train" for file in read.files])

    def _read(self, files: list[str], numbers: list[int] | None, cache: Path | None, progress: Progress) -> _Pictures:
        scanned = scan(files, preprocessing=self.net.backbone.preprocessing, cache=cache, progress=progress)
        if scanned.faults:
            bad = [f"{files[i]}: {reason}" for i, reason in scanned.faults.items()]
            progress.say(with_example(f"Warning: {len(bad):,} pictures to remember cannot be read", bad))
        good = [i for i in range(len(files)) if i not in scanned.faults]
        labels = np.array([-1 if numbers is None else numbers[i] for i in good], np.int64)
        return _Pictures([files[i] for i in good], [scanned.keys[i] for i in good], labels)

    def fit(
        self,
        features: Features,
        labels: Labels,
        rehearsed: Features,
        *,
        names: Sequence[str],
        together: Parts,
        progress: Progress,
    ) -> Fitted:
        """The classifier with new classes behind its own.

        Args:
            features: (N, D) float32 of all training images.
            labels: (N,) int64 of them, in ``classes`` and then the new ones.
            rehearsed: (M, D) float32 of the pictures of that name.
            names: of the new ones.
            together: (N,) numbers of parts (groups, near copies) of the training images.
            progress: told of each step.

        Raises:
            OptionError: nothing is remembered, and nothing can be imagined.
        """
        known = len(self.classes)
        new = labels >= known
        x, y = self._inner(features[new]), labels[new] - known
        old = np.concatenate([features[~new], rehearsed])
        remembered = Remembered(self._inner(old), np.concatenate([labels[~new], self.rehearsed.labels]))
        if not len(remembered.features):
            remembered = self._imagined(x, y)
        found = extend_rows(
            self.rows,
            x,
            y,
            remembered,
            classes=len(names),
            train_old=self.recipe.train_old_classes,
            seed=self.recipe.seed,
            together=together[new],
            progress=progress,
        )
        head = head_with_rows(self.head, found.rows.weight, found.rows.bias)
        self._say_same(x, y, names, progress)
        count = len(remembered.features)
        what = "imagined features" if remembered.imagined else "images"
        classes = f"{len(names)} class{'es' if len(names) > 1 else ''} behind {known:,}"
        reason = f"{classes}, against {count:,} {what} of what was known: {found.reason}"
        settings = found.as_json() | {"known": known, "new": list(names), "remembered": count}
        settings["imagined"] = remembered.imagined

        def refit(_learn: Labels) -> nn.Module:
            raise NotImplementedError  # only rungs above it ask

        kept_rows = 0 if self.recipe.train_old_classes else sum(t.numel() for t in self.head.state_dict().values())
        return Fitted(head, "extension", reason, settings, refit, frozen=kept_rows)

    def kept_tensors(self, head: nn.Module | None = None) -> dict[str, Tensor]:
        """What stays of the classifier: the rows of its classes, and the layers before them.

        Args:
            head: the extended one; the one that is extended where it is not given.
        """
        own = self.head if head is None else head
        assert isinstance(own, LayeredHead)
        rows, known, last = _rows(own), len(self.classes), f"{_last_linear(own)}."
        kept = {f"head.{name}": tensor for name, tensor in own.state_dict().items() if not name.startswith(last)}
        rows_kept = {"head, rows of old classes": rows.weight[:known], "head, biases of old classes": rows.bias[:known]}
        return kept | {name: torch.from_numpy(array) for name, array in rows_kept.items()}

    def judge(self, model: Model, features: Features, *, progress: Progress) -> list[Evaluated]:
        """What was known, scored after it was extended and before.

        Where nobody said what the pictures show, the answer before counts as right.

        Args:
            model: the extended one.
            features: (M, D) float32 of the pictures that it is judged by.
            progress: told of the outcome.
        """
        if not self.judged.files:
            progress.say(
                "What the old classes are worth now was not measured: no picture of them is at hand. Name some with "
                "--rehearsal FOLDER."
            )
            return []
        before = logits_on(self.head, features).argmax(axis=1)
        labels = np.where(self.judged.labels < 0, before, self.judged.labels)
        chances = model.probabilities(features)
        part = evaluate_predictions("remembered", self.judged.files, labels, chances, model.classes)
        was, same = int((before == labels).sum()), int((chances.argmax(axis=1) == before).sum())
        progress.say(
            f"Remembered: {part.scores.correct:,} of {len(labels):,} right, {was:,} before; {same:,} are given the "
            "same name as before."
        )
        return [part]

    def remembered_csv(self) -> str:
        """The pictures of what was known, as a table; without a label where nobody said what they show."""
        rows = [["path", "label", "split", "content"]]
        for part, split in ((self.rehearsed, "train"), (self.judged, "val")):
            for file, key, label in zip(part.files, part.keys, part.labels, strict=True):
                rows.append([file, "" if label < 0 else self.classes[label], split, key.hex()])
        return csv_text(rows)

    def _imagined(self, x: Features, y: Labels) -> Remembered:
        average = average_features(self.net) if self.recipe.extend == PRETRAINED else None
        if average is None:
            raise OptionError(
                f"extend {self.recipe.extend}: no picture of what it knows is at hand, and without any it would "
                "forget. Name some with --rehearsal FOLDER (their labels are not needed)."
            )
        return imagine(self.rows, average, x, y, seed=self.recipe.seed)

    def _inner(self, features: Features) -> Features:
        """What the last layer of the head sees."""
        inner = nn.Sequential(*list(self.head)[: _last_linear(self.head)])
        return logits_on(inner, features).astype(np.float32) if len(inner) else features

    def _say_same(self, x: Features, y: Labels, names: Sequence[str], progress: Progress) -> None:
        if len(self.classes) < SAME_AMONG:
            return
        said = self.rows.logits(x).argmax(axis=1)
        for number, name in enumerate(names):
            own = np.bincount(said[y == number], minlength=len(self.classes))
            if own.max() > SAME_CLASS * own.sum():
                progress.say(
                    f"Warning: {100 * own.max() / own.sum():.0f} % of the images of {name!r} were given "
                    f"{self.classes[own.argmax()]!r} before: both may be the same class, and then compete."
                )


def _rows(head: LayeredHead) -> Rows:
    layer: Any = head[_last_linear(head)]
    weight, bias = (t.detach().double().numpy() for t in (layer.weight, layer.bias))
    if isinstance(head[-1], OneLogit):
        weight, bias = (np.concatenate([np.zeros_like(own), own]) for own in (weight, bias))
    return Rows(weight, bias)


def _last_linear(head: LayeredHead) -> int:
    return len(head) - (2 if isinstance(head[-1], OneLogit) else 1)


def _joined(parts: Sequence[_Pictures]) -> _Pictures:
    labels = [part.labels for part in parts]
    return _Pictures(
        [file for part in parts for file in part.files],
        [key for part in parts for key in part.keys],
        np.concatenate(labels) if labels else np.empty(0, np.int64),
    )
