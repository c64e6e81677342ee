"""Feature specification: which of a backbone's outputs the features are."""

from __future__ import annotations

from dataclasses import dataclass

from headstart.backbone.pooling import Pooling


@dataclass(frozen=True)
class FeatureSpec:
    """Which of a backbone's outputs the features are.

    Attributes:
        pool: how the last activation becomes a vector.
        cut: name of the layer boundary that ends the backbone, see ``headstart layers``; "" for the whole backbone.
        layers: names of earlier layer boundaries, from deep to shallow; the mean of each one's activation over all
            positions is appended to the features.
    """

    pool: Pooling = "auto"
    cut: str = ""
    layers: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """True if the features are those of timm's own forward pass."""
        return self == PLAIN


PLAIN = FeatureSpec()
"""The features of timm's own forward pass."""
