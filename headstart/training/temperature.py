"""The one number that makes logits as sure as they are right."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

Losses = npt.NDArray[np.float64]
Logits = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]

SCALES = (-8.0, 8.0)
"""Natural logarithms of the factors that are tried, relative to logits with a standard deviation of 1."""


def best_scale(logits: Logits, labels: Labels) -> float:
    """The factor (1 / temperature) at which the mean log loss of scaled logits is least.

    Args:
        logits: (N, classes); scores of any range, such as margins or negative distances, will do.
        labels: (N,) int64.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    spread = float((logits - logits.mean(axis=1, keepdims=True)).std())
    if not spread:
        return 1.0
    found = minimize_scalar(
        lambda log_scale: float(_losses(logits, labels, math.exp(log_scale) / spread).mean()),
        bounds=SCALES,
        method="bounded",
    )
    return math.exp(float(found.x)) / spread


def losses_of(logits: Logits, labels: Labels) -> Losses:
    """Log loss of each image in nats, at the temperature at which their mean is least.

    So label smoothing and mixed images, which make a network less sure than it could be, do not count against it.

    Args:
        logits: (N, classes).
        labels: (N,) int64.
    """
    return _losses(logits, labels, best_scale(logits, labels))


def _losses(logits: Logits, labels: Labels, scale: float) -> Losses:
    log_odds = log_softmax(scale * logits.astype(np.float64), axis=1)
    return cast(Losses, -log_odds[np.arange(len(labels)), labels])
