"""Classification heads, from one linear layer to a convolution with hidden layers.

A head is a PyTorch module, (N, ...) features -> (N, classes) logits. Its attribute ``about`` is a JSON document that
the model file stores. A new kind of head is a module here with ``about["kind"]``, and a line in ``HEAD_KINDS`` that
rebuilds it; a head of ordinary layers is described by a ``HeadSpec`` ("1024-512-0.2").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
"""Images per batch when a head is evaluated."""

NO_VOTE = 1e-6
"""Smallest share of the votes, for classes without votes."""


class LayeredHead(nn.Sequential):
    """A head that is a sequence of layers.

    Attributes:
        about: JSON document from which an equal head is built; its tensors are the ``state_dict``.
    """

    def __init__(self, layers: Sequence[nn.Module], about: dict[str, Any]) -> None:
        super().__init__(*layers)
        self.about = about


def build_head(spec: HeadSpec, shape: Sequence[int], classes: int, layout: Layout = PLAIN) -> LayeredHead:
    """A head with random weights from PyTorch's global generator.

    Args:
        spec: its layers.
        shape: of the features of one image: (D,), or of the map for a convolution.
        classes: number of classes.
        layout: meaning of the axes of a map.

    Raises:
        OptionError: a convolution on pooled features, another head on a map, or a single logit if the number of
            classes is not two.
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
    """A linear head from (classes, D) weight and (classes,) bias; ``single``: one row, for the second class."""
    state = {"0.weight": float_tensor(weight).clone(), "0.bias": float_tensor(bias).clone()}
    head = _restored(HeadSpec(single=single), weight.shape[1:], 2 if single else len(weight), PLAIN, state)
    return head.requires_grad_(False).eval()


def is_linear(head: nn.Module) -> bool:
    """Whether a head is a single linear layer on features."""
    return isinstance(head, LayeredHead) and [type(part) for part in head if not isinstance(part, OneLogit)] == [
        nn.Linear
    ]


def mean_of_linear(heads: Sequence[nn.Module]) -> LayeredHead:
    """The linear head on concatenated features whose logits are the mean of those of one linear head for each part."""
    layers = [next(part for part in head.modules() if isinstance(part, nn.Linear)) for head in heads]
    weight = torch.cat([layer.weight for layer in layers], 1) / len(layers)
    bias = torch.stack([layer.bias for layer in layers]).mean(0)
    single = any(isinstance(part, OneLogit) for part in heads[0].modules())
    return linear_head(weight.detach().numpy(), bias.detach().numpy(), single=single)


def _restored(
    spec: HeadSpec, shape: Sequence[int], classes: int, layout: Layout, state: dict[str, Tensor]
) -> LayeredHead:
    """A head with given tensors; PyTorch's global generator is not used."""
    with torch.device("meta"):
        head = build_head(spec, shape, classes, layout)
    head.load_state_dict(state, assign=True)
    return head


def head_with_rows(
    head: LayeredHead, weight: npt.NDArray[np.floating[Any]], bias: npt.NDArray[np.floating[Any]]
) -> LayeredHead:
    """The same head with another last layer: (classes, D) weight and (classes,) bias."""
    about = head.about
    spec = HeadSpec.parse(about["spec"])
    other = build_head(spec, about["shape"], len(weight), Layout(**about["layout"]))
    state = {name: tensor for name, tensor in head.state_dict().items() if name in other.state_dict()}
    last = len(other) - 1
    state |= {f"{last}.weight": float_tensor(weight), f"{last}.bias": float_tensor(bias)}
    other.load_state_dict(state)
    return other.requires_grad_(False).eval()


class NeighbourHead(nn.Module):
    """Weighted k-nearest-neighbour classifier by cosine similarity.

    The logit of a class is the logarithm of its share of the votes exp(cosine / ``temperature``) of the neighbours.

    Args:
        features: (N, D) float32 of the training images, with norm 1.
        labels: (N,) int64.
        classes: number of classes.
        neighbours: number of neighbours.
        temperature: of the votes.

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018; used by
    DINO to evaluate features.
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
    """One-vs-rest support vector machines with a Gaussian (RBF) kernel.

    Args:
        support: (S, D) float32, standardised features of the support vectors.
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
        buffers = {"support": support, "mean": mean, "scale": scale, "coefficients": coefficients, "bias": bias}
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)
        self.gamma = gamma
        self.about = {"kind": "rbf", "gamma": gamma}

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, classes)."""
        buffers = dict(self.named_buffers())
        squares = torch.cdist((x - buffers["mean"]) / buffers["scale"], buffers["support"]).square()
        return (-self.gamma * squares).exp() @ buffers["coefficients"] + buffers["bias"]


def head_from(about: dict[str, Any], tensors: dict[str, Tensor], classes: int) -> nn.Module:
    """The head that a model file describes.

    Args:
        about: its ``about``.
        tensors: its ``state_dict``.
        classes: number of classes.

    Raises:
        KeyError, RuntimeError: the document or the tensors are not those of a head.
    """
    return HEAD_KINDS[about["kind"]](about, tensors, classes).requires_grad_(False).eval()


def _layered(about: dict[str, Any], tensors: dict[str, Tensor], classes: int) -> nn.Module:
    spec = replace(HeadSpec.parse(about["spec"]), single=about["single"])
    return _restored(spec, about["shape"], classes, Layout(**about["layout"]), tensors)


def _neighbours(about: dict[str, Any], tensors: dict[str, Tensor], _classes: int) -> nn.Module:
    options = {name: about[name] for name in ("classes", "neighbours", "temperature")}
    return NeighbourHead(tensors["features"], tensors["labels"], **options)


def _rbf(about: dict[str, Any], tensors: dict[str, Tensor], _classes: int) -> nn.Module:
    return RbfHead(**tensors, gamma=about["gamma"])


def _custom(about: dict[str, Any], tensors: dict[str, Tensor], _classes: int) -> nn.Module:
    return build_custom_head(about, tensors)


HEAD_KINDS: dict[str, Callable[[dict[str, Any], dict[str, Tensor], int], nn.Module]] = {
    "layers": _layered,
    "neighbours": _neighbours,
    "rbf": _rbf,
    KIND: _custom,
}
"""``about["kind"]`` -> (about, tensors, number of classes) -> head."""


def logits_on(
    head: nn.Module, features: npt.NDArray[np.float32], dtype: torch.dtype = torch.float32
) -> npt.NDArray[np.float64]:
    """(N, classes) logits of features in memory.

    Args:
        head: with weights of ``dtype``.
        features: (N, ...).
        dtype: of the computation.
    """
    starts = range(0, max(1, len(features)), AT_ONCE)
    with torch.no_grad():
        parts = [head(torch.from_numpy(features[i : i + AT_ONCE]).to(dtype)) for i in starts]
    return np.asarray(torch.cat(parts).double().numpy())


def vectors_of(features: npt.NDArray[np.float32], layout: Layout) -> npt.NDArray[np.float32]:
    """(N, D) features unchanged; for maps, the means over their positions, (N, C)."""
    return np.asarray(mean_vectors(torch.from_numpy(features), layout).numpy())


def mean_vectors(features: Tensor, layout: Layout) -> Tensor:
    """As ``vectors_of``, for tensors."""
    return features if features.ndim == 2 else _as_map(features, layout).mean((2, 3))


class OneLogit(nn.Module):
    """(N, 1) logit of the second class -> (N, 2) logits of both classes.

    The softmax of (0, z) equals the sigmoid of z, and its cross-entropy the binary cross-entropy.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., 1) -> (..., 2)."""
        return torch.cat([torch.zeros_like(x), x], -1)


class ToMap(nn.Module):
    """An activation of any layout -> (N, C, H, W); a sequence becomes a map of width 1 without prefix tokens."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), (N, H, W, C) or (N, tokens, C) -> (N, C, H, W)."""
        return _as_map(x, self.layout)


class Pool(nn.Module):
    """A map -> a vector, see ``pooling.pooled``."""

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
    """A float32 tensor of an array."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
