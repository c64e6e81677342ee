"""Mean features of the pretraining data, computed from the statistics of the backbone's last BatchNorm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headstart.backbone.layers import BatchNorm
from headstart.backbone.pixel_net import FeatureNet

_ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    nn.Identity(),
    nn.ReLU(),
    nn.ReLU6(),
    nn.SiLU(),
    nn.Hardswish(),
)
_POINTS = 64


def average_features(net: FeatureNet) -> npt.NDArray[np.float64] | None:
    """(D,) mean features of the images that the network was pretrained on.

    After a BatchNorm, a channel has its shift as mean and its scale as standard deviation. Assuming a normal
    distribution, the mean of an activation of it can be computed (Gauss-Hermite quadrature), and mean pooling keeps it.

    Returns:
        None if the features are not the mean of the last BatchNorm's activated map, which is tested on one input.
    """
    seen: list[tuple[BatchNorm, Tensor]] = []
    hooks = [
        part.register_forward_hook(lambda norm, _inputs, out: seen.append((norm, out.clone())))
        for part in net.body.modules()
        if isinstance(part, BatchNorm)
    ]
    size = net.backbone.preprocessing
    x = torch.randn(2, 3, size.height, size.width, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            features = net.finish(net.body(x))
    finally:
        for hook in hooks:
            hook.remove()
    if not seen or seen[-1][1].ndim != 4 or features.ndim != 2:
        return None
    norm, out = seen[-1]
    act: Callable[[Tensor], Tensor] = getattr(norm, "act", nn.Identity())
    for activation in _ACTIVATIONS:
        pooled = activation(out).mean((2, 3))
        if pooled.shape == features.shape and torch.allclose(pooled, features, atol=1e-3, rtol=1e-3):
            points, weights = np.polynomial.hermite_e.hermegauss(_POINTS)
            scale, shift = norm.weight.detach().double(), norm.bias.detach().double()
            values = activation(act(shift + scale * torch.from_numpy(points)[:, None]))
            return np.asarray(weights @ values.numpy() / weights.sum())
    return None
