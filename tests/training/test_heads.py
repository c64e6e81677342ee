"""Heads: what is written is what is built, and what is built is what the field means by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from headstart.backbone.layers import Layout
from headstart.errors import OptionError
from headstart.training.head_spec import HeadSpec
from headstart.training.heads import (
    LayeredHead,
    NeighbourHead,
    OneLogit,
    RbfHead,
    build_head,
    head_from,
    linear_head,
)


def kinds(head: nn.Module) -> list[str]:
    return [type(part).__name__ for part in head.children()]


def test_deep_and_convolution_heads_have_the_tutorials_layers() -> None:
    deep = build_head(HeadSpec.parse("1024-512-0.2"), (1280,), 5)
    assert kinds(deep) == ["Linear", "ReLU", "Linear", "ReLU", "Dropout", "Linear"]
    assert [tuple(p.shape) for p in deep.parameters() if p.ndim > 1] == [(1024, 1280), (512, 1024), (5, 512)]
    convolving = build_head(HeadSpec.parse("conv1280-flatten"), (160, 7, 7), 5)
    assert kinds(convolving) == ["ToMap", "Conv2d", "BatchNorm2d", "ReLU", "Pool", "Linear"]
    assert convolving[-1].in_features == 1280 * 49  # type: ignore[union-attr]
    assert convolving(torch.randn(2, 160, 7, 7)).shape == (2, 5)


LAYOUTS = [(Layout(), (6, 3, 3)), (Layout(channels_last=True), (3, 3, 6)), (Layout(prefix_tokens=1), (10, 6))]


@pytest.mark.parametrize(("layout", "shape"), LAYOUTS)
def test_a_convolution_reads_the_channels_of_every_layout(layout: Layout, shape: tuple[int, ...]) -> None:
    head = build_head(HeadSpec.parse("conv4-avg"), shape, 2, layout).eval()
    _, convolution, norm, _, _, last = head
    x = torch.randn(3, *shape)
    if layout.prefix_tokens:
        places = x[:, 1:]
    else:
        places = x.flatten(1, 2) if layout.channels_last else x.flatten(2).transpose(1, 2)
    assert places.shape == (3, 9, 6)
    mixed = norm((places @ convolution.weight.flatten(1).T).transpose(1, 2).unsqueeze(-1))  # type: ignore[operator, union-attr]
    assert torch.allclose(head(x), last(mixed.relu().mean((2, 3))), atol=1e-5)


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(OptionError, match="needs a map"):
        build_head(HeadSpec.parse("conv8"), (64,), 2)
    with pytest.raises(OptionError, match="choose a pooling"):
        build_head(HeadSpec.parse("512"), (64, 7, 7), 2)
    with pytest.raises(OptionError, match="there are 3"):
        build_head(HeadSpec(single=True), (64,), 3)


def test_one_logit_is_the_sigmoid_and_its_loss_the_binary_cross_entropy() -> None:
    head = build_head(HeadSpec(widths=(4,), single=True), (6,), 2)
    x, labels = torch.randn(9, 6), torch.arange(9) % 2
    logit = nn.Sequential(*list(head)[:-1])(x)
    assert isinstance(head[-1], OneLogit)
    assert torch.allclose(head(x).softmax(1)[:, 1:], logit.sigmoid(), atol=1e-6)
    expected = nn.functional.binary_cross_entropy_with_logits(logit[:, 0], labels.float())
    assert torch.allclose(nn.functional.cross_entropy(head(x), labels), expected, atol=1e-6)


def test_every_head_comes_back_from_its_document_and_tensors() -> None:
    torch.manual_seed(0)
    features = nn.functional.normalize(torch.randn(20, 6), dim=1)
    heads: list[nn.Module] = [
        linear_head(np.ones((1, 6)), np.zeros(1), single=True),
        build_head(HeadSpec.parse("8-4-0.5"), (6,), 2),
        NeighbourHead(features, torch.arange(20) % 2, 2, 5, 0.1),
        RbfHead(torch.randn(4, 6), torch.zeros(6), torch.ones(6), torch.randn(4, 2), torch.zeros(2), 0.2),
    ]
    x = torch.randn(7, 6)
    for head in heads:
        again = head_from(head.about, head.state_dict(), 2)  # type: ignore[arg-type]
        assert torch.equal(again(x), head.eval()(x))
        assert not any(p.requires_grad for p in again.parameters())
    with pytest.raises(RuntimeError):
        head_from(heads[1].about, heads[0].state_dict(), 2)  # type: ignore[arg-type]
    assert isinstance(heads[0], LayeredHead)


def test_neighbours_vote_by_how_near_they_are() -> None:
    known = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    head = NeighbourHead(known, torch.tensor([0, 1, 1]), 3, 2, 0.5)
    votes = torch.exp(torch.tensor([1.0, 0.8]) / 0.5)
    expected = torch.tensor([votes[0], votes[1]]) / votes.sum()
    assert torch.allclose(head(torch.tensor([[3.0, 0.0]])).exp()[0, :2], expected, atol=1e-6)
    assert head(torch.tensor([[3.0, 0.0]]))[0, 2] < -10
