"""A model's head as one linear layer: what a pretrained network's classifier can hold."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from headstart.backbone.side_by_side import member_names
from headstart.errors import ExportError
from headstart.model import Model
from headstart.training.heads import NeighbourHead, OneLogit, RbfHead

AFFINE = (nn.Linear, nn.BatchNorm1d, nn.Dropout, nn.Identity, OneLogit)
"""Layers that are affine functions of a vector in inference, and so are their compositions."""


def obstacle_to_linear(model: Model) -> str:
    """Why a model is not "a network of timm, then one linear layer and softmax", in words; "" if it is."""
    spec, backbone = model.net.spec, model.net.backbone
    if len(members := member_names(backbone.architecture)) > 1:
        return f"it has {len(members)} backbones side by side ({backbone.architecture})"
    if spec.cut:
        return f"its backbone is cut after {spec.cut} (--cut)"
    if spec.layers:
        return (
            f"its features are those of several layers ({', '.join(spec.layers)} besides the last one); train with "
            "--layers last for a model that timm can hold"
        )
    if spec.pool != "auto":
        return f"its features are pooled in another way than the pretrained network's (--pool {spec.pool})"
    if model.thresholds is not None:
        return "it assigns several labels to an image, each with a threshold"
    if model.preprocessing.value_range is not None:
        return "it scales images of more than 8 bits (--value-range), which timm's preprocessing does not"
    return _obstacle_of_head(model.head)


def _obstacle_of_head(head: nn.Module) -> str:
    if isinstance(head, NeighbourHead):
        return "its head compares an image with the training images (nearest neighbours)"
    if isinstance(head, RbfHead):
        return "its head is a support vector machine with a Gaussian kernel"
    others = {type(layer).__name__ for layer in head.modules() if not list(layer.children())} - {
        kind.__name__ for kind in AFFINE
    }
    containers = {type(layer) for layer in head.modules() if list(layer.children())}
    if others or not all(issubclass(kind, nn.Sequential) for kind in containers):
        return f"its head is not a linear layer ({', '.join(sorted(others)) or type(head).__name__})"
    return ""


def folded_classifier(model: Model) -> tuple[Tensor, Tensor]:
    """The head and the temperature as one linear layer: softmax(features @ weight.T + bias) are the probabilities.

    Args:
        model: one without an obstacle, see ``obstacle_to_linear``.

    Returns:
        (classes, D) float32 weight and (classes,) float32 bias.

    Raises:
        ExportError: the model has an obstacle.
    """
    if obstacle := obstacle_to_linear(model):
        raise ExportError(f"not a linear classifier: {obstacle}.")
    head = copy.deepcopy(model.head).double().cpu()
    width = next(tensor for tensor in head.state_dict().values() if tensor.ndim).shape[-1]
    with torch.no_grad():
        bias = head(torch.zeros(1, width, dtype=torch.float64))[0]
        weight = (head(torch.eye(width, dtype=torch.float64)) - bias).T
    temperature = model.calibration.temperature
    return (weight / temperature).float().contiguous(), (bias / temperature).float()
