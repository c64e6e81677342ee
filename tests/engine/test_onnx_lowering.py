"""Lowered networks give PyTorch's output; unsupported operations are refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm.layers
import torch
from timm.layers import pool2d_same
from torch import Tensor, nn
from torch.nn import functional

from headstart.backbone.pixel_net import ActivationNet, FeatureNet, PixelNet, TappedNet, split_backbone
from headstart.backbone.weights import Backbone, random_backbone
from headstart.engine.onnx_graph import NotLowered
from headstart.engine.onnx_lowering import onnx_bytes

ARCHITECTURES = {
    "tf_efficientnet_lite0": 64,
    "mobilenetv2_100": 64,
    "mobilenetv3_large_100": 64,
    "mobilenetv4_conv_small": 64,
    "resnet18": 64,
    "resnet50": 64,
    "resnetv2_50": 64,
    "vgg16": 224,
    "densenet121": 64,
    "tf_efficientnetv2_s": 64,
    "regnety_016": 64,
    "legacy_xception": 96,
    "convnext_tiny": 64,
    "hgnetv2_b0": 64,
    "tf_mixnet_s": 64,
    "vit_small_patch16_224": 64,
    "vit_small_patch16_dinov3": 64,
    "swin_tiny_patch4_window7_224": 224,
}
"""Side of the images, in pixels: small, for the test's sake."""


def pixels(count: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def lively(name: str, side: int) -> Backbone:
    """Random weights with statistics of the images, so that activations are neither large nor nothing."""
    backbone = random_backbone(name, image_size=side)
    generator = torch.Generator().manual_seed(0)
    for module in backbone.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
            module.bias.copy_(0.4 * torch.rand(module.bias.shape, generator=generator) - 0.2)
    if any(isinstance(module, nn.BatchNorm2d) for module in backbone.module.modules()):
        net = FeatureNet(backbone)
        backbone.module.train()
        backbone.module(net.normalised(torch.from_numpy(pixels(16, side, seed=99))))
        backbone.module.eval()
    return backbone


def runs(net: PixelNet) -> Callable[[np.ndarray], np.ndarray]:
    session = onnxruntime.InferenceSession(onnx_bytes(net), providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {"pixels": batch})[0]


def assert_equal(net: PixelNet, side: int, counts: tuple[int, ...] = (1, 5)) -> None:
    """To 1e-4 of the largest output; where random weights make much of little, to what plain PyTorch is off itself."""
    run, double = runs(net), copy.deepcopy(net).double()
    for count in counts:
        batch = pixels(count, side, seed=count)
        with torch.inference_mode():
            plain, exact = (which(torch.from_numpy(batch)).numpy() for which in (net, double))
        given = run(batch)
        assert (given.shape, given.dtype) == (plain.shape, plain.dtype)
        size = np.abs(exact).max()
        assert np.abs(given - exact).max() < max(1e-4 * size, 3 * np.abs(plain - exact).max())


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def assert_parts_are_equal(name: str, side: int, *, at_most: int) -> None:
    backbone = lively(name, side)
    split = split_backbone(backbone)
    assert_equal(FeatureNet(backbone), side)
    inner = [boundary.name for boundary in split.boundaries[1:-1]]
    for place in inner[:: -(-len(inner) // at_most)]:
        assert_equal(ActivationNet(backbone, place, split.prefix(place)), side, (3,))
    assert_equal(TappedNet(backbone, place, split.tapped(place)), side, (3,))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_a_lowered_network_gives_what_pytorch_gives_whole_in_part_and_tapped(name: str) -> None:
    assert_parts_are_equal(name, 64, at_most=2)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lowered_networks_of_every_kind_give_what_pytorch_gives(name: str) -> None:
    assert_parts_are_equal(name, ARCHITECTURES[name], at_most=4)


class Does(nn.Module):
    """A convolution, so that there are numbers of both signs, and a function of its output."""

    def __init__(self, does: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.does = does

    def forward(self, x: Tensor) -> Tensor:
        return self.does(self.conv(x))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("test_resnet", image_size=31)


def conv(*args: Any, **options: Any) -> nn.Module:
    return nn.Conv2d(8, *args, **options)


def scaled(x: Tensor) -> Tensor:
    return x * torch.linspace(-1, 1, 8).view(1, 8, 1, 1).expand(len(x), -1, -1, -1)


LAYERS: dict[str, Callable[[Tensor], Tensor]] = {
    "same, uneven": timm.layers.Conv2dSame(8, 4, 3, stride=2),  # type: ignore[attr-defined]
    "same by PyTorch": conv(4, (2, 5), padding="same", dilation=2),
    "grouped, dilated": conv(16, 3, padding=(2, 1), groups=4, dilation=(2, 1), stride=(1, 2), bias=False),
    "padded before": lambda x: functional.conv2d(
        functional.pad(x, (1, 0, 2, 1)), torch.ones(2, 8, 3, 3, dtype=x.dtype), padding=1
    ),
    "batch norm alone": nn.BatchNorm2d(8).eval(),
    "group norm": nn.GroupNorm(4, 8),
    "layer norm": timm.layers.LayerNorm2d(8),  # type: ignore[attr-defined]
    "max, to the ceiling": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "max, dilated": nn.MaxPool2d(2, 3, dilation=2),
    "max, same": pool2d_same.MaxPool2dSame(3, 2),  # type: ignore[attr-defined]
    "mean, to the ceiling": nn.AvgPool2d(2, 2, ceil_mode=True),
    "mean, padding not counted": nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "mean, padding counted": nn.AvgPool2d(3, 2, 1),
    "mean, same": pool2d_same.AvgPool2dSame(3, 2),  # type: ignore[attr-defined]
    "mean of everything": nn.AdaptiveAvgPool2d(1),
    "maximum of everything": lambda x: x.amax((2, 3)),
    "activations": lambda x: torch.cat(
        [
            functional.relu6(x),
            functional.leaky_relu(x, 0.2),
            functional.silu(x),
            functional.hardswish(x),
            functional.hardsigmoid(x),
            functional.gelu(x),
            functional.gelu(x, approximate="tanh"),
            x.tanh(),
            x.clamp(min=0.1),
        ],
        1,
    ),
    "arithmetic": lambda x: (2 - x) * 3 + torch.sub(x, x.sigmoid(), alpha=0.5) / (1 + x**2).sqrt() - (-x).abs().exp(),
    "in place": lambda x: nn.functional.relu(x.mul_(x.sigmoid()).add_(0.1), inplace=True),
    "cut up": lambda x: torch.cat([*x.chunk(2, 1)[::-1], x[:, 1:3], x[:, -1:].roll(2, -1)], 1).flatten(1),
    "turned": lambda x: x.flatten(2).transpose(1, 2).unsqueeze(1).mean(2).squeeze(1),
    "with constants": scaled,
    "a token before": lambda x: torch.cat([torch.ones(1, 1, 8).expand(len(x), -1, -1), x.flatten(2).mT], 1),
    "attention": lambda x: functional.scaled_dot_product_attention(*[x.flatten(2).mT.unsqueeze(1)[:, :, :50]] * 3),
    "to length one": functional.normalize,
    "matrices": lambda x: (x @ x.mT).softmax(-1),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_gives_what_pytorch_gives(backbone: Backbone, layer: str) -> None:
    torch.manual_seed(0)
    assert_equal(PixelNet(backbone, Does(LAYERS[layer]).eval()), 31, (1, 3))


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "unknown": (lambda x: torch.fft.rfft(x).real, "operation _fft_r2c is not supported"),
    "depends on numbers": (lambda x: x if x.mean() > 0 else -x, "over the batch axis"),
    "of one image": (lambda x: x[:1], "images are treated differently"),
    "of its batch": (lambda x: x - x.mean(0), "over the batch axis"),
    "a norm that learns": (nn.BatchNorm2d(8).train(), "statistics of the batch"),
    "overwritten through a view": (lambda x: (x.flatten(1).relu_(), x + 1)[1], "overwritten"),
    "two outputs": (lambda x: (x, x), "its output is not a float32 tensor"),
    "nothing of the image": (lambda x: torch.ones(len(x), 3), "its output is not a float32 tensor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_lowered_is_refused_and_says_what_it_is(backbone: Backbone, case: str) -> None:
    does, why = REFUSED[case]
    net = PixelNet(backbone, Does(does))
    if isinstance(does, nn.Module):
        does.train()
    with pytest.raises(NotLowered, match=why):
        onnx_bytes(net)


def test_the_same_network_gives_the_same_bytes() -> None:
    one, two = (onnx_bytes(FeatureNet(random_backbone("test_resnet", image_size=64, seed=3))) for _ in range(2))
    assert one == two


def test_more_weights_than_one_file_holds_are_refused(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.engine.onnx_graph.MAX_WEIGHT_BYTES", 10_000)
    with pytest.raises(NotLowered, match="exceed the size limit of an ONNX file"):
        onnx_bytes(FeatureNet(backbone))
