"""The whole way from raw pixels to probabilities as one module: what is written into an exported file."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headstart.backbone.layers import Layout
from headstart.exports.resize import Fit
from headstart.model import Model
from headstart.training.heads import mean_vectors
from headstart.training.outliers import NEIGHBOUR, TINY, Familiar

INPUT = "pixels"
OUTPUTS = ("probabilities", "outlier")
"""The second is there where the model knows what is usual."""


class Graph(nn.Module):
    """Raw pixels -> probabilities, and how unlike the pictures are to those that were learnt from.

    Args:
        model: whose weights are shared, not copied.

    Raises:
        ExportError: its interpolation cannot be exported.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.fit = Fit(model.preprocessing)
        self.net = model.net
        self.head = model.head
        self.temperature = model.calibration.temperature
        self.several = model.thresholds is not None
        layout = Layout.of(model.net.backbone.module)
        self.unlike = None if model.familiar is None else Unlike(model.familiar, layout)
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Everything that ``Model.examine`` does once a picture is decoded.

        Args:
            pixels: (N, H, W, 3) uint8, 0-255, RGB, upright, any H and W.

        Returns:
            (N, classes) float32 probabilities; and (N,) float32 outlier scores in [0, 1] where the model has them.
        """
        fitted = self.fit(pixels)
        features = self.net(fitted.permute(0, 2, 3, 1))
        logits = self.head(features) / self.temperature
        probabilities = torch.sigmoid(logits) if self.several else torch.softmax(logits, 1)
        return (probabilities,) if self.unlike is None else (probabilities, self.unlike(features))


class Unlike(nn.Module):
    """``outliers.Familiar.outlier_scores`` in tensors.

    Args:
        familiar: what usual pictures look like.
        layout: what the axes of a map of features mean.
    """

    references: Tensor
    usual: Tensor

    def __init__(self, familiar: Familiar, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.limits = None if familiar.limits is None else [float(limit) for limit in familiar.limits]
        self.register_buffer("references", torch.from_numpy(familiar.references), persistent=False)
        self.register_buffer("usual", torch.from_numpy(familiar.usual), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """(N, ...) features -> (N,) share of the usual pictures that are nearer to what was learnt."""
        vectors = mean_vectors(features, self.layout)
        if self.limits is not None:
            vectors = vectors.clamp(*self.limits)
        length = vectors.norm(dim=1, keepdim=True).clamp(min=float(TINY))
        cosines = (vectors / length) @ self.references.float().T
        nearest = cosines.topk(min(NEIGHBOUR, len(self.references)), dim=1).values[:, -1:]
        nearer: Tensor = self.usual < 1 - nearest
        return nearer.float().mean(1)
