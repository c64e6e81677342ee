"""Heads that users build of PyTorch's layers, described so that a model file can build them again.

A model file holds tensors and a JSON document and nothing is unpickled, so code of a user's own cannot be restored.
What is composed of the layers in ``LAYERS`` by ``nn.Sequential`` can.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from headstart.engine.torch_internals import has_forward_hooks
from headstart.errors import ModelFileError, OptionError, first_line

LAYERS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "Linear": (nn.Linear, ("in_features", "out_features")),
    "Conv2d": (
        nn.Conv2d,
        ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    ),
    "BatchNorm1d": (nn.BatchNorm1d, ("num_features", "eps", "momentum", "affine", "track_running_stats")),
    "BatchNorm2d": (nn.BatchNorm2d, ("num_features", "eps", "momentum", "affine", "track_running_stats")),
    "LayerNorm": (nn.LayerNorm, ("normalized_shape", "eps", "elementwise_affine")),
    "GroupNorm": (nn.GroupNorm, ("num_groups", "num_channels", "eps", "affine")),
    "Dropout": (nn.Dropout, ("p",)),
    "Dropout2d": (nn.Dropout2d, ("p",)),
    "ReLU": (nn.ReLU, ()),
    "ReLU6": (nn.ReLU6, ()),
    "LeakyReLU": (nn.LeakyReLU, ("negative_slope",)),
    "ELU": (nn.ELU, ("alpha",)),
    "GELU": (nn.GELU, ("approximate",)),
    "SiLU": (nn.SiLU, ()),
    "Hardswish": (nn.Hardswish, ()),
    "Tanh": (nn.Tanh, ()),
    "Sigmoid": (nn.Sigmoid, ()),
    "Identity": (nn.Identity, ()),
    "Flatten": (nn.Flatten, ("start_dim", "end_dim")),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d, ("output_size",)),
    "AdaptiveMaxPool2d": (nn.AdaptiveMaxPool2d, ("output_size",)),
}
"""Name -> class, and arguments of its constructor that are attributes of the same name; ``bias`` is added."""

SEQUENTIAL = "Sequential"
DEEPEST = 8
"""Levels of nn.Sequential that a description may have."""

KIND = "modules"
"""Of the description, see ``heads.head_from``."""


def describe(head: nn.Module) -> nn.Module:
    """Gives a head the attribute ``about`` that the model file needs, where it has none.

    Args:
        head: (N, ...) features -> (N, classes) logits; returned unchanged.

    Raises:
        OptionError: it holds a layer that cannot be described; the message names it and the layers that can be used.
    """
    if not hasattr(head, "about"):
        about: dict[str, Any] = {"kind": KIND, "module": _described(head, type(head).__name__, 1)}
        shapes = {name: tensor.shape for name, tensor in head.state_dict().items()}
        if {name: tensor.shape for name, tensor in _built(about["module"], 1).state_dict().items()} != shapes:
            raise OptionError(
                f"head: {type(head).__name__} has weights outside its layers (a parametrisation or added "
                "parameters), which a model file cannot store. Remove them, for example with "
                "torch.nn.utils.parametrize.remove_parametrizations."
            )
        head.about = about  # type: ignore[assignment]  # any attribute that is no tensor is kept as it is
    return head


def build_custom_head(about: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """The head that ``describe`` described.

    Args:
        about: its attribute.
        tensors: its ``state_dict``.

    Raises:
        ModelFileError: the description is damaged, or the tensors are not those of it.
    """
    try:
        head = _built(about["module"], 1)
        head.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise ModelFileError(f"the head cannot be built from its description: {first_line(error)}.") from error
    head.about = about  # type: ignore[assignment]
    return head


def _described(module: nn.Module, where: str, level: int) -> dict[str, Any]:
    kind = type(module).__name__
    if type(module) is nn.Sequential and level <= DEEPEST:
        parts = [[name, _described(layer, f"{where}.{name}", level + 1)] for name, layer in module.named_children()]
        return {"layer": SEQUENTIAL, "parts": parts}
    found = LAYERS.get(kind)
    if found is None or type(module) is not found[0] or has_forward_hooks(module):
        what = f"{kind} with hooks" if found is not None and type(module) is found[0] else kind
        raise OptionError(
            f"head: {where} ({what}) cannot be restored from a model file, which contains no code. Build the head "
            f"from nn.Sequential and these layers: {', '.join(LAYERS)}."
        )
    arguments: dict[str, Any] = {name: getattr(module, name) for name in found[1]}
    if kind in ("Linear", "Conv2d", "LayerNorm"):
        arguments["bias"] = module.bias is not None
    return {"layer": kind, "arguments": arguments}


def _built(document: dict[str, Any], level: int) -> nn.Module:
    """Without memory for its weights: these come from the file, whose shapes are compared."""
    if document["layer"] == SEQUENTIAL:
        if level > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels")
        sequence = nn.Sequential()
        for name, part in document["parts"]:
            sequence.add_module(name, _built(part, level + 1))
        return sequence
    arguments = {
        name: tuple(value) if isinstance(value, list) else value for name, value in document["arguments"].items()
    }
    with torch.device("meta"):
        return LAYERS[document["layer"]][0](**arguments)
