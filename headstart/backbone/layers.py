"""The one enumeration of a backbone's layer groups, from stem to head in execution order, and freezing by it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from headstart.errors import OptionError

CONTAINERS = ("blocks", "stages", "layers", "features")
"""Names that timm gives to a backbone's one list of stages; its entries are groups of their own."""

BatchNorm: TypeAlias = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
"""Layers with running statistics, and their subclasses."""


@dataclass(frozen=True)
class LayerGroup:
    """A group of layers that is frozen or trained as one.

    Attributes:
        name: the module's dotted name in timm's network, "blocks.4", "layer3"; or of a parameter beside the modules.
        kind: the module's class.
        output_shape: of one image, without the batch axis; () where it is not a single tensor, or the network
            reads the group's weights without calling it.
        parameters: number of weights.
        trainable: how many of them are trained.
        statistics: number of BatchNorm statistics (running means and variances), which no gradient changes.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    trainable: int
    statistics: int


@dataclass(frozen=True)
class Layout:
    """What the axes of activations mean.

    Attributes:
        channels_last: maps are (N, H, W, C) rather than (N, C, H, W).
        prefix_tokens: tokens of sequences (N, tokens, C) that stand for no place in the picture.
    """

    channels_last: bool = False
    prefix_tokens: int = 0

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """As a timm network states it."""
        return cls(getattr(module, "output_fmt", "NCHW") == "NHWC", int(getattr(module, "num_prefix_tokens", 0)))

    def grid(self, shape: torch.Size) -> tuple[int, int] | None:
        """(rows, columns) of places; None where there are none, or nobody can tell."""
        if len(shape) == 4:
            return (shape[1], shape[2]) if self.channels_last else (shape[2], shape[3])
        side = math.isqrt(max(0, shape[1] - self.prefix_tokens)) if len(shape) == 3 else 0
        return (side, side) if side and side * side + self.prefix_tokens == shape[1] else None


def layer_groups(module: nn.Module, *, input_shape: tuple[int, int, int]) -> list[LayerGroup]:
    """Lists a timm network's groups in the order in which it runs them.

    The order and the shapes are seen, not declared: one picture's worth of zeros is run through the network.

    Args:
        module: made by timm; with or without a classifier.
        input_shape: (channels, height, width).
    """
    order, shapes = _run_order(module, input_shape)
    named = dict(module.named_modules())
    groups = [_own_parameters(module)] if list(module.parameters(recurse=False)) else []
    uncalled = [name for name in group_names(module) if name not in shapes]
    for name in order + uncalled:
        part = named[name]
        weights = list(part.parameters())
        if not weights and (name in uncalled or isinstance(part, (nn.Identity, nn.Dropout))):
            continue
        groups.append(
            LayerGroup(
                name=name,
                kind=type(part).__name__,
                output_shape=shapes.get(name, ()),
                parameters=sum(p.numel() for p in weights),
                trainable=sum(p.numel() for p in weights if p.requires_grad),
                statistics=_statistics(part),
            )
        )
    return groups


def group_names(module: nn.Module) -> list[str]:
    """Names of the groups in the order in which timm defines them, without running the network."""
    names = []
    for name, part in module.named_children():
        if isinstance(part, (nn.Sequential, nn.ModuleList)) and name in CONTAINERS:
            names += [f"{name}.{inner}" for inner, _ in part.named_children()]
        else:
            names.append(name)
    return names


def freeze(module: nn.Module, *, trainable: Sequence[str] = ()) -> None:
    """Freezes every weight but those of the named layers; a layer is frozen or trained with all that is beneath it.

    Args:
        module: made by timm.
        trainable: names of layer groups, or of any layer inside one.

    Raises:
        OptionError: a name is no layer of this network; lists the groups.
    """
    known = {name for name, _ in module.named_modules()} - {""}
    unknown = [name for name in trainable if name not in known]
    if unknown:
        raise OptionError(f"no layer group named {', '.join(unknown)}. There are: {', '.join(group_names(module))}.")
    module.requires_grad_(False)
    for name in trainable:
        module.get_submodule(name).requires_grad_(True)


def groups_trained(
    groups: Sequence[LayerGroup], module: nn.Module, *, trained: Collection[str], used: Collection[str]
) -> list[LayerGroup]:
    """The same groups, with what a stage of training changes in each.

    Args:
        groups: of ``module``, as ``layer_groups`` lists them.
        module: the network.
        trained: names of the parameters that are trained.
        used: names of the parameters that play a part; groups of weights that play none are left out.
    """
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    found = []
    for group in groups:
        parts = group.name.split(", ")  # of a network's own parameters, see ``_own_parameters``
        own = {n: size for n, size in sizes.items() if n in parts or n.startswith(tuple(f"{p}." for p in parts))}
        if not own or any(name in used for name in own):
            found.append(replace(group, trainable=sum(size for name, size in own.items() if name in trained)))
    return found


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for every part, and afterwards for each part the mode that it had."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _run_order(module: nn.Module, input_shape: tuple[int, int, int]) -> tuple[list[str], dict[str, tuple[int, ...]]]:
    order: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = []
    for name in group_names(module):

        def seen(_part: nn.Module, _inputs: object, output: object, name: str = name) -> None:
            if name not in shapes:
                order.append(name)
                shapes[name] = tuple(output.shape[1:]) if isinstance(output, Tensor) else ()

        hooks.append(module.get_submodule(name).register_forward_hook(seen))
    first = next(module.parameters())
    try:
        with evaluating(module), torch.inference_mode():
            module(torch.zeros(1, *input_shape, device=first.device, dtype=first.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return order, shapes


def _own_parameters(module: nn.Module) -> LayerGroup:
    """Weights that belong to no part: a vision transformer's class token and position table."""
    own = dict(module.named_parameters(recurse=False))
    return LayerGroup(
        name=", ".join(own),
        kind="Parameter",
        output_shape=(),
        parameters=sum(p.numel() for p in own.values()),
        trainable=sum(p.numel() for p in own.values() if p.requires_grad),
        statistics=0,
    )


def _statistics(part: nn.Module) -> int:
    return sum(
        buffer.numel()
        for norm in part.modules()
        if isinstance(norm, BatchNorm)
        for name, buffer in norm.named_buffers(recurse=False)
        if name in ("running_mean", "running_var")
    )
