"""Cross-entropy losses, probabilities, soft targets and cross-validation folds, for one class per image or multi-label.

Single-label: labels are (N,) int64, the index of each image's class, and a softmax turns logits into probabilities.
Multi-label: labels are (N, classes) int64, 1 for each label of an image and 0 for the others, and a sigmoid turns each
logit into a probability. Every function here accepts both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headstart.errors import DataError
from headstart.import_effects import import_quietly

Labels = npt.NDArray[np.int64]
Logits = npt.NDArray[np.floating[Any]]
Folds = list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
Parts = npt.NDArray[np.int64]
"""(N,) index of each image's part: images of one group, and near duplicates, are in one part."""


def is_multi_label(labels: Labels | Tensor) -> bool:
    """True for (N, classes) labels: an image may have any number of labels."""
    return labels.ndim == 2


def count_learnable(labels: Labels) -> int:
    """Number of classes with images; multi-label: of labels that some images have and others do not."""
    if is_multi_label(labels):
        counts = labels.sum(axis=0)
        return int(((counts > 0) & (counts < len(labels))).sum())
    return len(np.unique(labels))


def probabilities_of(logits: Logits, *, multi_label: bool) -> npt.NDArray[np.float64]:
    """(N, classes) logits -> (N, classes) float64 in [0, 1], by softmax, or by sigmoid if multi-label."""
    exact = logits.astype(np.float64)
    if multi_label:
        return np.asarray(import_quietly("scipy.special").expit(exact))
    powers = np.exp(exact - exact.max(axis=1, keepdims=True))  # SciPy's softmax; a model is loaded without SciPy
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def log_losses(logits: Logits, labels: Labels) -> npt.NDArray[np.float64]:
    """(N,) cross-entropy of each image in nats; multi-label: the sum of the labels' binary cross-entropies."""
    exact = logits.astype(np.float64)
    if is_multi_label(labels):
        return np.asarray(-import_quietly("scipy.special").log_expit(np.where(labels > 0, exact, -exact)).sum(axis=1))
    return np.asarray(-import_quietly("scipy.special").log_softmax(exact, axis=1)[np.arange(len(labels)), labels])


def mean_losses(logits: Logits, labels: Labels) -> npt.NDArray[np.float64]:
    """(N,) mean of ``log_losses`` over all possible labels, as label smoothing needs it."""
    exact = logits.astype(np.float64)
    if is_multi_label(labels):
        return np.asarray(
            -0.5
            * (
                import_quietly("scipy.special").log_expit(exact) + import_quietly("scipy.special").log_expit(-exact)
            ).sum(axis=1)
        )
    return np.asarray(-import_quietly("scipy.special").log_softmax(exact, axis=1).mean(axis=1))


def are_correct(logits: Logits, labels: Labels) -> npt.NDArray[np.bool_]:
    """(N,) True where the predicted class is the label; multi-label: where all labels are, with threshold 0.5."""
    return correct_in(torch.from_numpy(np.ascontiguousarray(logits)), torch.from_numpy(labels)).numpy()


def correct_in(logits: Tensor, labels: Tensor) -> Tensor:
    """As ``are_correct``, for tensors: (..., N, classes) logits -> (..., N) bool."""
    if is_multi_label(labels):
        return ((logits > 0) == (labels > 0)).all(-1)
    return logits.argmax(-1) == labels


def soft_targets(labels: Labels, classes: int, smoothing: float) -> Tensor:
    """(N, classes) float32 targets with label smoothing; multi-label: each label is smoothed towards 0.5."""
    exact = torch.from_numpy(labels)
    if is_multi_label(labels):
        return exact.float() * (1 - smoothing) + smoothing / 2
    return nn.functional.one_hot(exact, classes).float() * (1 - smoothing) + smoothing / classes


def loss_per_image(logits: Tensor, targets: Tensor, *, multi_label: bool) -> Tensor:
    """Cross-entropy with soft targets: (..., N, classes) logits and (N, classes) targets -> (..., N), in nats."""
    if multi_label:
        expanded = targets.expand_as(logits)
        return nn.functional.binary_cross_entropy_with_logits(logits, expanded, reduction="none").sum(-1)
    return -(targets * nn.functional.log_softmax(logits, -1)).sum(-1)


def image_weights(labels: Labels, classes: int, *, balance: bool) -> Tensor:
    """(N,) float32 weights of the images, with mean 1; with ``balance`` each class has the same total weight.

    ``balance`` requires single-label data.
    """
    if not balance:
        return torch.ones(len(labels))
    present = np.bincount(labels, minlength=classes)
    shares = np.where(present > 0, len(labels) / (np.count_nonzero(present) * np.maximum(present, 1)), 0.0)
    return torch.from_numpy(shares[labels].astype(np.float32))


def class_sizes(labels: Labels) -> npt.NDArray[np.int64]:
    """(N,) number of images in the class of each image; multi-label: of all images, as each informs every label."""
    if is_multi_label(labels):
        return np.full(len(labels), len(labels))
    return np.asarray(np.bincount(labels)[labels])


def folds_of(labels: Labels, count: int, seed: int, *, together: Parts | None = None) -> Folds:
    """K-fold cross-validation: (training images, evaluation images) of each fold.

    Stratified for single-label data. Each image is evaluated once.

    Args:
        labels: of N images, at least 2.
        count: number of folds; fewer (at least 2) if the largest class has fewer images.
        seed: of the shuffle.
        together: (N,) part of each image (see ``Parts``). A part is never divided between the two sides of a fold.
            Ignored if all images are one part.
    """
    if together is not None:
        _, first, part = np.unique(together, return_index=True, return_inverse=True)
        if 1 < len(first) < len(together):
            judged = [np.isin(part, judge) for _, judge in folds_of(labels[first], count, seed)]
            return [(np.flatnonzero(~mask), np.flatnonzero(mask)) for mask in judged]
    number = max(2, min(count, int(class_sizes(labels).max())))
    is_stratified = not is_multi_label(labels) and class_sizes(labels).max() >= number
    numbers = (_stratified_fold_numbers if is_stratified else _fold_numbers)(labels, number, seed)
    return [(np.flatnonzero(numbers != fold), np.flatnonzero(numbers == fold)) for fold in range(number)]


def _fold_numbers(labels: Labels, count: int, seed: int) -> npt.NDArray[np.int64]:
    """(N,) fold of each image, as scikit-learn's ``KFold``, whose import takes two seconds."""
    shuffled = np.arange(len(labels))
    np.random.RandomState(seed).shuffle(shuffled)
    numbers = np.empty(len(labels), np.int64)
    for fold, images in enumerate(np.array_split(shuffled, count)):
        numbers[images] = fold
    return numbers


def _stratified_fold_numbers(labels: Labels, count: int, seed: int) -> npt.NDArray[np.int64]:
    """(N,) fold of each image, as scikit-learn's ``StratifiedKFold``.

    Images in the order of their classes are dealt to the folds in turn, which gives the sizes; then each class is
    shuffled. Classes with fewer images than folds are in some folds only.
    """
    generator, numbers = np.random.RandomState(seed), np.empty(len(labels), np.int64)
    _, first, codes = np.unique(labels, return_index=True, return_inverse=True)
    codes = np.argsort(np.argsort(first))[codes]  # classes in the order of their first images
    in_order = np.sort(codes)
    sizes = np.stack([np.bincount(in_order[fold::count], minlength=len(first)) for fold in range(count)])
    for code in range(len(first)):
        drawn = np.repeat(np.arange(count), sizes[:, code])
        generator.shuffle(drawn)
        numbers[codes == code] = drawn
    return numbers


def can_keep_together(labels: Labels, together: Parts) -> bool:
    """True if some class has images in two parts, so that cross-validation is possible without dividing a part.

    Args:
        labels: of N images.
        together: (N,) part of each image.
    """
    _, first = np.unique(together, return_index=True)
    return int(class_sizes(labels[first]).max()) > 1


def has_other_part(labels: Labels, together: Parts) -> npt.NDArray[np.bool_]:
    """(N,) True where the class of an image also has images in another part: only these can be evaluated.

    Args:
        labels: (N,) int64, the class of each image.
        together: (N,) part of each image.
    """
    pairs = np.unique(np.stack([labels, together], axis=1), axis=0)
    return np.asarray(np.bincount(pairs[:, 0])[labels] > 1)


def evaluated_images(folds: Folds) -> npt.NDArray[np.int64]:
    """(M,) int64 ascending, the images that folds evaluate."""
    return np.sort(np.concatenate([judge for _, judge in folds]))


def learnable_folds(labels: Labels, count: int, seed: int, *, together: Parts | None = None) -> Folds:
    """As ``folds_of``, for classifiers that are fitted in each fold: the training images contain every class.

    The only image of a class is a training image in every fold and never evaluated, so that such a class does not
    prevent the evaluation of the others.

    Args:
        labels: of N images.
        count: number of folds, see ``folds_of``.
        seed: of the shuffle.
        together: (N,) part of each image (see ``Parts``). A part is never divided between the two sides of a fold.
            Ignored if no class has images in two parts, see ``can_keep_together``.

    Raises:
        DataError: no class has two images.
    """
    if together is not None and len(set(together.tolist())) < len(together):
        _, first, part = np.unique(together, return_index=True, return_inverse=True)
        if can_keep_together(labels, together):
            parts = learnable_folds(labels[first], count, seed)
            folds = [_with_all_classes(labels, np.isin(part, judge)) for _, judge in parts]
            return [(learn, judge) for learn, judge in folds if len(judge)]
    single = class_sizes(labels) == 1
    if single.all():
        raise DataError("every class has only one image, so none can be held out for evaluation. Add images.")
    alone, others = np.flatnonzero(single), np.flatnonzero(~single)
    folds = folds_of(labels[others], count, seed)
    return [(np.sort(np.concatenate([others[learn], alone])), others[judge]) for learn, judge in folds]


def _with_all_classes(
    labels: Labels, judged: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """A fold that evaluates these images, except those whose class would be missing from the training images."""
    if not is_multi_label(labels):
        judged = judged & np.isin(labels, labels[~judged])
    return np.flatnonzero(~judged), np.flatnonzero(judged)
