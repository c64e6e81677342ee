"""Calibration: a temperature, and the probability from which on an answer is sure enough.

It is fitted on predictions of images that were not learnt from: of val, and where that is small, of training images by
cross-validation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from headstart.training.losses import Labels, Logits, Parts, are_correct, folds_of, is_multi_label, probabilities_of
from headstart.trust.temperature import best_scale

LEAST = 50
"""Out-of-sample predictions below which nothing is fitted."""

FOLDS = 5

DEFAULT_TARGET_ACCURACY = 0.95
"""Share of the answers that are to be right, where nothing else is asked for."""

HIGHEST = 20.0
"""Largest temperature, and 1 / the smallest. A network that learnt something is never that far off; beyond it the fit
follows a few images or the lack of any signal."""

LEARNT_P = 0.01
"""A classifier learnt something where chance gives as many right answers less often than this."""

EXTENDED_MODEL = (
    "of a model that extends another one, the validation images are of the new classes alone. Remedy: train on images "
    "of all classes together"
)
OLDER = "its file was written without calibration. Remedy: train it anew"

OLD_KEYS: Final = {"wanted": "target_accuracy", "usual_images": "num_inliers", "usual_kept": "num_inliers_accepted"}
"""Keys of documents that earlier versions wrote -> the field's name today."""

Right = npt.NDArray[np.bool_]
Chances = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """What was fitted on images that were not learnt from.

    Attributes:
        temperature: that logits are divided by.
        images: that it was fitted on; 0 where there is none, and the temperature is 1.
        target_accuracy: accuracy that accepted answers must reach, in (0, 1); 0 for multi-label data.
        threshold: probability of the best class below which the model is unsure; 0: never, above 1: always.
        coverage: share of the images that it is sure of, each fifth judged by the threshold of the others.
        accuracy: share of those that are right, likewise; 0 where there are none.
        source: what the images are: "550 validation images".
        missing: why there is none, and the remedy; "" where there is one.
        num_inliers: images that were not learnt from and say how far from the training images is usual.
        num_inliers_accepted: of these, those that are taken for usual, each fifth judged by the others.
    """

    temperature: float = 1.0
    images: int = 0
    target_accuracy: float = 0.0
    threshold: float = 0.0
    coverage: float = 1.0
    accuracy: float = 0.0
    source: str = ""
    missing: str = ""
    num_inliers: int = 0
    num_inliers_accepted: int = 0

    def as_json(self) -> dict[str, Any]:
        """A JSON document that ``from_json`` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Calibration:
        """Reads what ``as_json`` wrote, also what it wrote in earlier versions."""
        return cls(**with_current_keys(document))

    @property
    def sentence(self) -> str:
        """What was fitted on which images, or why nothing was and what to do."""
        if not self.images:
            return f"Not calibrated: {self.missing or OLDER}."
        source = self.source or f"{self.images:,} validation images"
        words = f"Calibrated on {source}: temperature {self.temperature:.2f}"
        if self.target_accuracy:
            words += (
                f"; to be right in {100 * self.target_accuracy:g} % of its answers, it answers "
                f"{100 * self.coverage:.1f} % of them and is right in {100 * self.accuracy:.1f} %"
            )
        return words + "."

    @property
    def threshold_sentence(self) -> str:
        """From which probability on an answer is sure enough."""
        wanted = f"right in {100 * self.target_accuracy:g} % of its answers"
        if self.threshold <= 0:
            return f"The model is {wanted} whatever their probability, so it is never unsure."
        if self.threshold > 1:
            return f"No probability is high enough to be {wanted}, so it is always unsure: ask a person."
        least = "0.1" if self.threshold < 0.001 else f"{100 * self.threshold:.1f}"
        return f"To be {wanted}, the model is unsure below a probability of {least} %: ask a person."


def with_current_keys(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document of a ``Calibration`` whose old keys are replaced by the fields' names."""
    return {OLD_KEYS.get(key, key): value for key, value in document.items()}


@dataclass(frozen=True)
class Agreement:
    """How often answers are right, and how often they would be if they were dealt out at random.

    Attributes:
        correct: answers that are right.
        expected: that would be right by chance: each class answered as often, and true as often, but independently.
        count: answers.
    """

    correct: int
    expected: float
    count: int

    @property
    def learnt(self) -> bool:
        """Whether chance gives so many right answers in under ``LEARNT_P`` (exact binomial test)."""
        share = min(1.0, self.expected / self.count)
        return bool(binomtest(self.correct, self.count, share, alternative="greater").pvalue < LEARNT_P)

    @property
    def kappa(self) -> float:
        """Share of what chance gets wrong that is right; at most 1.

        Source: Cohen, "A Coefficient of Agreement for Nominal Scales", 1960.
        """
        return (self.correct - self.expected) / max(self.count - self.expected, 1e-9)

    @property
    def sentence(self) -> str:
        """Of a classifier that did not learn anything: what shows it, and what to do."""
        return (
            f"the classifier learnt nothing: {self.correct:,} of {self.count:,} answers about images that it did not "
            f"learn from are right, and {self.expected:.0f} would be by chance. Remedy: use pretrained weights, more "
            "images, or check that the labels can be seen in the images"
        )


def agreement(scores: Logits, labels: Labels) -> Agreement:
    """Compares answers with labels; of several labels to an image, each of them is an answer.

    Args:
        scores: (N, classes) logits; the highest is the answer, of several labels all above 0 are.
        labels: of these images.
    """
    if is_multi_label(labels):
        given = scores > 0
        by_chance = given.mean(axis=0) * labels.mean(axis=0) + (1 - given.mean(axis=0)) * (1 - labels.mean(axis=0))
        return Agreement(int((given == (labels > 0)).sum()), float(by_chance.sum() * len(labels)), labels.size)
    classes = scores.shape[1]
    given_often, true_often = (np.bincount(own, minlength=classes) for own in (scores.argmax(axis=1), labels))
    expected = float(given_often @ true_often) / max(1, len(labels))
    return Agreement(int(are_correct(scores, labels).sum()), expected, len(labels))


def calibrate(
    logits: Logits, labels: Labels, *, target_accuracy: float, source: str = "", together: Parts | None = None
) -> Calibration:
    """Fits a temperature and a threshold.

    Nothing is fitted to fewer than ``LEAST`` images, or to a classifier that is no better than chance.

    Args:
        logits: (N, classes) of images that were not learnt from.
        labels: of these, see ``training.losses``.
        target_accuracy: share of the answers that are to be right, in (0, 1).
        source: what these images are, in words.
        together: (N,) numbers of parts (groups, near copies) that cross-fitting does not divide.
    """
    if len(labels) < LEAST:
        return Calibration(
            missing=f"it takes {LEAST} images that were not learnt from, and there are {len(labels)}. Remedy: add "
            "labelled images"
        )
    found = agreement(logits, labels)
    if not found.learnt:
        return Calibration(missing=found.sentence)
    scale = calibrated_scale(logits, labels)
    if is_multi_label(labels):
        return Calibration(1 / scale, len(labels), source=source)
    chances = probabilities_of(scale * logits, multi_label=False)
    right, best = chances.argmax(axis=1) == labels, chances.max(axis=1)
    sure = np.zeros(len(labels), dtype=bool)
    for learn, judge in folds_of(labels, FOLDS, 0, together=together):
        sure[judge] = best[judge] >= threshold_for_accuracy(target_accuracy, best[learn], right[learn])
    return Calibration(
        1 / scale,
        len(labels),
        target_accuracy,
        threshold_for_accuracy(target_accuracy, best, right),
        float(sure.mean()),
        float(right[sure].mean()) if sure.any() else 0.0,
        source,
    )


def calibrated_scale(logits: Logits, labels: Labels) -> float:
    """1 / temperature, with one wrong answer more than there were, so that no number of right ones makes it certain.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; the answer more is after Platt (1999).
    """
    return min(max(best_scale(logits, labels, doubt=1 / (len(labels) + 2)), 1 / HIGHEST), HIGHEST)


def cross_fitted_probabilities(logits: Logits, labels: Labels, *, together: Parts | None = None) -> Chances:
    """(N, classes) probabilities of the images on which a temperature is fitted, each fifth by that of the others.

    Args:
        logits: (N, classes).
        labels: of these images, see ``training.losses``.
        together: (N,) numbers of parts (groups, near copies) that the fifths do not divide.
    """
    chances = np.empty(logits.shape)
    multi_label = is_multi_label(labels)
    if len(labels) < LEAST:
        return probabilities_of(logits, multi_label=multi_label)
    for learn, judge in folds_of(labels, FOLDS, 0, together=together):
        scale = calibrated_scale(logits[learn], labels[learn])
        chances[judge] = probabilities_of(scale * logits[judge], multi_label=multi_label)
    return chances


def threshold_for_accuracy(target_accuracy: float, best: Chances, right: Right) -> float:
    """The lowest probability from which on a wanted share of the answers is right.

    Args:
        target_accuracy: that share, in (0, 1).
        best: (N,) probability of each image's most probable class.
        right: (N,) whether it is its own.

    Returns:
        0 where all answers together are as good; above 1 where none are.
    """
    order = np.argsort(-best, kind="stable")
    ranked, hits = best[order], np.cumsum(right[order])
    ends = np.flatnonzero(np.diff(ranked, append=-1.0))  # equal probabilities are answered together or not at all
    enough = ends[hits[ends] >= target_accuracy * (ends + 1)]
    if not len(enough):
        return math.nextafter(1.0, 2.0)
    return 0.0 if enough[-1] == len(best) - 1 else float(ranked[enough[-1]])
