"""Low-rank adaptation (LoRA): a frozen linear layer plus a trained update of low rank, which is merged in the end.

The update of an (out, in) weight is ``scale * lora_b @ lora_a``, with factors of shapes (out, rank) and (rank, in). It
starts at zero, because ``lora_b`` does. Only the factors are trained; the weight stays as it is until the update is
merged into it, after which the network has its original layers and parameter names.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv 2106.09685).
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

ALPHA = 8.0
"""Numerator of the scale: constant, so that another rank needs no other learning rate (section 4.1 of the paper)."""


class LowRankUpdate(nn.Module):
    """The two factors of the update of one weight.

    Args:
        weight: (out, in) of the frozen layer; its shape, dtype and device are used.
        rank: of the update.
        generator: draws ``lora_a`` on the CPU.

    Attributes:
        lora_a: (rank, in); uniform in +-1/sqrt(in), as in the authors' implementation.
        lora_b: (out, rank); zeros.
        scale: ``ALPHA`` / rank.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        bound = columns**-0.5
        drawn = torch.empty(rank, columns).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(drawn.to(weight.device, weight.dtype))
        self.lora_b = nn.Parameter(weight.new_zeros(rows, rank))
        self.scale = ALPHA / rank

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), the update's share of the layer's output."""
        return functional.linear(functional.linear(x, self.lora_a), self.lora_b) * self.scale

    def product(self) -> Tensor:
        """(out, in): the update itself."""
        return self.lora_b @ self.lora_a * self.scale

    def merge_into(self, weight: nn.Parameter) -> None:
        """Adds the update to the weight and becomes zero, so that the sum of both stays the same.

        The sum is computed in float64 and rounded once.
        """
        with torch.no_grad():
            lora_a, lora_b = self.lora_a.cpu().double(), self.lora_b.cpu().double()
            weight.copy_(weight.cpu().double() + lora_b @ lora_a * self.scale)
            self.lora_b.zero_()


class _LowRankLinear(nn.Module):
    """A linear layer with its update; the weight gets no gradient, which saves a third of the backward pass."""

    def __init__(self, linear: nn.Linear, update: LowRankUpdate) -> None:
        super().__init__()
        self.linear, self.update = linear, update

    @property
    def weight(self) -> Tensor:
        """(out, in) with the update, for networks that read the weight of a layer without calling the layer."""
        return self.linear.weight + self.update.product()

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear(x) + self.update(x))


class _Weight(nn.Module):
    """The weight of a linear layer with its update, as a node of a graph."""

    def __init__(self, layer: _LowRankLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Tensor:
        return self.layer.weight


def num_factors(shape: torch.Size, rank: int) -> int:
    """Number of trained weights of the update of an (out, in) weight."""
    rows, columns = shape
    return rank * (rows + columns)


def adaptable_weights(part: fx.GraphModule, network: nn.Module, rank: int) -> dict[str, Tensor]:
    """The weights of a part's linear layers for which an update has fewer weights than the layer.

    Args:
        part: of the network, traced.
        network: whose layers it names.
        rank: of the updates.

    Returns:
        Name in the network -> (out, in) weight, in execution order.
    """
    found: dict[str, Tensor] = {}
    for node in part.graph.nodes:
        for path, layer in _linear_layers(network, node):
            if num_factors(layer.weight.shape, rank) < layer.weight.numel():
                found[f"{path}.weight"] = layer.weight
    return found


def with_low_rank_updates(
    part: fx.GraphModule, network: nn.Module, *, rank: int, seed: int
) -> tuple[fx.GraphModule, dict[str, LowRankUpdate]]:
    """The same part of a network, with an update for each of ``adaptable_weights``.

    Args:
        part: a traced part; not changed. Its parameters are shared.
        network: whose layers it names.
        rank: of the updates.
        seed: of the first factors.

    Returns:
        The part, and {name of the weight in the network: its update}.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = adaptable_weights(part, network, rank)
    updates = {name: LowRankUpdate(weight, rank, generator) for name, weight in weights.items()}
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(part.graph, copies))
    adapted = fx.GraphModule(part, graph)
    for node in list(adapted.graph.nodes):
        layers = {
            path: _LowRankLinear(layer, updates[f"{path}.weight"])
            for path, layer in _linear_layers(network, node)
            if f"{path}.weight" in updates
        }
        if layers:
            _replace(adapted, node, network, layers)
    adapted.delete_all_unused_submodules()
    adapted.recompile()
    return adapted, updates


def _linear_layers(network: nn.Module, node: fx.Node) -> list[tuple[str, nn.Linear]]:
    """(path, layer) of the linear layers that a node calls, also inside a layer, or whose weight it reads."""
    target = str(node.target)
    if node.op == "call_module":
        inside = network.get_submodule(target).named_modules(prefix=target)
        return [(path, layer) for path, layer in inside if isinstance(layer, nn.Linear)]
    owner, _, attribute = target.rpartition(".")
    if node.op == "get_attr" and attribute == "weight":
        layer = network.get_submodule(owner)
        return [(owner, layer)] if isinstance(layer, nn.Linear) else []
    return []


def _replace(adapted: fx.GraphModule, node: fx.Node, network: nn.Module, layers: dict[str, _LowRankLinear]) -> None:
    """Replaces the layer that a node calls, or the weight that it reads, by one with updates."""
    target = str(node.target)
    name = f"_lora_{target.replace('.', '_')}"
    if node.op == "get_attr":
        adapted.add_submodule(name, _Weight(next(iter(layers.values()))))
        with adapted.graph.inserting_before(node):
            node.replace_all_uses_with(adapted.graph.call_module(name))
        adapted.graph.erase_node(node)
        return
    called = layers[target] if target in layers else _with_layers(network.get_submodule(target), target, layers)
    adapted.add_submodule(name, called)
    node.target = name


def _with_layers(module: nn.Module, path: str, layers: dict[str, _LowRankLinear]) -> nn.Module:
    """A copy of a layer that torch.fx does not trace into, with its linear layers replaced; parameters are shared."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    copied = copy.deepcopy(module, shared)
    for inner, layer in layers.items():
        copied.set_submodule(inner.removeprefix(f"{path}."), layer)
    return copied
