"""Learning-rate schedule: linear warm-up, then cosine decay."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Factor of the learning rate at a step, 0-1.

    Args:
        step: from 0.
        steps: of the whole training.
        warmup: share of the steps in which the factor rises linearly to 1; after them it follows half a cosine to 0.
    """
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
