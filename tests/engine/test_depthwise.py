"""The fast gradient of depthwise filters is the gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from headstart.engine.depthwise import Edges, depthwise_conv, evenly_padded, is_depthwise

KERNELS = [(3, 3), (5, 5), (7, 7), (3, 5), (7, 4), (1, 5), (6, 3), (2, 2)]
STRIDES = [(1, 1), (2, 2), (1, 2), (3, 1)]
PADDINGS: list[Edges] = [
    ((0, 0), (0, 0)),
    ((2, 2), (2, 2)),
    ((1, 2), (0, 1)),
    ((0, 3), (2, 2)),
    ((7, 7), (8, 6)),
    ((8, 8), (8, 8)),
]


def tensors(kernel: tuple[int, int], *, batch: int, size: tuple[int, int], channels: int = 3) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, channels, *size), (channels, 1, *kernel), (channels,)
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)


def usual(x: Tensor, weight: Tensor, bias: Tensor, *, stride: tuple[int, ...], padding: Edges) -> Tensor:
    (top, bottom), (left, right) = padding
    return functional.conv2d(functional.pad(x, [left, right, top, bottom]), weight, bias, stride, groups=len(weight))


def results(function: object, x: Tensor, weight: Tensor, bias: Tensor, **options: object) -> list[Tensor]:
    y = function(x, weight, bias, **options)  # type: ignore[operator]
    ramp = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y, *torch.autograd.grad((y * ramp + y.square()).sum(), (x, weight, bias))]


@pytest.mark.parametrize("kernel", KERNELS)
def test_output_and_gradients_are_pytorchs_own(kernel: tuple[int, int]) -> None:
    for stride, padding, batch, size in itertools.product(STRIDES, PADDINGS, (1, 3), ((7, 9), (8, 11))):
        inputs = tensors(kernel, batch=batch, size=size)
        given = results(depthwise_conv, *inputs, stride=stride, padding=padding)
        expected = results(usual, *inputs, stride=stride, padding=padding)
        for one, other in zip(given, expected, strict=True):
            assert one.shape == other.shape
            assert torch.allclose(one, other, rtol=1e-10, atol=1e-10), (stride, padding, batch, size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((5, 5), (1, 1), ((2, 2), (2, 2))), ((5, 5), (2, 2), ((1, 2), (1, 2))), ((3, 4), (2, 1), ((0, 1), (3, 0)))],
)
def test_its_gradients_are_the_slopes_of_its_output(
    kernel: tuple[int, int], stride: tuple[int, int], padding: Edges
) -> None:
    inputs = tensors(kernel, batch=1, size=(5, 6), channels=2)

    def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_conv(x, weight, bias, stride=stride, padding=padding)

    assert torch.autograd.gradcheck(convolve, inputs)
    assert torch.autograd.gradgradcheck(convolve, inputs)


@pytest.mark.parametrize("needed", [(True, True, True), (True, True, False), (False, True, True), (False, True, False)])
def test_single_precision_uses_another_algorithm_with_the_same_gradients(needed: tuple[bool, ...]) -> None:
    for kernel, stride, padding in itertools.product([(5, 5), (7, 4)], STRIDES, PADDINGS):
        exact = tensors(kernel, batch=2, size=(8, 11))
        inputs = [t.detach().float().requires_grad_(n) for t, n in zip(exact, needed, strict=True)]
        y = depthwise_conv(*inputs, stride=stride, padding=padding)
        expected = usual(*exact, stride=stride, padding=padding)
        assert torch.allclose(y.double(), expected, atol=1e-4)
        ramp = torch.linspace(-1, 1, y.numel()).view_as(y)
        y.backward(ramp)
        expected.backward(ramp.double())
        for one, other, own in zip(inputs, exact, needed, strict=True):
            if not own:
                assert one.grad is None
                continue
            assert one.grad is not None
            assert other.grad is not None
            assert torch.allclose(one.grad.double(), other.grad, rtol=1e-4, atol=1e-4), (kernel, stride, padding)


@pytest.mark.parametrize(
    "needed", [(True, True, False), (False, True, True), (True, False, True), (False, True, False)]
)
def test_only_the_gradients_that_are_asked_for_are_given(needed: tuple[bool, ...]) -> None:
    inputs = [t.detach().requires_grad_(n) for t, n in zip(tensors((5, 5), batch=2, size=(8, 8)), needed, strict=True)]
    depthwise_conv(*inputs, stride=(1, 1), padding=((2, 2), (2, 2))).sum().backward()
    assert tuple(t.grad is not None for t in inputs) == needed


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_low_precision_and_memory_layout_change_nothing_else(layout: torch.memory_format) -> None:
    exact = tensors((5, 5), batch=4, size=(9, 9), channels=16)
    inputs = [t.detach().bfloat16().requires_grad_() for t in exact]
    inputs[0] = inputs[0].detach().contiguous(memory_format=layout).requires_grad_()
    options = {"stride": (1, 1), "padding": ((2, 2), (2, 2))}
    given = results(depthwise_conv, *inputs, **options)
    expected = results(usual, *(t.detach().double().requires_grad_() for t in inputs), **options)
    for one, other in zip(given, expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert float((one - other).detach().norm() / other.detach().norm()) < 0.01


def test_large_filters_use_the_fast_gradient_only_when_it_is_needed() -> None:
    x = torch.randn(2, 64, 7, 7).bfloat16().contiguous(memory_format=torch.channels_last)
    bias = torch.zeros(64).bfloat16()

    def run(side: int, trained: int) -> Tensor:
        weight = torch.ones(64, 1, side, side).bfloat16().requires_grad_(bool(trained))
        edge = (side // 2, side // 2)
        return depthwise_conv(x.detach().requires_grad_(), weight, bias, stride=(1, 1), padding=(edge, edge))

    ways = {
        (side, trained): "LargeDepthwise" in str(run(side, trained).grad_fn) for side in (3, 5) for trained in (0, 1)
    }
    assert ways == {(3, 0): False, (3, 1): False, (5, 0): False, (5, 1): True}
    assert torch.equal(run(5, 1), run(5, 0))


def test_padding_is_left_to_the_convolution_where_it_is_even() -> None:
    x = torch.randn(1, 2, 4, 5)
    assert evenly_padded(x, ((1, 1), (2, 2))) == (x, (1, 2))
    padded, edge = evenly_padded(x, ((1, 2), (2, 2)))
    assert (padded.shape, edge) == ((1, 2, 7, 9), (0, 0))


def test_what_is_depthwise() -> None:
    assert is_depthwise(nn.Conv2d(8, 8, 3, groups=8))
    assert not is_depthwise(nn.Conv2d(8, 8, 3, groups=4))
    assert not is_depthwise(nn.Conv2d(8, 16, 3, groups=8))
    assert not is_depthwise(nn.Conv2d(8, 8, 3, groups=8, dilation=2))
    assert not is_depthwise(nn.Conv2d(1, 1, 3))
