"""The whole way from raw pixels to probabilities as one module: what is written into an exported file."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version

import torch
from torch import Tensor, nn

from headstart.backbone.layers import Layout
from headstart.exports.metadata import EXPORT_VERSION, ExportMetadata
from headstart.exports.resize import ResizeAndCrop
from headstart.model import Model
from headstart.prediction import NONE_OF_THESE, UNSURE
from headstart.training.heads import mean_vectors
from headstart.trust.ood import INLIER_SHARE, NEIGHBOUR, TINY, OodDetector


class ExportGraph(nn.Module):
    """Raw pixels -> probabilities, and how unlike the pictures are to those that were learnt from.

    Args:
        model: whose weights are shared, not copied.

    Raises:
        ExportError: its interpolation cannot be exported.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.fit = ResizeAndCrop(model.preprocessing)
        self.net = model.net
        self.head = model.head
        self.temperature = model.calibration.temperature
        self.several = model.thresholds is not None
        layout = Layout.of(model.net.backbone.module)
        self.unlike = None if model.ood_detector is None else OutlierScore(model.ood_detector, layout)
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Everything that ``Model.predict_with_outliers`` does once a picture is decoded.

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


class OutlierScore(nn.Module):
    """``outliers.OodDetector.outlier_scores`` in tensors.

    Args:
        ood_detector: what usual pictures look like.
        layout: what the axes of a map of features mean.
    """

    references: Tensor
    usual: Tensor

    def __init__(self, ood_detector: OodDetector, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.limits = None if ood_detector.limits is None else [float(limit) for limit in ood_detector.limits]
        self.register_buffer("references", torch.from_numpy(ood_detector.references), persistent=False)
        self.register_buffer("usual", torch.from_numpy(ood_detector.inlier_distances), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """(N, ...) features -> (N,) outlier scores, see ``outliers.conformal_scores``."""
        vectors = mean_vectors(features, self.layout)
        if self.limits is not None:
            vectors = vectors.clamp(*self.limits)
        length = vectors.norm(dim=1, keepdim=True).clamp(min=float(TINY))
        cosines = (vectors / length) @ self.references.float().T
        nearest = cosines.topk(min(NEIGHBOUR, len(self.references)), dim=1).values[:, -1:]
        nearer: Tensor = self.usual < 1 - nearest
        return nearer.float().sum(1) / (len(self.usual) + 1)


def export_metadata(model: Model, *, written_with: dict[str, str], precision: str = "float32") -> ExportMetadata:
    """What the file says of itself; arguments as in ``ExportMetadata``."""
    return ExportMetadata(
        headstart_export=EXPORT_VERSION,
        classes=model.classes,
        thresholds=model.thresholds,
        unsure_below=model.calibration.threshold,
        none_above=None if model.ood_detector is None else INLIER_SHARE,
        unsure=UNSURE,
        none=NONE_OF_THESE,
        decode_at_least=model.preprocessing.decode_at_least,
        preprocessing=json.loads(json.dumps(asdict(model.preprocessing))),
        temperature=model.calibration.temperature,
        precision=precision,
        model=model.version,
        backbone=model.net.backbone.architecture,
        headstart=version("headstart"),
        written_with=written_with,
    )
