"""Temperature scaling (Guo et al., 2017)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from headstart.import_effects import import_quietly
from headstart.training.losses import Labels, Logits, is_multi_label, log_losses, mean_losses

Losses = npt.NDArray[np.float64]

SCALES = (-8.0, 8.0)
"""Search interval: natural logarithm of the factor, for logits scaled to a standard deviation of 1."""


def best_scale(logits: Logits, labels: Labels, *, smoothing: float = 0.0) -> float:
    """The factor 1 / temperature that minimises the mean log loss of the scaled logits.

    Args:
        logits: (N, classes); scores of any scale, such as margins or negative distances.
        labels: see ``training.losses``.
        smoothing: label smoothing in [0, 1).

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    minimize_scalar = import_quietly("scipy.optimize").minimize_scalar  # a slow import that predictions do not need

    spread = float((logits if is_multi_label(labels) else logits - logits.mean(axis=1, keepdims=True)).std())
    if not spread:
        return 1.0
    found = minimize_scalar(
        lambda log_scale: _loss(math.exp(log_scale) / spread * logits, labels, smoothing),
        bounds=SCALES,
        method="bounded",
    )
    return math.exp(float(found.x)) / spread


def _loss(logits: Logits, labels: Labels, smoothing: float) -> float:
    loss = float(log_losses(logits, labels).mean())
    return (1 - smoothing) * loss + smoothing * float(mean_losses(logits, labels).mean()) if smoothing else loss


def calibrated_losses(logits: Logits, labels: Labels) -> Losses:
    """(N,) log loss of each image in nats, at the best temperature.

    Networks trained with label smoothing or mixup are underconfident; their losses stay comparable in this way.

    Args:
        logits: (N, classes).
        labels: see ``training.losses``.
    """
    return log_losses(best_scale(logits, labels) * logits.astype(np.float64), labels)
