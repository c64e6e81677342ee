"""What labels ask of a classifier: one class for each image, or any number of labels.

Labels are (N,) int64, the number of each image's class: logits become probabilities by a softmax. Or they are
(N, classes) int64, 1 for each label that an image bears and 0 for the others: each logit becomes one by a sigmoid.
Every function here takes both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit, log_expit, log_softmax, softmax
from torch import Tensor, nn

from headstart.concurrency import ignored_warnings
from headstart.errors import DataError
from headstart.import_effects import restored_after_import

Labels = npt.NDArray[np.int64]
Logits = npt.NDArray[np.floating[Any]]
Folds = list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
Parts = npt.NDArray[np.int64]
"""(N,) numbers of the parts that images fall into: images of one group, and near copies, are in one part."""


def are_several(labels: Labels | Tensor) -> bool:
    """Whether an image may bear any number of labels."""
    return labels.ndim == 2


def count_learnable(labels: Labels) -> int:
    """Classes that have images; or labels that some images bear and others do not."""
    if are_several(labels):
        bearing = labels.sum(axis=0)
        return int(((bearing > 0) & (bearing < len(labels))).sum())
    return len(np.unique(labels))


def probabilities_of(logits: Logits, *, several: bool) -> npt.NDArray[np.float64]:
    """(N, classes) logits -> (N, classes) float64 in [0, 1]; rows sum to 1 where each image has one class."""
    exact = logits.astype(np.float64)
    return np.asarray(expit(exact) if several else softmax(exact, axis=1))


def log_losses(logits: Logits, labels: Labels) -> npt.NDArray[np.float64]:
    """(N,) loss of each image in nats; of several labels, the sum over them of each one's binary cross-entropy."""
    exact = logits.astype(np.float64)
    if are_several(labels):
        return np.asarray(-log_expit(np.where(labels > 0, exact, -exact)).sum(axis=1))
    return np.asarray(-log_softmax(exact, axis=1)[np.arange(len(labels)), labels])


def mean_losses(logits: Logits, labels: Labels) -> npt.NDArray[np.float64]:
    """(N,) what ``log_losses`` would be on average over all answers that there are, whatever the labels say."""
    exact = logits.astype(np.float64)
    if are_several(labels):
        return np.asarray(-0.5 * (log_expit(exact) + log_expit(-exact)).sum(axis=1))
    return np.asarray(-log_softmax(exact, axis=1).mean(axis=1))


def right_of(logits: Logits, labels: Labels) -> npt.NDArray[np.bool_]:
    """(N,) whether each image is right; of several labels, whether all are, with 0.5 as their threshold."""
    return right_in(torch.from_numpy(np.ascontiguousarray(logits)), torch.from_numpy(labels)).numpy()


def right_in(logits: Tensor, labels: Tensor) -> Tensor:
    """``right_of``: (..., N, classes) logits -> (..., N) bool."""
    if are_several(labels):
        return ((logits > 0) == (labels > 0)).all(-1)
    return logits.argmax(-1) == labels


def soft_targets(labels: Labels, classes: int, smoothing: float) -> Tensor:
    """(N, classes) float32, a share of each image's spread over all classes; of several labels, over both answers."""
    told = torch.from_numpy(labels)
    if are_several(labels):
        return told.float() * (1 - smoothing) + smoothing / 2
    return nn.functional.one_hot(told, classes).float() * (1 - smoothing) + smoothing / classes


def losses_in(logits: Tensor, targets: Tensor, *, several: bool) -> Tensor:
    """Loss to train by, as ``log_losses``: (..., N, classes) logits and (N, classes) targets -> (..., N)."""
    if several:
        own = targets.expand_as(logits)
        return nn.functional.binary_cross_entropy_with_logits(logits, own, reduction="none").sum(-1)
    return -(targets * nn.functional.log_softmax(logits, -1)).sum(-1)


def image_weights(labels: Labels, classes: int, *, balance: bool) -> Tensor:
    """(N,) float32 weights of the images, of mean 1; with ``balance`` each class weighs the same.

    Several labels to an image are not balanced.
    """
    if not balance:
        return torch.ones(len(labels))
    present = np.bincount(labels, minlength=classes)
    shares = np.where(present > 0, len(labels) / (np.count_nonzero(present) * np.maximum(present, 1)), 0.0)
    return torch.from_numpy(shares[labels].astype(np.float32))


def class_sizes(labels: Labels) -> npt.NDArray[np.int64]:
    """(N,) images in the class of each image; of several labels, all images: each tells something of each label."""
    if are_several(labels):
        return np.full(len(labels), len(labels))
    return np.asarray(np.bincount(labels)[labels])


def folds_of(labels: Labels, count: int, seed: int, *, together: Parts | None = None) -> Folds:
    """K-fold cross-validation: (images to learn from, images to judge) of each fold.

    Stratified where each image has one class. Each image is judged once.

    Args:
        labels: of N images, at least 2.
        count: folds; fewer, but 2 at least, where the largest class has fewer images.
        seed: of the shuffle.
        together: (N,) numbers of parts (groups, near copies) that are never divided between the two sides of a fold.
            Ignored where all images are one part.
    """
    if together is not None:
        _, first, part = np.unique(together, return_index=True, return_inverse=True)
        if 1 < len(first) < len(together):
            judged = [np.isin(part, judge) for _, judge in folds_of(labels[first], count, seed)]
            return [(np.flatnonzero(~own), np.flatnonzero(own)) for own in judged]
    with restored_after_import():  # the import takes a second, which predictions do not need
        from sklearn.model_selection import KFold, StratifiedKFold

    number = max(2, min(count, int(class_sizes(labels).max())))
    if are_several(labels) or class_sizes(labels).max() < number:
        return list(KFold(number, shuffle=True, random_state=seed).split(labels))
    with ignored_warnings("sklearn", UserWarning):  # classes of fewer images than folds are spread as far as they go
        return list(StratifiedKFold(number, shuffle=True, random_state=seed).split(labels, labels))


def can_keep_together(labels: Labels, together: Parts) -> bool:
    """Whether some class has images in two parts, so that cross-validation can judge it without dividing a part.

    Args:
        labels: of N images.
        together: (N,) numbers of parts, see ``learnable_folds``.
    """
    _, first = np.unique(together, return_index=True)
    return int(class_sizes(labels[first]).max()) > 1


def several_parts(labels: Labels, together: Parts) -> npt.NDArray[np.bool_]:
    """(N,) whether the class of each image has images in another part as well: only these can be judged.

    Args:
        labels: (N,) int64, the class of each image.
        together: (N,) numbers of parts, see ``learnable_folds``.
    """
    pairs = np.unique(np.stack([labels, together], axis=1), axis=0)
    return np.asarray(np.bincount(pairs[:, 0])[labels] > 1)


def judged_places(folds: Folds) -> npt.NDArray[np.int64]:
    """(M,) int64 ascending, the images that folds judge."""
    return np.sort(np.concatenate([judge for _, judge in folds]))


def learnable_folds(labels: Labels, count: int, seed: int, *, together: Parts | None = None) -> Folds:
    """``folds_of`` for classifiers that are fitted in each fold: every class is there to learn from.

    The image of a class that has no other is learnt from in every fold, and never judged. So one such class does not
    keep the others from being judged.

    Args:
        labels: of N images.
        count: folds, see ``folds_of``.
        seed: of the shuffle.
        together: (N,) numbers of parts (groups, near copies) that are never divided between the two sides of a fold.
            Ignored where no class has images in two parts, see ``can_keep_together``.

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
        raise DataError("every class has one image only: nothing is left to judge a classifier by. Add images.")
    alone, others = np.flatnonzero(single), np.flatnonzero(~single)
    folds = folds_of(labels[others], count, seed)
    return [(np.sort(np.concatenate([others[learn], alone])), others[judge]) for learn, judge in folds]


def _with_all_classes(
    labels: Labels, judged: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """A fold that judges these images, but for those of classes that would be missing among the others."""
    if not are_several(labels):
        judged = judged & np.isin(labels, labels[~judged])
    return np.flatnonzero(~judged), np.flatnonzero(judged)
