"""Compute cost of an architecture: its parameters, and the multiply-accumulate operations for one image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from headstart.backbone.shapes import blank_input
from headstart.backbone.weights import build_architecture
from headstart.concurrency import start_method_kept
from headstart.deferred_compiler import compiler_deferred
from headstart.engine.torch_internals import flop_counter


@dataclass(frozen=True)
class ComputeCost:
    """Size and cost of a backbone without its classifier.

    Attributes:
        parameters: number of weights, without BatchNorm statistics.
        gmacs: multiply-accumulate operations for one image, in billions: convolutions, matrix products and attention.
    """

    parameters: int
    gmacs: float


@cache
def compute_cost(name: str, image_size: int) -> ComputeCost:
    """Counts the parameters and operations of an architecture, without computing and without memory for its weights.

    Args:
        name: timm's name.
        image_size: side of the square input in pixels.

    Raises:
        OptionError: no such architecture, or it does not accept images of this size.
    """
    with torch.device("meta"), torch.no_grad(), compiler_deferred(), start_method_kept():
        module = build_architecture(name, image_size=image_size)
        with flop_counter() as counter:
            module(blank_input(module, (1, 3, image_size, image_size)))
    parameters = sum(weight.numel() for weight in module.parameters())
    return ComputeCost(parameters, round(counter.get_total_flops() / 2e9, 3))
