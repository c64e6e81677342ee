"""Backbones side by side: several pretrained networks look at the same pixels, and their features are concatenated.

A combination is named ``FIRST+SECOND`` and is one backbone for everything else. A freeze boundary cuts all networks at
about the same depth, and is named after the first one. Fine-tuning trains each network as if it were alone, see
``training.suffix_classifier``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

MOST_MEMBERS = 3
"""Number of networks in a combination at most."""

FIRST, OTHERS = "first", "others"
"""Names of the parts of ``SideBySide``, with which the names of its layers begin."""

JOINING = "-"
"""Stands for what joins the features of several networks and belongs to none, see ``network_of``."""


def member_names(name: str) -> list[str]:
    """Names of the networks of a backbone: one, or those of a combination."""
    return [member.strip() for member in name.split("+")]


@final
class SideBySide(nn.Module):
    """Several networks without classifiers, side by side: (N, 3, H, W) -> (N, D), the features of every one.

    Args:
        members: created by timm; all accept images of the same size.
        ranges: for each, mean and standard deviation, (3,), of the pixels that it expects. The input is normalised as
            the first expects it.

    Attributes:
        first: the network that freeze boundaries are named after.
        others: the other ones.
    """

    def __init__(self, members: Sequence[nn.Module], ranges: Sequence[tuple[Sequence[float], Sequence[float]]]) -> None:
        super().__init__()
        first: Any
        first, *others = members
        self.first: nn.Module = first
        self.others = nn.ModuleList(
            other if its == ranges[0] else nn.Sequential(_Renormalised(ranges[0], its), other)
            for other, its in zip(others, ranges[1:], strict=True)
        )
        # What timm's networks declare of themselves, so that a combination has the declarations of its first network.
        self.pretrained_cfg = getattr(first, "pretrained_cfg", {})
        self.output_fmt = getattr(first, "output_fmt", "NCHW")
        self.num_prefix_tokens = getattr(first, "num_prefix_tokens", 0)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the features, those of the first network first."""
        return torch.cat([self.first(x), *(other(x) for other in self.others)], 1)


@final
class _Renormalised(nn.Module):
    """Pixels normalised for one network -> pixels normalised for another one."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self, given: tuple[Sequence[float], Sequence[float]], wanted: tuple[Sequence[float], Sequence[float]]
    ) -> None:
        super().__init__()
        (mean, std), (other_mean, other_std) = (map(torch.tensor, pair) for pair in (given, wanted))
        self.register_buffer("scale", (std / other_std).view(1, 3, 1, 1))
        self.register_buffer("shift", ((mean - other_mean) / other_std).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def networks(module: nn.Module) -> list[str]:
    """Names of the networks in a module, with which the names of their layers begin; "" for a single network."""
    if not isinstance(module, SideBySide):
        return [""]
    return [FIRST, *(f"{OTHERS}.{place}" for place in range(len(module.others)))]


def network_of(layer: str, module: nn.Module) -> str:
    """The name of the network that a layer belongs to, see ``networks``; ``JOINING`` for none."""
    if not isinstance(module, SideBySide):
        return ""
    return next((name for name in networks(module) if f"{layer}.".startswith(f"{name}.")), JOINING)


def members_of(module: nn.Module) -> dict[str, nn.Module]:
    """Path of each network as timm created it -> the network, the first one first; "" for a single network."""
    if not isinstance(module, SideBySide):
        return {"": module}
    found = {FIRST: module.first}
    for place, other in enumerate(module.others):
        if isinstance(other, nn.Sequential) and isinstance(other[0], _Renormalised):
            found[f"{OTHERS}.{place}.1"] = other[1]
        else:
            found[f"{OTHERS}.{place}"] = other
    return found
