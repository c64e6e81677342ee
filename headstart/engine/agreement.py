"""Numerical agreement of an engine with plain PyTorch on a sample of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.engine.interface import Engine, Features, Pixels
from headstart.engine.streaming import run_in_batches

TOLERANCE = 1e-3
"""Largest allowed difference from plain PyTorch's output, relative to the largest output, for float32 engines."""

MIXED_TOLERANCE = 0.02
"""Largest allowed root-mean-square difference, relative to the output's root mean square, for low precision."""


def require_agreement(engine: Engine, sample: Pixels, expected: Features) -> float:
    """The difference between an engine's output and the expected output.

    Raises:
        ArithmeticError: the difference exceeds the tolerance.
    """
    gap, allowed = difference(run_in_batches(engine, sample), expected, exact=engine.precision == "float32")
    if gap > allowed:
        raise ArithmeticError(f"its output differs from plain PyTorch's by {gap:.1e}, more than {allowed:.0e}")
    return gap


def difference(actual: Features, expected: Features, *, exact: bool) -> tuple[float, float]:
    """(relative difference, tolerance); infinite if a value is not finite or the shapes differ."""
    allowed = TOLERANCE if exact else MIXED_TOLERANCE
    if actual.shape != expected.shape or not np.isfinite(actual).all() or not np.isfinite(expected).all():
        return float("inf"), allowed
    gap, scale = (np.abs(x, dtype=np.float64).ravel() for x in (actual - expected, expected))
    size: Callable[[npt.NDArray[np.float64]], Any] = np.max if exact else np.linalg.norm
    return float(size(gap)) / max(1e-12, float(size(scale))), allowed
