"""What is known of the classifier of a session: honest accuracy, its curve, a forecast, and when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from headstart.evaluation.metrics import wilson
from headstart.figures import percent_text, share_text

AHEAD: Final = 50
"""Labels that the forecast looks ahead."""

LEAST_POINTS: Final = 4
"""Points of the curve that a forecast needs."""

LEAST_SPAN: Final = 2.0
"""Ratio of the most to the fewest labels of the curve that a forecast needs."""

DRAWS: Final = 2000
"""Draws of the curve's parameters that the interval of a forecast is taken from."""

LEAST_SHARE: Final = 0.5
"""Share of the most blind images of a point that another point needs, to be drawn in the same curve."""

LITTLE: Final = 0.005
"""Gain of accuracy below which more labels are not worth the time."""


@dataclass(frozen=True)
class AccuracyPoint:
    """The accuracy on the blind sample after some labels.

    Attributes:
        labels: that the classifier was fitted to.
        correct: blind images that were predicted correctly.
        count: blind images with a label.
    """

    labels: int
    correct: int
    count: int

    def as_json(self) -> dict[str, Any]:
        """With accuracy and its 95 % Wilson interval, 0-1."""
        low, high = wilson(self.correct, self.count)
        return asdict(self) | {"accuracy": self.correct / self.count, "low": low, "high": high}


@dataclass(frozen=True)
class Forecast:
    """The expected accuracy after ``AHEAD`` more labels.

    Attributes:
        labels: number of labels then.
        accuracy: expected, 0-1.
        gain: expected gain against now, 0-1.
        low: lower end of the 95 % interval of the gain.
        high: upper end.
    """

    labels: int
    accuracy: float
    gain: float
    low: float
    high: float


def comparable(curve: Sequence[AccuracyPoint]) -> list[AccuracyPoint]:
    """The points that are measured on most of the blind sample: those of its first images are chance."""
    most = max((point.count for point in curve), default=0)
    return [point for point in curve if point.count >= LEAST_SHARE * most]


def accuracy_document(correct: int, count: int) -> dict[str, Any] | None:
    """The accuracy with its 95 % interval, as JSON; None without labelled blind images."""
    if not count:
        return None
    low, high = wilson(correct, count)
    sentence = f"accuracy {share_text(correct, count, low, high)}"
    return {"sentence": sentence, "correct": correct, "count": count, "low": low, "high": high}


def forecast(curve: Sequence[AccuracyPoint]) -> Forecast | None:
    """A power law of the error, fitted to the curve; None if there are too few points.

    The logarithm of the error is linear in that of the number of labels; points are weighted by the errors counted.
    The interval is that of the fitted parameters, from the spread of the points about the law and, at least, from the
    number of errors.

    Args:
        curve: in the order of the labels.
    """
    used = [point for point in curve if point.labels > 0 and point.count > 0]
    if len(used) < LEAST_POINTS or used[-1].labels < LEAST_SPAN * used[0].labels:
        return None
    labels = np.array([point.labels for point in used], float)
    errors = np.array([(point.count - point.correct + 0.5) for point in used])
    counts = np.array([point.count + 1.0 for point in used])
    x = np.stack([np.ones(len(used)), np.log(labels)], axis=1)
    target, weight = np.log(errors / counts), errors * counts / (counts - errors + 0.5)
    inverse = np.linalg.inv(x.T @ (x * weight[:, None]))
    found = inverse @ (x.T @ (weight * target))
    spread = float((weight * (target - x @ found) ** 2).sum() / max(1, len(used) - 2))
    draws = np.random.default_rng(0).multivariate_normal(found, inverse * max(1.0, spread), DRAWS)
    draws[:, 1] = np.minimum(draws[:, 1], 0)  # more labels do not make the classifier worse in the long run
    last, slope = labels[-1], min(0.0, found[1])

    def error(a: Any, b: Any, n: float) -> Any:
        return np.minimum(1, np.exp(a + b * np.log(n)))

    gains = error(draws[:, 0], draws[:, 1], last) - error(draws[:, 0], draws[:, 1], last + AHEAD)
    low, high = np.quantile(gains, (0.025, 0.975))
    now, then = (float(error(found[0], slope, n)) for n in (last, last + AHEAD))
    return Forecast(int(last) + AHEAD, 1 - then, now - then, float(low), float(high))


def advice(blind_labelled: int, blind_wanted: int, expected: Forecast | None, unlabelled: int) -> str:
    """What to do next, in a sentence.

    Args:
        blind_labelled: blind images with a label.
        blind_wanted: size of the blind sample.
        expected: the forecast; None if there is none.
        unlabelled: images that can still be labelled.
    """
    if blind_labelled < blind_wanted:
        left = blind_wanted - blind_labelled
        return f"Label {left:,} more of the test sample first: until then the accuracy is less certain."
    if not unlabelled:
        return "All images are labelled: train."
    if expected is None:
        return f"The gain of {AHEAD} more labels is unknown yet: label some more images, then look again."
    gain = f"{AHEAD} more labels are expected to add {100 * expected.gain:.1f} points"
    interval = f"95 % interval {100 * expected.low:.1f} to {100 * expected.high:.1f}"
    if expected.gain < LITTLE:
        return f"{gain} ({interval}): stop here, and train."
    fitted = f"from {percent_text(expected.accuracy - expected.gain)} to {percent_text(expected.accuracy)}"
    return f"{gain} ({interval}), {fitted} on the fitted curve: go on, or train now."
