"""The one forward path from pixels to features: normalisation, frozen backbone, pooling."""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import torch
from timm.models import create_feature_extractor
from torch import Tensor, nn

from headstart.backbone.layers import Layout, group_names
from headstart.backbone.weights import Backbone
from headstart.errors import OptionError

Pooling = Literal["auto", "avg", "max", "avgmax", "token"]
"""How a map or a sequence becomes one vector: as the weights were trained ("auto"), the mean, the maximum, both side by
side, or the class token."""


class PixelNet(nn.Module):
    """uint8 pixels -> what the frozen part of a backbone gives; a pure function of the pixels, nothing to train.

    Args:
        backbone: whose weights are shared, not copied.
        body: (N, 3, H, W), normalised -> anything that ``finish`` takes.
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
        """Runs the frozen part.

        Args:
            pixels: (N, H, W, 3) uint8, 0-255, as ``fit_to`` gives them.

        Returns:
            (N, ...) float32.
        """
        return self.finish(self.body(self.normalised(pixels)))

    def normalised(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, H, W) as the weights expect it; channels last in memory."""
        return pixels.permute(0, 3, 1, 2).to(self.scale.dtype) * self.scale + self.shift

    def finish(self, x: Any) -> Tensor:
        """What is left to do with the body's output."""
        return cast(Tensor, x)

    def describe(self) -> dict[str, Any]:
        """What decides the output, given the pixels; for cache keys and model files."""
        return {
            "architecture": self.backbone.architecture,
            "fingerprint": self.backbone.fingerprint,
            "mean": list(self.backbone.preprocessing.mean),
            "std": list(self.backbone.preprocessing.std),
        }


class ActivationNet(PixelNet):
    """uint8 pixels -> the activation at a boundary, (N, *shape) float32.

    Args:
        backbone: whose weights are shared.
        boundary: its name.
        prefix: what lies before it, see ``split.SplittableBackbone.prefix``.
    """

    def __init__(self, backbone: Backbone, boundary: str, prefix: nn.Module) -> None:
        super().__init__(backbone, prefix)
        self.boundary = boundary

    def describe(self) -> dict[str, Any]:
        """See ``PixelNet.describe``."""
        return super().describe() | {"boundary": self.boundary}


class TappedNet(PixelNet):
    """uint8 pixels -> features and the activation at a boundary side by side, (N, D + its numbers) float32.

    Args:
        backbone: whose weights are shared.
        boundary: its name.
        tapped: see ``split.SplittableBackbone.tapped``.
    """

    def __init__(self, backbone: Backbone, boundary: str, tapped: nn.Module) -> None:
        super().__init__(backbone, tapped)
        self.boundary = boundary

    def finish(self, x: Any) -> Tensor:
        """One row for each image."""
        return torch.cat([part.float().flatten(1) for part in x], 1)

    def describe(self) -> dict[str, Any]:
        """See ``PixelNet.describe``."""
        return super().describe() | {"tapped": self.boundary}


class FeatureNet(PixelNet):
    """uint8 pixels -> features, (N, D) float32.

    Args:
        backbone: whose weights are shared, not copied.
        pool: see ``Pooling``; "auto" is the mean where ``layer`` is given.
        layer: name of a layer group whose output is pooled; the last where it is not given.

    Raises:
        OptionError: no such pooling or layer, or the network cannot be cut there.
    """

    def __init__(self, backbone: Backbone, *, pool: Pooling = "auto", layer: str | None = None) -> None:
        if pool not in get_args(Pooling):
            raise OptionError(f"pool {pool!r}: expected one of {', '.join(get_args(Pooling))}.")
        module = backbone.module
        super().__init__(
            backbone, _cut(backbone, layer) if layer else module if pool == "auto" else _BeforePooling(module)
        )
        self.pool = pool
        self.layer = layer
        self.layout = Layout.of(module)

    def finish(self, x: Any) -> Tensor:
        """Pools, where the body has not."""
        if self.layer is not None:
            return self._pooled(x[self.layer])
        return cast(Tensor, x) if self.pool == "auto" else self._pooled(x)

    def describe(self) -> dict[str, Any]:
        """See ``PixelNet.describe``."""
        return super().describe() | {"pool": self.pool, "layer": self.layer}

    def _pooled(self, x: Tensor) -> Tensor:
        """(N, C, H, W), (N, H, W, C), (N, tokens, C) or (N, C) -> (N, C), or (N, 2C) for "avgmax"."""
        if x.ndim == 2:
            return x
        if x.ndim == 4:
            x = x.flatten(1, 2) if self.layout.channels_last else x.flatten(2).transpose(1, 2)
        elif self.pool == "token":
            if not self.layout.prefix_tokens:
                raise OptionError(f"pool 'token': {self.backbone.architecture} has no class token.")
            return x[:, 0]
        else:
            x = x[:, self.layout.prefix_tokens :]
        if self.pool == "token":
            raise OptionError(f"pool 'token': {self.backbone.architecture} has no class token.")
        if self.pool == "max":
            return x.amax(1)
        return torch.cat([x.mean(1), x.amax(1)], 1) if self.pool == "avgmax" else x.mean(1)


class _BeforePooling(nn.Module):
    """A timm network up to where it would pool."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, cast(Any, self.module).forward_features(x))


def feature_count(net: FeatureNet) -> int:
    """D, the length of a feature vector, by running one blank picture."""
    shape = (1, net.backbone.preprocessing.height, net.backbone.preprocessing.width, 3)
    with torch.inference_mode():
        return int(net(torch.zeros(shape, dtype=torch.uint8, device=net.scale.device)).shape[1])


def _cut(backbone: Backbone, layer: str) -> nn.Module:
    known = group_names(backbone.module)
    if layer not in known:
        raise OptionError(f"no layer group named {layer!r} in {backbone.architecture}. There are: {', '.join(known)}.")
    try:
        cut: nn.Module = create_feature_extractor(backbone.module, [layer])
    except Exception as error:  # torch.fx raises whatever the network's own code raises when traced
        raise OptionError(
            f"{backbone.architecture} cannot be cut at {layer} (torch.fx: {error}); leave the layer out."
        ) from error
    return cut
