"""Layer groups of a backbone, from stem to head in execution order, and freezing by group."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from headstart.backbone.side_by_side import SideBySide, members_of
from headstart.errors import OptionError

CONTAINERS = ("blocks", "stages", "layers", "features")
"""Timm's names of the list of a backbone's stages; each of its entries is a group."""

BatchNorm: TypeAlias = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
"""Layers with running statistics, and their subclasses."""


@dataclass(frozen=True)
class LayerGroup:
    """A group of layers that is frozen or trained together.

    Attributes:
        name: dotted name of the module in timm's network, "blocks.4", "layer3"; or of parameters outside of modules.
        kind: the module's class.
        output_shape: for one image, without the batch axis; () if the output is not a single tensor, or the network
            reads the group's weights without calling it.
        parameters: number of weights.
        trainable: how many of them are trained.
        statistics: number of BatchNorm statistics (running means and variances).
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    trainable: int
    statistics: int


@dataclass(frozen=True)
class Layout:
    """The meaning of the axes of activations.

    Attributes:
        channels_last: maps are (N, H, W, C) rather than (N, C, H, W).
        prefix_tokens: number of tokens of a sequence (N, tokens, C) without a position in the image.
    """

    channels_last: bool = False
    prefix_tokens: int = 0

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """The layout that a timm network declares."""
        return cls(getattr(module, "output_fmt", "NCHW") == "NHWC", int(getattr(module, "num_prefix_tokens", 0)))

    def channels(self, shape: Sequence[int]) -> int:
        """Number of channels of an activation of one image, without the batch axis."""
        return shape[0] if len(shape) == 3 and not self.channels_last else shape[-1]

    def grid(self, shape: torch.Size) -> tuple[int, int] | None:
        """(rows, columns) of positions; None if there are none or they cannot be determined."""
        if len(shape) == 4:
            return (shape[1], shape[2]) if self.channels_last else (shape[2], shape[3])
        side = math.isqrt(max(0, shape[1] - self.prefix_tokens)) if len(shape) == 3 else 0
        return (side, side) if side and side * side + self.prefix_tokens == shape[1] else None


def layer_groups(module: nn.Module, *, input_shape: tuple[int, int, int]) -> list[LayerGroup]:
    """A timm network's layer groups in execution order.

    Order and shapes are observed by running the network on one image of zeros.

    Args:
        module: created by timm; with or without a classifier.
        input_shape: (channels, height, width).
    """
    order, shapes = _run_order(module, input_shape)
    named = dict(module.named_modules())
    groups = [_top_level_parameters(module)] if list(module.parameters(recurse=False)) else []
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
    """Names of the layer groups in the order of their definition, without running the network."""
    if isinstance(module, SideBySide):
        return [f"{path}.{name}" for path, member in members_of(module).items() for name in group_names(member)]
    names = []
    for name, part in module.named_children():
        if isinstance(part, (nn.Sequential, nn.ModuleList)) and name in CONTAINERS:
            names += [f"{name}.{inner}" for inner, _ in part.named_children()]
        else:
            names.append(name)
    return names


def freeze(module: nn.Module, *, trainable: Sequence[str] = ()) -> None:
    """Freezes all weights except those of the named layers and the layers inside them.

    Args:
        module: created by timm.
        trainable: names of layer groups, or of layers inside them.

    Raises:
        OptionError: the network has no such layer; lists the groups.
    """
    names = {name for name, _ in module.named_modules()} - {""}
    unknown = [name for name in trainable if name not in names]
    if unknown:
        raise OptionError(f"no layer group named {', '.join(unknown)}. There are: {', '.join(group_names(module))}.")
    module.requires_grad_(False)
    for name in trainable:
        module.get_submodule(name).requires_grad_(True)


def groups_trained(
    groups: Sequence[LayerGroup], module: nn.Module, *, trained: Mapping[str, int], used: Collection[str]
) -> list[LayerGroup]:
    """Layer groups with the number of weights that a stage of training changes.

    Args:
        groups: of ``module``, as listed by ``layer_groups``.
        module: the network.
        trained: name of a parameter -> number of weights that are trained for it.
        used: names of the parameters that are used; groups without any of them are left out.
    """
    names = [name for name, _ in module.named_parameters()]
    found = []
    for group in groups:
        parts = group.name.split(", ")  # parameters outside of modules, see ``_top_level_parameters``
        inside = [name for name in names if name in parts or name.startswith(tuple(f"{part}." for part in parts))]
        if not inside or any(name in used for name in inside):
            found.append(replace(group, trainable=sum(trained.get(name, 0) for name in inside)))
    return found


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Context in which all layers are in inference mode; afterwards each has its previous mode."""
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

        def record(_part: nn.Module, _inputs: object, output: object, name: str = name) -> None:
            if name not in shapes:
                order.append(name)
                shapes[name] = tuple(output.shape[1:]) if isinstance(output, Tensor) else ()

        hooks.append(module.get_submodule(name).register_forward_hook(record))
    first = next(module.parameters())
    try:
        with evaluating(module), torch.inference_mode():
            module(torch.zeros(1, *input_shape, device=first.device, dtype=first.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return order, shapes


def _top_level_parameters(module: nn.Module) -> LayerGroup:
    """Weights outside of modules: a vision transformer's class token and position embedding."""
    parameters = dict(module.named_parameters(recurse=False))
    return LayerGroup(
        name=", ".join(parameters),
        kind="Parameter",
        output_shape=(),
        parameters=sum(p.numel() for p in parameters.values()),
        trainable=sum(p.numel() for p in parameters.values() if p.requires_grad),
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
