"""Calibration: temperature scaling (Guo et al., 2017) and the threshold of selective prediction.

Both are fitted on out-of-sample predictions: of the validation images and, if these are few, also of training images by
cross-validation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from headstart.import_effects import import_quietly
from headstart.training.former_options import with_current_names
from headstart.training.losses import Labels, Logits, Parts, are_correct, folds_of, is_multi_label, probabilities_of
from headstart.trust.temperature import best_scale

LEAST = 50
"""Minimum number of out-of-sample predictions for a fit."""

FOLDS = 5

HIGHEST = 20.0
"""Largest temperature, and 1 / the smallest. Trained networks stay far inside; beyond, the fit follows a few images or
noise."""

LEARNT_P = 0.01
"""Significance level of the binomial test against chance agreement."""

EXTENDED_MODEL = (
    "the model extends another one, and its validation images cover only the new classes. To calibrate, train on "
    "images of all classes together"
)
OLDER = "the model file was written without calibration. To calibrate, train again"

OLD_KEYS: Final = {"wanted": "target_accuracy", "usual_images": "num_inliers", "usual_kept": "num_inliers_accepted"}
"""Keys of documents that earlier versions wrote -> the field's name today."""

Right = npt.NDArray[np.bool_]
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """A fitted calibration.

    Attributes:
        temperature: by which logits are divided.
        images: number of images of the fit; 0 if the model is not calibrated, and the temperature is 1.
        target_accuracy: accuracy that accepted answers must reach, in (0, 1); 0 for multi-label data.
        threshold: probability of the best class below which the model answers "unsure"; 0: never, above 1: always.
        coverage: share of the images above the threshold (cross-fitted), in [0, 1].
        accuracy: accuracy on these images (cross-fitted), in [0, 1]; 0 if there are none.
        source: which images, such as "550 validation images".
        missing: why the model is not calibrated, and the remedy; "" if it is.
        num_inliers: held-out in-distribution images that calibrate the out-of-distribution detector.
        num_inliers_accepted: of them, images that the detector accepts (cross-fitted).
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
        return cls(**with_current_names(document, OLD_KEYS))

    @property
    def sentence(self) -> str:
        """One sentence: the calibration and its images, or why there is none and the remedy."""
        if not self.images:
            return f"Not calibrated: {self.missing or OLDER}."
        source = self.source or f"{self.images:,} validation images"
        words = f"Calibrated on {source}: temperature {self.temperature:.2f}"
        if self.target_accuracy:
            words += (
                f"; for a target accuracy of {100 * self.target_accuracy:g} %, it answers {100 * self.coverage:.1f} % "
                f"of the images, with an accuracy of {100 * self.accuracy:.1f} %"
            )
            if self.accuracy < self.target_accuracy:
                words += ", so the target is missed"
        return words + "."

    @property
    def threshold_sentence(self) -> str:
        """One sentence: below which probability the answer is "unsure"."""
        target = f"the target accuracy of {100 * self.target_accuracy:g} %"
        if self.threshold <= 0:
            return f'The answers to all images reach {target}, so the model never answers "unsure".'
        if self.threshold > 1:
            return f'No answers, however probable, reach {target}, so the model always answers "unsure".'
        least = "0.1" if self.threshold < 0.001 else f"{100 * self.threshold:.1f}"
        return f'For {target}, the model answers "unsure: ask a person" below a probability of {least} %.'


@dataclass(frozen=True)
class Agreement:
    """Agreement of predictions and labels, compared with chance agreement (Cohen, 1960).

    Attributes:
        correct: number of correct predictions.
        expected: expected number by chance, with the same class frequencies but independent of the labels.
        count: number of predictions.
    """

    correct: int
    expected: float
    count: int

    @property
    def learnt(self) -> bool:
        """Whether agreement exceeds chance: exact binomial test at level ``LEARNT_P``."""
        share = min(1.0, self.expected / self.count)
        as_many_or_more = import_quietly("scipy.special").bdtrc(self.correct - 1, self.count, share)
        return bool(as_many_or_more < LEARNT_P)  # as scipy.stats.binomtest, whose import takes a second

    @property
    def kappa(self) -> float:
        """Cohen's kappa; at most 1, and 0 at chance level.

        Source: Cohen, "A Coefficient of Agreement for Nominal Scales", 1960.
        """
        return (self.correct - self.expected) / max(self.count - self.expected, 1e-9)

    @property
    def sentence(self) -> str:
        """For a classifier at chance level: the evidence and the remedy."""
        return (
            f"the classifier is no better than chance: {self.correct:,} of {self.count:,} held-out predictions are "
            f"correct, and {self.expected:.0f} are expected by chance. Use pretrained weights or more images, or "
            "check that the labels are correct"
        )


def agreement(scores: Logits, labels: Labels) -> Agreement:
    """Compares predictions with labels; in multi-label data each label of each image is a prediction.

    Args:
        scores: (N, classes) logits; predicted is the highest, or for multi-label data each above 0.
        labels: see ``training.losses``.
    """
    if is_multi_label(labels):
        given = scores > 0
        by_chance = given.mean(axis=0) * labels.mean(axis=0) + (1 - given.mean(axis=0)) * (1 - labels.mean(axis=0))
        return Agreement(int((given == (labels > 0)).sum()), float(by_chance.sum() * len(labels)), labels.size)
    classes = scores.shape[1]
    given_often, true_often = (np.bincount(values, minlength=classes) for values in (scores.argmax(axis=1), labels))
    expected = float(given_often @ true_often) / max(1, len(labels))
    return Agreement(int(are_correct(scores, labels).sum()), expected, len(labels))


def calibrate(
    logits: Logits, labels: Labels, *, target_accuracy: float, source: str = "", together: Parts | None = None
) -> Calibration:
    """Fits the temperature and the threshold.

    Nothing is fitted on fewer than ``LEAST`` images, or to a classifier at chance level.

    Args:
        logits: (N, classes) out-of-sample.
        labels: see ``training.losses``.
        target_accuracy: accuracy that answers above the threshold must reach, in (0, 1).
        source: which images, in words.
        together: (N,) numbers of parts (groups, near copies) that cross-fitting does not divide.
    """
    if len(labels) < LEAST:
        return Calibration(
            missing=f"at least {LEAST} held-out images are needed, and there are {len(labels)}. Add labelled images"
        )
    found = agreement(logits, labels)
    if not found.learnt:
        return Calibration(missing=found.sentence)
    scale = calibrated_scale(logits, labels)
    if is_multi_label(labels):
        return Calibration(1 / scale, len(labels), source=source)
    probabilities = probabilities_of(scale * logits, multi_label=False)
    right, best = probabilities.argmax(axis=1) == labels, probabilities.max(axis=1)
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
    """1 / temperature, fitted with one wrong prediction added, so that it stays finite if all predictions are correct.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; the added prediction: Platt, 1999.
    """
    return min(max(best_scale(logits, labels, smoothing=1 / (len(labels) + 2)), 1 / HIGHEST), HIGHEST)


def cross_fitted_probabilities(logits: Logits, labels: Labels, *, together: Parts | None = None) -> Probabilities:
    """(N, classes) cross-fitted probabilities: each fold is scaled by the temperature of the others.

    Args:
        logits: (N, classes).
        labels: see ``training.losses``.
        together: (N,) numbers of parts (groups, near copies) that folds do not divide.
    """
    probabilities = np.empty(logits.shape)
    multi_label = is_multi_label(labels)
    if len(labels) < LEAST:
        return probabilities_of(logits, multi_label=multi_label)
    for learn, judge in folds_of(labels, FOLDS, 0, together=together):
        scale = calibrated_scale(logits[learn], labels[learn])
        probabilities[judge] = probabilities_of(scale * logits[judge], multi_label=multi_label)
    return probabilities


def threshold_for_accuracy(target_accuracy: float, best: Probabilities, right: Right) -> float:
    """The lowest probability above which predictions reach an accuracy.

    Args:
        target_accuracy: the accuracy to reach, in (0, 1).
        best: (N,) probability of each image's most probable class.
        right: (N,) bool: whether that class is correct.

    Returns:
        0 if all predictions together reach it; above 1 if no subset does.
    """
    order = np.argsort(-best, kind="stable")
    ranked, hits = best[order], np.cumsum(right[order])
    ends = np.flatnonzero(np.diff(ranked, append=-1.0))  # equal probabilities are accepted or rejected together
    enough = ends[hits[ends] >= target_accuracy * (ends + 1)]
    if not len(enough):
        return math.nextafter(1.0, 2.0)
    return 0.0 if enough[-1] == len(best) - 1 else float(ranked[enough[-1]])
