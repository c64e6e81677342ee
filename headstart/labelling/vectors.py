"""Vectors of a session: features made comparable, in fewer dimensions, for its classifier, clusters and queues.

Signed square root, centred on all images, unit length, then principal components. With 60 to 300 labels a classifier of
such vectors is one to two points better than one of standardised features (docs/results/2026-12-01-labelling.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import numpy as np
import numpy.typing as npt

from headstart.import_effects import import_quietly

Vectors = npt.NDArray[np.float32]

DIMENSIONS: Final = 256
"""Principal components, at most."""

LENGTH: Final = 36.0
"""Length of a vector before its components are cut, about that of standardised features of EfficientNet-Lite0."""

FITTED_ON: Final = 20_000
"""Images that the components are computed on, at most."""


@final
@dataclass(frozen=True)
class Projection:
    """Turns features into vectors.

    Attributes:
        mean: (F,) of the signed square roots.
        axes: (F, D) principal directions; None to keep all F components.
    """

    mean: Vectors
    axes: Vectors | None

    @classmethod
    def of_features(cls, features: npt.NDArray[np.float32]) -> Projection:
        """Fits the projection to (N, F) features of the images of a session, N >= 1."""
        if len(features) > FITTED_ON:
            features = features[np.random.default_rng(0).choice(len(features), FITTED_ON, replace=False)]
        mean = _roots(features).mean(axis=0)
        if features.shape[1] <= DIMENSIONS or len(features) < 2:
            return cls(mean, None)
        covariance = np.cov(cls(mean, None).vectors(features), rowvar=False, dtype=np.float32)
        largest = (len(covariance) - DIMENSIONS, len(covariance) - 1)
        _, axes = import_quietly("scipy.linalg").eigh(covariance, subset_by_index=largest)
        return cls(mean, np.ascontiguousarray(axes[:, ::-1]))

    def vectors(self, features: npt.NDArray[np.float32]) -> Vectors:
        """(N, D) float32 of (N, F) features."""
        roots = _roots(features) - self.mean
        roots *= LENGTH / np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), 1e-6)
        return np.ascontiguousarray(roots if self.axes is None else roots @ self.axes, np.float32)


def _roots(features: npt.NDArray[np.float32]) -> Vectors:
    return np.asarray(np.sign(features) * np.sqrt(np.abs(features)))
