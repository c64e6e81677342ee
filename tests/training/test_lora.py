"""Low-rank adaptation: it begins as the network, and the merged network gives the same outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from headstart.backbone.split import SplittableBackbone
from headstart.backbone.weights import random_backbone
from headstart.training.heads import linear_head
from headstart.training.lora import ALPHA, LowRankUpdate, adaptable_weights, num_factors, with_low_rank_updates
from headstart.training.suffix_classifier import SuffixClassifier
from headstart.training.tuning import Tuning, trained_counts


class Inner(nn.Module):
    """torch.fx does not trace into it."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.read = nn.Linear(12, 12), nn.Linear(12, 12)
        self.register_buffer("shift", torch.ones(12))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.called(x), self.read.weight, self.read.bias) + self.shift


class Network(nn.Module):
    """Linear layers that are called, called twice, whose weight is read, or that are inside of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.twice, self.read, self.inner = (
            nn.Linear(12, 12),
            nn.Linear(12, 12),
            nn.Linear(12, 12),
            Inner(),
        )
        self.conv, self.narrow = nn.Conv1d(5, 5, 1), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.twice(self.twice(self.called(x))))
        return self.narrow(self.inner(functional.linear(x, self.read.weight)))


class LeafTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Inner) or super().is_leaf_module(m, module_qualified_name)


ADAPTED = ["called.weight", "twice.weight", "read.weight", "inner.called.weight", "inner.read.weight"]


@pytest.fixture
def network() -> tuple[Network, fx.GraphModule]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Network().eval().requires_grad_(False)
    return module, fx.GraphModule(module, LeafTracer().trace(module))


def at_random(updates: dict[str, LowRankUpdate]) -> None:
    generator = torch.Generator().manual_seed(1)
    for update in updates.values():
        update.lora_b.data.normal_(std=0.05, generator=generator)


def test_every_linear_layer_has_an_update_which_begins_at_zero_and_can_be_merged(
    network: tuple[Network, fx.GraphModule],
) -> None:
    module, part = network
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = torch.randn(3, 5, 12)
    expected = module(x)
    adapted, updates = with_low_rank_updates(part, module, rank=2, seed=0)
    assert sorted(updates) == sorted(ADAPTED)
    assert torch.equal(adapted(x), expected)
    at_random(updates)
    given = adapted(x)
    assert (given - expected).abs().max() > 0.01
    assert torch.equal(module(x), expected)
    assert torch.equal(part(x), expected)
    for name, update in updates.items():
        product = update.product()
        update.merge_into(module.get_parameter(name))
        assert torch.allclose(module.get_parameter(name), before[name] + product, atol=1e-7)
    assert (module(x) - given).abs().max() < 1e-5
    assert (adapted(x) - given).abs().max() < 1e-5
    assert module.state_dict().keys() == before.keys()


def test_gradients_reach_the_factors_and_nothing_else(network: tuple[Network, fx.GraphModule]) -> None:
    module, part = network
    adapted, updates = with_low_rank_updates(part, module, rank=2, seed=0)
    at_random(updates)
    adapted(torch.randn(3, 5, 12)).square().sum().backward()
    factors = [factor for update in updates.values() for factor in update.parameters()]
    assert all(factor.grad is not None and factor.grad.abs().max() > 0 for factor in factors)
    assert all(p.grad is None for p in module.parameters())


def test_a_layer_is_skipped_whose_update_would_not_be_smaller(network: tuple[Network, fx.GraphModule]) -> None:
    """A rank of 6 has as many weights as a 12 x 12 layer; the layer of two outputs has fewer from rank 2 on."""
    module, part = network
    assert sorted(adaptable_weights(part, module, 1)) == sorted([*ADAPTED, "narrow.weight"])
    assert sorted(adaptable_weights(part, module, 5)) == sorted(ADAPTED)
    assert adaptable_weights(part, module, 6) == {}
    assert num_factors(torch.Size((12, 2)), 3) == 42


def test_the_scale_keeps_the_size_of_an_update_when_the_rank_grows() -> None:
    weight = torch.zeros(20, 30)
    update = LowRankUpdate(weight, 4, torch.Generator().manual_seed(0))
    assert update.scale == ALPHA / 4
    update.lora_b.data.fill_(1.0)
    x = torch.randn(7, 30)
    assert torch.allclose(update(x), x @ update.product().T, atol=1e-5)
    assert torch.allclose(update.product(), update.scale * update.lora_a.sum(0).expand(20, -1), atol=1e-6)
    assert update.lora_a.abs().max() <= 30**-0.5


CALLED = [("vit_tiny_patch16_224", "blocks.9"), ("vit_small_patch16_224", "blocks.9"), ("convnext_tiny", "stages.2")]
READ = [("eva02_tiny_patch14_224", "blocks.9")]
INSIDE = [("tiny_vit_5m_224", "stages.2"), ("twins_svt_small", "blocks.2.3")]


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "boundary"), [*CALLED, *READ, *INSIDE])
def test_a_merged_backbone_gives_the_same_outputs(architecture: str, boundary: str) -> None:
    """Networks that call their linear layers, that read their weights, and that torch.fx does not trace into."""
    module = random_backbone(architecture, seed=1).module
    for name, parameter in module.named_parameters():
        if name.endswith("gamma"):  # 1e-6 where nothing has been trained
            parameter.fill_(1.0)
    split = SplittableBackbone(module, height=224, width=224)
    head = linear_head(np.random.default_rng(0).normal(size=(3, *split.boundaries[-1].shape)) / 10, np.zeros(3))
    classifier = SuffixClassifier(split, boundary, head, tuning=Tuning("lora"))
    assert set(classifier.updates) == set(trained_counts(split, boundary, Tuning("lora")))
    at_random(classifier.updates)
    x = torch.randn(2, *next(b.shape for b in split.boundaries if b.name == boundary))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        plain, given = head(split.suffix(boundary)(x)), classifier(x)
        with classifier.merged():
            merged = head(split.suffix(boundary)(x))
        again = classifier(x)
    assert (given - plain).abs().max() > 1e-2
    assert (merged - given).abs().max() < 1e-5 * max(1.0, float(given.abs().max()))
    assert torch.equal(again, given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
