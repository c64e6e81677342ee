"""Random predictions of four classes, with labels that follow them."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax


def random_logits(count: int, sharper: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their probabilities before they were made sharper."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, 4)) * 2.5
    labels = (rng.random(count)[:, None] > softmax(logits, axis=1).cumsum(1)).sum(1)
    return sharper * logits, labels.astype(np.int64)


def random_predictions(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count)
    odds = rng.random((count, 4)) + 1.5 * np.eye(4)[labels]
    return odds / odds.sum(1, keepdims=True), labels
