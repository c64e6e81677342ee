"""The frozen pass from pixels to features: normalisation, frozen backbone, pooling."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from headstart.backbone.feature_spec import PLAIN, FeatureSpec
from headstart.backbone.layers import Layout, evaluating
from headstart.backbone.pooling import check_pooling
from headstart.backbone.side_by_side import SideBySide
from headstart.backbone.split import HEAD, SplittableBackbone
from headstart.backbone.tracing import TRACING, with_features
from headstart.backbone.weights import Backbone
from headstart.errors import OptionError

SPLITS_KEPT = 16
"""Number of architectures whose boundaries a process remembers; finding them takes up to two seconds."""

_SPLIT: dict[tuple[Any, ...], SplittableBackbone] = {}


class PixelNet(nn.Module):
    """The frozen part of a backbone: uint8 pixels -> its output, a pure function of the pixels.

    Args:
        backbone: its weights are shared, not copied.
        body: (N, 3, H, W), normalised -> anything that ``finish`` accepts.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, backbone: Backbone, body: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.body = body
        scale = 1 / (255 * torch.tensor(backbone.preprocessing.std))
        shift = -torch.tensor(backbone.preprocessing.mean) / torch.tensor(backbone.preprocessing.std)
        self.register_buffer("scale", scale.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Computes the output of the frozen part.

        Args:
            pixels: (N, H, W, 3) uint8, 0-255, as ``resize_and_crop`` gives them.

        Returns:
            (N, ...) float32.
        """
        return self.finish(self.body(self.normalised(pixels)))

    def normalised(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, H, W) as the weights expect it; channels last in memory."""
        return pixels.permute(0, 3, 1, 2).to(self.scale.dtype) * self.scale + self.shift

    def finish(self, x: Any) -> Tensor:
        """Converts the body's output to the output of the network."""
        return cast(Tensor, x)

    def describe(self) -> dict[str, Any]:
        """Everything besides the pixels that determines the output; for cache keys and model files."""
        return {
            "architecture": self.backbone.architecture,
            "fingerprint": self.backbone.fingerprint,
            "mean": list(self.backbone.preprocessing.mean),
            "std": list(self.backbone.preprocessing.std),
        }


class ActivationNet(PixelNet):
    """uint8 pixels -> the activation at a boundary, (N, *shape) float32.

    Args:
        backbone: its weights are shared.
        boundary: its name.
        prefix: the part before it, see ``split.SplittableBackbone.prefix``.
    """

    def __init__(self, backbone: Backbone, boundary: str, prefix: nn.Module) -> None:
        super().__init__(backbone, prefix)
        self.boundary = boundary

    def describe(self) -> dict[str, Any]:
        """See ``PixelNet.describe``."""
        return super().describe() | {"boundary": self.boundary}


class TappedNet(PixelNet):
    """uint8 pixels -> features and the flattened activation at a boundary, concatenated: (N, D + C * H * W) float32.

    Args:
        backbone: its weights are shared.
        boundary: its name.
        tapped: see ``split.SplittableBackbone.tapped``.
    """

    def __init__(self, backbone: Backbone, boundary: str, tapped: nn.Module) -> None:
        super().__init__(backbone, tapped)
        self.boundary = boundary

    def finish(self, x: Any) -> Tensor:
        """Concatenates features and activation of each image."""
        return torch.cat([part.float().flatten(1) for part in x], 1)

    def describe(self) -> dict[str, Any]:
        """See ``PixelNet.describe``."""
        return super().describe() | {"tapped": self.boundary}


class FeatureNet(PixelNet):
    """uint8 pixels -> features, (N, D) float32; or the map (N, ...) if the pooling is "none".

    Args:
        backbone: its weights are shared, not copied.
        spec: which of its outputs the features are.

    Raises:
        OptionError: no such pooling, the network has no such layer boundary, or networks side by side cannot have it.
    """

    def __init__(self, backbone: Backbone, spec: FeatureSpec = PLAIN) -> None:
        _check_spec(backbone, spec)
        with evaluating(backbone.module):
            body = split_backbone(backbone, spec).whole() if spec.cut else with_features(backbone.module, spec)
        super().__init__(backbone, body)
        self.boundary = HEAD
        self.spec = spec

    def describe(self) -> dict[str, Any]:
        """See ``PixelNet.describe``."""
        layers = {"layers": list(self.spec.layers)} if self.spec.layers else {}
        return super().describe() | {"pool": self.spec.pool, "cut": self.spec.cut} | layers

    def parts(self) -> list[dict[str, Any]]:
        """Descriptions of the parts of the features: the last activation, then each earlier layer.

        They differ from those of networks with other layers, whose engines round otherwise.
        """
        if not self.spec.layers:
            return [self.describe()]
        return [self.describe() | {"part": name} for name in (HEAD, *self.spec.layers)]

    def state(self) -> dict[str, Tensor]:
        """The weights and statistics in use, by their names in timm's network."""
        if not self.spec.cut:
            return self.backbone.module.state_dict()
        return self.body.state_dict()


def _check_spec(backbone: Backbone, spec: FeatureSpec) -> None:
    """Checks that a backbone can have these features.

    Raises:
        OptionError: otherwise.
    """
    check_pooling(spec.pool, Layout.of(backbone.module), backbone.architecture)
    if isinstance(backbone.module, SideBySide) and (spec.cut or spec.pool != PLAIN.pool):
        option = f"cut {spec.cut!r}" if spec.cut else f"pool {spec.pool!r}"
        raise OptionError(
            f"{option}: cannot be changed for backbones side by side. Leave it out, or name a single backbone."
        )


def split_backbone(backbone: Backbone, spec: FeatureSpec = PLAIN) -> SplittableBackbone:
    """A backbone with its freeze boundaries, which are determined once per architecture and input size.

    Raises:
        OptionError: ``spec`` names something that is not a boundary.
    """
    size = backbone.preprocessing
    # ``build`` has every argument of ``build_architecture``, so networks of one key differ in their weights only.
    key = (*backbone.build.items(), size.height, size.width, spec)
    with TRACING:
        if key not in _SPLIT:
            if len(_SPLIT) >= SPLITS_KEPT:
                _SPLIT.clear()
            split = SplittableBackbone(backbone.module, height=size.height, width=size.width, spec=spec)
            _SPLIT[key] = split.of(nn.Module())
            return split
        return _SPLIT[key].of(backbone.module)


def part_widths(net: FeatureNet) -> list[int]:
    """Number of features of each of ``net.parts()``."""
    if not net.spec.layers:
        return [math.prod(feature_shape(net))]
    boundaries = {b.name: b for b in split_backbone(net.backbone).boundaries}
    layout = Layout.of(net.backbone.module)
    layers = [layout.channels(boundaries[name].activation_shape) for name in net.spec.layers]
    return [math.prod(feature_shape(net)) - sum(layers), *layers]


def feature_shape(net: FeatureNet) -> tuple[int, ...]:
    """(D,), or the shape of the map, found by running the network on one blank image."""
    shape = (1, net.backbone.preprocessing.height, net.backbone.preprocessing.width, 3)
    with torch.inference_mode():
        return tuple(net(torch.zeros(shape, dtype=torch.uint8, device=net.scale.device)).shape[1:])
