"""Temperature scaling (Guo et al., 2017)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from headstart.training.losses import Labels, Logits, is_multi_label, log_losses, mean_losses

Losses = npt.NDArray[np.float64]

SCALES = (-8.0, 8.0)
"""Natural logarithms of the factors that are tried, relative to logits with a standard deviation of 1."""


def best_scale(logits: Logits, labels: Labels, *, doubt: float = 0.0) -> float:
    """The factor (1 / temperature) at which the mean log loss of scaled logits is least.

    Args:
        logits: (N, classes); scores of any range, such as margins or negative distances, will do.
        labels: see ``training.losses``.
        doubt: share of each answer that is taken to be any of the answers.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    from scipy.optimize import minimize_scalar  # which a prediction need not wait for

    spread = float((logits if is_multi_label(labels) else logits - logits.mean(axis=1, keepdims=True)).std())
    if not spread:
        return 1.0
    found = minimize_scalar(
        lambda log_scale: _loss(math.exp(log_scale) / spread * logits, labels, doubt),
        bounds=SCALES,
        method="bounded",
    )
    return math.exp(float(found.x)) / spread


def _loss(logits: Logits, labels: Labels, doubt: float) -> float:
    loss = float(log_losses(logits, labels).mean())
    return (1 - doubt) * loss + doubt * float(mean_losses(logits, labels).mean()) if doubt else loss


def calibrated_losses(logits: Logits, labels: Labels) -> Losses:
    """Log loss of each image in nats, at the temperature at which their mean is least.

    So label smoothing and mixed images, which make a network less sure than it could be, do not count against it.

    Args:
        logits: (N, classes).
        labels: see ``training.losses``.
    """
    return log_losses(best_scale(logits, labels) * logits.astype(np.float64), labels)
