"""Extending a model: the steps of a run that add classes to a finished classifier."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from torch import nn

from headstart.backbone.batchnorm_prior import average_features
from headstart.data.dataset import Dataset
from headstart.data.inspection import Inspection
from headstart.engine.device import resolve_device
from headstart.errors import DataError, OptionError
from headstart.evaluation.predictions import Evaluated, evaluate_predictions
from headstart.figures import count_text
from headstart.model import Model
from headstart.pipeline.base_classifier import BaseClassifier, RehearsalImages, last_linear
from headstart.pipeline.evaluate import (
    EvaluatedModel,
    TrainedClassifier,
    build_model,
    held_out_features,
    score_set,
    with_scores,
)
from headstart.pipeline.featurise import Featurised, feature_rows
from headstart.pipeline.fit import Prepared
from headstart.pipeline.inspect_images import Inspected, inspect_images
from headstart.pipeline.load import Job, Loaded, prepare_backbone
from headstart.pipeline.plan import Planned
from headstart.training.extend import Extension, RehearsalSamples, extend_rows, synthesise_features
from headstart.training.fit_head import Fitted, check_classes
from headstart.training.heads import head_with_rows, logits_on
from headstart.training.losses import Labels
from headstart.training.recipe import PRETRAINED
from headstart.trust.calibration import EXTENDED_MODEL, Calibration

OLD_CLASSES = "old classes"
"""Name of the set of images of the old classes."""

SAME_AMONG = 20
"""Old classes from which on it means something that most images of a new class are predicted as the same one."""

SAME_CLASS = 0.5
"""Share of a new class's images predicted as one old class from which on both may well be the same."""

Features = npt.NDArray[np.float32]


def load_network(job: Job, base: BaseClassifier) -> Loaded:
    """The network of the base classifier, which stays frozen.

    Raises:
        OptionError: an option does not go with the classes; no such device.
    """
    started = time.monotonic()
    resolve_device(job.device)
    prepare_backbone(job, base.net.backbone)
    check_classes(job.recipe, len(job.dataset.classes), multi_label=job.dataset.multi_label)
    return Loaded(base.net.backbone, base.net, None, round(time.monotonic() - started, 2))


def inspect_new_images(
    job: Job, loaded: Loaded, base: BaseClassifier, inspection: Inspection | None = None
) -> Inspected:
    """Reads every image; the data's new classes are numbered after the old ones.

    Raises:
        DataError: see ``inspect_images``; or no class is new.
    """
    inspected = inspect_images(job, loaded, inspection)
    dataset = _after_old_classes(base.classes, inspected.dataset)
    return replace(inspected, inspection=replace(inspected.inspection, dataset=dataset))


def _after_old_classes(old: tuple[str, ...], dataset: Dataset) -> Dataset:
    new = [name for name in dataset.classes if name not in old]
    if not new:
        raise DataError(
            f"{dataset.root}: the model already has every class of the data ({', '.join(dataset.classes[:10])}). Add "
            "images of a new class."
        )
    classes = (*old, *new)
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[name] for name in dataset.label_names()], np.int64)
    return replace(dataset, classes=classes, labels=labels)


def fit_new_classes(
    job: Job,
    loaded: Loaded,
    inspected: Inspected,
    planned: Planned,
    featurised: Featurised,
    base: BaseClassifier,
    images: RehearsalImages,
) -> Fitted:
    """Fits rows for the new classes against the old ones.

    Raises:
        OptionError: there are no images of the old classes, and their features cannot be synthesised.
    """
    num_old, names = len(base.classes), inspected.dataset.classes[len(base.classes) :]
    features, labels = featurised.train.features, featurised.train.labels
    is_new = labels >= num_old
    x, y = _last_layer_input(base, features[is_new]), labels[is_new] - num_old
    rehearsed = feature_rows(job, loaded, inspected, planned, images.train.keys, exact=False)
    old = np.concatenate([features[~is_new], rehearsed])
    rehearsal = RehearsalSamples(_last_layer_input(base, old), np.concatenate([labels[~is_new], images.train.labels]))
    if not len(rehearsal.features):
        rehearsal = _synthesised(job, base, x, y)
    found = extend_rows(
        base.rows,
        x,
        y,
        rehearsal,
        classes=len(names),
        train_old=job.recipe.train_old_classes,
        seed=job.recipe.seed,
        together=inspected.parts(inspected.positions["train"])[is_new],
        progress=job.progress,
    )
    _warn_of_same_classes(job, base, x, y, names)
    return _as_fitted(job, base, found, names, rehearsal)


def _as_fitted(
    job: Job, base: BaseClassifier, found: Extension, names: Sequence[str], rehearsal: RehearsalSamples
) -> Fitted:
    count = len(rehearsal.features)
    what = "synthesised features" if rehearsal.is_synthesised else "images"
    classes = f"{len(names)} new class{'es' if len(names) > 1 else ''} after {len(base.classes):,} old ones"
    reason = f"{classes}, fitted with {count:,} {what} of the old classes: {found.reason}"
    settings = found.as_json() | {
        "old_classes": len(base.classes),
        "new": list(names),
        "rehearsal_samples": count,
        "is_synthesised": rehearsal.is_synthesised,
    }
    kept = 0 if job.recipe.train_old_classes else sum(t.numel() for t in base.head.state_dict().values())
    head = head_with_rows(base.head, found.rows.weight, found.rows.bias)
    return Fitted(head, "extension", reason, settings, _no_refit, frozen=kept)


def _no_refit(_learn: Labels) -> nn.Module:
    raise NotImplementedError("skipped when extending a model")


def _last_layer_input(base: BaseClassifier, features: Features) -> Features:
    """(N, D) float32, what the last layer of the head sees."""
    inner = nn.Sequential(*list(base.head)[: last_linear(base.head)])
    return logits_on(inner, features).astype(np.float32) if len(inner) else features


def _synthesised(job: Job, base: BaseClassifier, x: Features, y: Labels) -> RehearsalSamples:
    average = average_features(base.net) if job.recipe.extend == PRETRAINED else None
    if average is None:
        raise OptionError(
            f"extend {job.recipe.extend}: no images of its existing classes were found, and without them it would "
            "forget these classes. Give a folder of such images as the option rehearsal (labels are not needed)."
        )
    return synthesise_features(base.rows, average, x, y, seed=job.recipe.seed)


def _warn_of_same_classes(job: Job, base: BaseClassifier, x: Features, y: Labels, names: Sequence[str]) -> None:
    if len(base.classes) < SAME_AMONG:
        return
    predicted = base.rows.logits(x).argmax(axis=1)
    for number, name in enumerate(names):
        counts = np.bincount(predicted[y == number], minlength=len(base.classes))
        if counts.max() > SAME_CLASS * counts.sum():
            job.progress.say(
                f"Warning: {100 * counts.max() / counts.sum():.0f} % of the images of {name!r} were predicted as "
                f"{base.classes[counts.argmax()]!r} by the model before extension: the two may be the same class. If "
                "so, give them one name."
            )


def evaluate_extended(prepared: Prepared, base: BaseClassifier, images: RehearsalImages) -> EvaluatedModel:
    """Scores the extended model on its new classes, and on the old ones before and after.

    It is not calibrated: val has images of the new classes alone.
    """
    model = build_model(prepared, TrainedClassifier(prepared.loaded.backbone, prepared.fitted.head))
    model = model.replace(calibration=Calibration(missing=EXTENDED_MODEL))
    evaluated: list[Evaluated] = []
    for name, features in held_out_features(prepared, model).items():
        part = score_set(prepared, model, name, features)
        probabilities = model.probabilities(features)
        evaluated += [part, *_among_new(prepared.inspected, name, part, probabilities, len(base.classes))]
    return with_scores(model, [*evaluated, *_score_old_classes(prepared, model, base, images)])


def _among_new(
    inspected: Inspected, name: str, part: Evaluated, probabilities: npt.NDArray[np.float64], num_old: int
) -> list[Evaluated]:
    """Images of new classes, predicted among these alone."""
    classes = inspected.dataset.classes
    labels = inspected.dataset.labels[inspected.positions[name]]
    is_new = labels >= num_old
    if not is_new.any() or len(classes) - num_old < 2:
        return []
    new = probabilities[is_new][:, num_old:]
    shares = new / new.sum(axis=1, keepdims=True).clip(min=np.finfo(float).tiny)
    paths = [path for path, is_kept in zip(part.paths, is_new, strict=True) if is_kept]
    return [
        evaluate_predictions(f"{name}, new classes only", paths, labels[is_new] - num_old, shares, classes[num_old:])
    ]


def _score_old_classes(
    prepared: Prepared, model: Model, base: BaseClassifier, images: RehearsalImages
) -> list[Evaluated]:
    """The old classes after and before; where nobody labelled an image, the prediction before counts as correct."""
    progress = prepared.job.progress
    if not images.val.files:
        progress.say(
            "The accuracy on the old classes was not measured: there are no images of them. Give some with the "
            "option rehearsal."
        )
        return []
    features = feature_rows(
        prepared.job, prepared.loaded, prepared.inspected, prepared.planned, images.val.keys, exact=True
    )
    before = logits_on(base.head, features).argmax(axis=1)
    labels = np.where(images.val.labels < 0, before, images.val.labels)
    probabilities = model.probabilities(features)
    part = evaluate_predictions(OLD_CLASSES, images.val.files, labels, probabilities, model.classes)
    correct, same = int((before == labels).sum()), int((probabilities.argmax(axis=1) == before).sum())
    count = len(labels)
    progress.say(
        f"Old classes: accuracy {count_text(part.scores.correct, count)}, {count_text(correct, count)} before; "
        f"{same:,} predictions are unchanged."
    )
    return [part]
