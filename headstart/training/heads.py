"""Heads: what is put on a backbone, from one linear layer to a convolution with hidden layers behind it.

A head is an ordinary PyTorch module, (N, ...) features -> (N, classes) logits. What it is made of is a ``HeadSpec``,
which people write as one word ("1024-512-0.2") and the model file keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headstart.backbone.layers import Layout
from headstart.backbone.pooling import Pooling, pooled
from headstart.errors import OptionError
from headstart.training.custom_heads import KIND, build_custom_head
from headstart.training.head_spec import HeadSpec

PLAIN = Layout()
AT_ONCE = 1024
"""Images whose features go through a head at once."""

NO_VOTE = 1e-6
"""Share of the votes that a class without any is taken to have."""


class LayeredHead(nn.Sequential):
    """A head of ordinary layers.

    Attributes:
        about: what it takes to build one like it, a JSON document; the tensors are its ``state_dict``.
    """

    def __init__(self, layers: Sequence[nn.Module], about: dict[str, Any]) -> None:
        super().__init__(*layers)
        self.about = about


def build_head(spec: HeadSpec, shape: Sequence[int], classes: int, layout: Layout = PLAIN) -> LayeredHead:
    """A head with new weights, drawn from PyTorch's own generator.

    Args:
        spec: what it is made of.
        shape: of the features of one picture: (D,), or of the map for a convolution.
        classes: number of classes.
        layout: what the axes of a map mean.

    Raises:
        OptionError: a convolution on features that are pooled already, anything else on a map, or one logit for
            more or fewer than two classes.
    """
    if spec.single and classes != 2:
        raise OptionError(f"a single logit requires two classes, and there are {classes}.")
    if bool(spec.channels) != (len(shape) > 1):
        raise OptionError(
            f"head {spec}: a convolution needs a map, and the features are pooled (shape {tuple(shape)})."
            if spec.channels
            else f"head {spec}: needs pooled features, not a map of {tuple(shape)}; choose a pooling."
        )
    layers: list[nn.Module] = []
    length = shape[0]
    if spec.channels:
        channels, *places = _as_map(torch.zeros(1, *shape), layout).shape[1:]
        convolution = nn.Conv2d(channels, spec.channels, 1, bias=False)
        layers += [ToMap(layout), convolution, nn.BatchNorm2d(spec.channels), nn.ReLU(), Pool(spec.pool)]
        length = {"flatten": spec.channels * places[0] * places[1], "avgmax": 2 * spec.channels}.get(
            spec.pool, spec.channels
        )
    for width in spec.widths:
        layers += [nn.Linear(length, width), nn.ReLU()]
        length = width
    if spec.dropout:
        layers.append(nn.Dropout(spec.dropout))
    layers.append(nn.Linear(length, 1 if spec.single else classes))
    if spec.single:
        layers.append(OneLogit())
    about = {"kind": "layers", "spec": str(spec), "single": spec.single, "shape": list(shape), "layout": asdict(layout)}
    return LayeredHead(layers, about)


def linear_head(
    weight: npt.NDArray[np.floating[Any]], bias: npt.NDArray[np.floating[Any]], *, single: bool = False
) -> LayeredHead:
    """A head of one linear layer: (classes, D) weight, (classes,) bias; ``single``: one row, of the second of two."""
    state = {"0.weight": float_tensor(weight).clone(), "0.bias": float_tensor(bias).clone()}
    head = _restored(HeadSpec(single=single), weight.shape[1:], 2 if single else len(weight), PLAIN, state)
    return head.requires_grad_(False).eval()


def _restored(
    spec: HeadSpec, shape: Sequence[int], classes: int, layout: Layout, state: dict[str, Tensor]
) -> LayeredHead:
    """A head of these tensors; none is drawn, so that PyTorch's own generator stays as it is."""
    with torch.device("meta"):
        head = build_head(spec, shape, classes, layout)
    head.load_state_dict(state, assign=True)
    return head


def head_with_rows(
    head: LayeredHead, weight: npt.NDArray[np.floating[Any]], bias: npt.NDArray[np.floating[Any]]
) -> LayeredHead:
    """The same layers, but for the last: (classes, D) weight and (classes,) bias take its place."""
    about = head.about
    spec = HeadSpec.parse(about["spec"])
    other = build_head(spec, about["shape"], len(weight), Layout(**about["layout"]))
    state = {name: tensor for name, tensor in head.state_dict().items() if name in other.state_dict()}
    last = len(other) - 1
    state |= {f"{last}.weight": float_tensor(weight), f"{last}.bias": float_tensor(bias)}
    other.load_state_dict(state)
    return other.requires_grad_(False).eval()


class NeighbourHead(nn.Module):
    """The nearest training images, by the cosine of their features: each votes by how near it is.

    A class's logit is the logarithm of its share of the votes exp(cosine / ``temperature``).

    Args:
        features: (N, D) float32, of length 1.
        labels: (N,) int64.
        classes: number of classes.
        neighbours: that vote.
        temperature: see above.

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, as DINO
    evaluates features.
    """

    features: Tensor
    labels: Tensor

    def __init__(self, features: Tensor, labels: Tensor, classes: int, neighbours: int, temperature: float) -> None:
        super().__init__()
        self.register_buffer("features", features)
        self.register_buffer("labels", labels)
        self.classes, self.neighbours, self.temperature = classes, neighbours, temperature
        self.about = {"kind": "neighbours", "neighbours": neighbours, "temperature": temperature, "classes": classes}

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, classes)."""
        return self.votes(nn.functional.normalize(x, dim=1) @ self.features.T)

    def votes(self, cosines: Tensor) -> Tensor:
        """(N, training images) -> (N, classes) logits."""
        near, which = cosines.topk(self.neighbours, dim=1)
        weight = ((near - near[:, :1]) / self.temperature).exp()
        votes = weight.new_zeros(cosines.shape[0], self.classes).scatter_add_(1, self.labels[which], weight)
        return (votes / votes.sum(1, keepdim=True)).clamp(min=NO_VOTE).log()


class RbfHead(nn.Module):
    """Support vector machines with a Gaussian kernel, one class against the rest.

    Args:
        support: (S, D) float32 standardised features of the images that matter.
        mean: (D,) of the standardisation.
        scale: (D,) of the standardisation.
        coefficients: (S, classes).
        bias: (classes,).
        gamma: of the kernel exp(-gamma * squared distance).
    """

    def __init__(
        self, support: Tensor, mean: Tensor, scale: Tensor, coefficients: Tensor, bias: Tensor, gamma: float
    ) -> None:
        super().__init__()
        own = {"support": support, "mean": mean, "scale": scale, "coefficients": coefficients, "bias": bias}
        for name, tensor in own.items():
            self.register_buffer(name, tensor)
        self.gamma = gamma
        self.about = {"kind": "rbf", "gamma": gamma}

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, classes)."""
        own = dict(self.named_buffers())
        squares = torch.cdist((x - own["mean"]) / own["scale"], own["support"]).square()
        return (-self.gamma * squares).exp() @ own["coefficients"] + own["bias"]


def head_from(about: dict[str, Any], tensors: dict[str, Tensor], classes: int) -> nn.Module:
    """The head that a model file tells of.

    Args:
        about: its ``about``.
        tensors: its ``state_dict``.
        classes: number of classes.

    Raises:
        KeyError, RuntimeError: the document or the tensors are not those of a head.
    """
    head: nn.Module
    if about["kind"] == "neighbours":
        own = {name: about[name] for name in ("classes", "neighbours", "temperature")}
        head = NeighbourHead(tensors["features"], tensors["labels"], **own)
    elif about["kind"] == "rbf":
        head = RbfHead(**tensors, gamma=about["gamma"])
    elif about["kind"] == KIND:
        head = build_custom_head(about, tensors)
    else:
        spec = replace(HeadSpec.parse(about["spec"]), single=about["single"])
        head = _restored(spec, about["shape"], classes, Layout(**about["layout"]), tensors)
    return head.requires_grad_(False).eval()


def logits_on(
    head: nn.Module, features: npt.NDArray[np.float32], dtype: torch.dtype = torch.float32
) -> npt.NDArray[np.float64]:
    """(N, classes) logits of features in memory.

    Args:
        head: whose weights are of ``dtype``.
        features: (N, ...).
        dtype: in which it is computed.
    """
    starts = range(0, max(1, len(features)), AT_ONCE)
    with torch.no_grad():
        parts = [head(torch.from_numpy(features[i : i + AT_ONCE]).to(dtype)) for i in starts]
    return np.asarray(torch.cat(parts).double().numpy())


def vectors_of(features: npt.NDArray[np.float32], layout: Layout) -> npt.NDArray[np.float32]:
    """(N, D) features as they are; of maps the means of their places, (N, C)."""
    return np.asarray(mean_vectors(torch.from_numpy(features), layout).numpy())


def mean_vectors(features: Tensor, layout: Layout) -> Tensor:
    """``vectors_of`` in tensors."""
    return features if features.ndim == 2 else _as_map(features, layout).mean((2, 3))


class OneLogit(nn.Module):
    """(N, 1) logit of the second class -> (N, 2) logits of both.

    The softmax of (0, z) is the sigmoid of z, and its cross-entropy the binary one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., 1) -> (..., 2)."""
        return torch.cat([torch.zeros_like(x), x], -1)


class ToMap(nn.Module):
    """An activation of any layout -> (N, C, H, W); a sequence without its prefix tokens, as a map one place wide."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), (N, H, W, C) or (N, tokens, C) -> (N, C, H, W)."""
        return _as_map(x, self.layout)


class Pool(nn.Module):
    """A map -> one vector, see ``pooling.pooled``."""

    def __init__(self, pool: Pooling) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C), (N, 2C) or (N, C * H * W)."""
        return pooled(x, self.pool)


def _as_map(x: Tensor, layout: Layout) -> Tensor:
    if x.ndim == 3:
        return x[:, layout.prefix_tokens :].transpose(1, 2).unsqueeze(-1)
    return x.permute(0, 3, 1, 2) if layout.channels_last else x


def float_tensor(array: npt.NDArray[Any]) -> Tensor:
    """The same numbers in float32."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
