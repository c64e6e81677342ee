"""The exported graph: preprocessing, backbone, head and calibration as one module from raw pixels to probabilities."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from headstart.backbone.layers import Layout
from headstart.errors import ExportError, first_line
from headstart.exports.metadata import EXPORT_VERSION, INPUT, LOGGERS, OUTPUTS, ExportMetadata
from headstart.exports.resize import ResizeAndCrop
from headstart.extras import version_of
from headstart.model import Model
from headstart.prediction import INLIER_SHARE, NONE_OF_THESE, UNSURE
from headstart.quiet import quiet
from headstart.training.heads import mean_vectors
from headstart.trust.ood import NEIGHBOUR, TINY, OodDetector

EXAMPLE_SHAPE = (2, 48, 80, 3)
"""Shape of the pixels that a graph is captured with; all but the last dimension become dynamic."""

ROUNDING = 1e-6
"""Difference below which two distances count as equal. By rounding in float32, an image whose distance is stored in the
detector, such as a validation image, could otherwise be farther than itself."""


def capture(model: Model) -> torch.export.ExportedProgram:
    """A model as an ExportedProgram from raw pixels to probabilities, for any number of images of any size.

    Raises:
        ExportError: the exporter cannot express the model.
    """
    dynamic = torch.export.Dim.DYNAMIC
    pixels = torch.zeros(EXAMPLE_SHAPE, dtype=torch.uint8)
    return _captured(model, ExportGraph(model), pixels, {INPUT: {0: dynamic, 1: dynamic, 2: dynamic}})


def capture_fitted(model: Model, *, planes: bool = False) -> torch.export.ExportedProgram:
    """The same for one image that is resized and cropped already, for formats whose sizes are fixed.

    Args:
        model: the model.
        planes: see ``FittedGraph``.

    Raises:
        ExportError: the exporter cannot express the model.
    """
    height, width = model.preprocessing.height, model.preprocessing.width
    pixels = torch.zeros(1, 3, height, width) if planes else torch.zeros(1, height, width, 3, dtype=torch.uint8)
    # A prediction leaves the weights in channels-last order, at which ExecuTorch's converter fails; the model keeps it.
    graph = copy.deepcopy(FittedGraph(model, planes=planes)).to(memory_format=torch.contiguous_format)
    return _captured(model, NamedOutputs(graph), pixels, None)


def _captured(model: Model, graph: nn.Module, pixels: Tensor, shapes: Any) -> torch.export.ExportedProgram:
    args, named = ((pixels,), None) if shapes else ((), {INPUT: pixels})  # by name: converters keep it
    try:
        with quiet(*LOGGERS), torch.no_grad():
            return torch.export.export(graph, args, named, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # the exporter raises errors of many types, also those of the network's code
        raise ExportError(f"{model.net.backbone.architecture} cannot be exported: {first_line(error)}.") from error


class FittedGraph(nn.Module):
    """Pixels of the network's input size -> probabilities, and outlier scores if the model has a detector.

    Without sorting, which runtimes for phones do not have.

    Args:
        model: the model to export; its weights are shared, not copied.
        planes: the input is (N, 3, height, width) float32, instead of (N, height, width, 3) uint8.
    """

    sorts = False

    def __init__(self, model: Model, *, planes: bool = False) -> None:
        super().__init__()
        self.planes = planes
        self.net = model.net
        self.head = model.head
        self.temperature = model.calibration.temperature
        self.is_multi_label = model.thresholds is not None
        layout = Layout.of(model.net.backbone.module)
        detector, sorts = model.ood_detector, self.sorts
        self.outlier_score = None if detector is None else OutlierScore(detector, layout, sorts=sorts)
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """What ``Model.predict_with_outliers`` does with images that are resized and cropped.

        Args:
            pixels: see ``planes``; 0-255, RGB, upright.

        Returns:
            As ``ExportGraph.forward``.
        """
        features = self.net(pixels.permute(0, 2, 3, 1) if self.planes else pixels)
        logits = self.head(features) / self.temperature
        probabilities = torch.sigmoid(logits) if self.is_multi_label else torch.softmax(logits, 1)
        return (probabilities,) if self.outlier_score is None else (probabilities, self.outlier_score(features))


class NamedOutputs(nn.Module):
    """A graph whose outputs have names, for converters that keep them.

    Args:
        graph: the graph.
    """

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.inner = graph  # "graph" is an attribute of the captured module

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """The outputs of the graph by their names in ``OUTPUTS``."""
        return dict(zip(OUTPUTS, self.inner(pixels), strict=False))


class ExportGraph(FittedGraph):
    """Raw pixels -> probabilities, and outlier scores if the model has an out-of-distribution detector.

    Args:
        model: the model to export; its weights are shared, not copied.

    Raises:
        ExportError: the interpolation of its preprocessing cannot be exported.
    """

    sorts = True

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.fit = ResizeAndCrop(model.preprocessing)
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """What ``Model.predict_with_outliers`` does with decoded images.

        Args:
            pixels: (N, H, W, 3) uint8, 0-255, RGB, upright, any H and W.

        Returns:
            (N, classes) float32 probabilities; and (N,) float32 outlier scores in [0, 1] if the model has a detector.
        """
        return super().forward(self.fit(pixels).permute(0, 2, 3, 1))


class OutlierScore(nn.Module):
    """``trust.ood.OodDetector.outlier_scores`` in tensors.

    Args:
        ood_detector: of the model.
        layout: meaning of the axes of a feature map.
        sorts: whether the graph may contain a sort.
    """

    references: Tensor
    inlier_distances: Tensor

    def __init__(self, ood_detector: OodDetector, layout: Layout, *, sorts: bool = True) -> None:
        super().__init__()
        self.sorts = sorts
        self.layout = layout
        self.limits = None if ood_detector.limits is None else [float(limit) for limit in ood_detector.limits]
        self.register_buffer("references", torch.from_numpy(ood_detector.references), persistent=False)
        self.register_buffer("inlier_distances", torch.from_numpy(ood_detector.inlier_distances), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """(N, ...) features -> (N,) outlier scores, see ``trust.ood.conformal_scores``."""
        vectors = mean_vectors(features, self.layout)
        if self.limits is not None:
            vectors = vectors.clamp(*self.limits)
        length = vectors.norm(dim=1, keepdim=True).clamp(min=float(TINY))
        cosines = (vectors / length) @ self.references.float().T
        rank = min(NEIGHBOUR, len(self.references))
        nearest = cosines.topk(rank, dim=1).values[:, -1:] if self.sorts else _nth_largest(cosines, rank)
        nearer: Tensor = self.inlier_distances < 1 - nearest - ROUNDING
        return nearer.float().sum(1) / (len(self.inlier_distances) + 1)


def _nth_largest(values: Tensor, n: int) -> Tensor:
    """(N, R) -> (N, 1) the n-th largest value of each row, equal ones counted each; without a sort, for small n."""
    places = torch.arange(values.shape[1], device=values.device)
    for _ in range(n - 1):
        values = torch.where(places == values.argmax(1, keepdim=True), -torch.inf, values)
    return values.amax(1, keepdim=True)


def export_metadata(
    model: Model,
    *,
    written_with: dict[str, str],
    precision: str = "float32",
    before_graph: str = "",
    unverified: str = "",
) -> ExportMetadata:
    """The metadata of an exported file; arguments as in ``ExportMetadata``."""
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
        headstart=version_of("headstart"),
        written_with=written_with,
        scores=model.scores,
        is_calibrated=model.calibration.images > 0,
        calibration=model.calibration_text,
        before_graph=before_graph,
        unverified=unverified,
    )
