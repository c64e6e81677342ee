from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from random_images import COLOURS, random_image
from torch import nn

from headstart.backbone.feature_spec import FeatureSpec
from headstart.backbone.pixel_net import FeatureNet, split_backbone
from headstart.backbone.weights import random_backbone
from headstart.model import Model
from headstart.reports import gradcam
from headstart.reports.gradcam import GradCam, heat_map_jpeg, heat_map_overlay, heat_maps
from headstart.training.recipe import Recipe

SIDE = 64


def model_of(architecture: str, *, side: int = SIDE, pool: str = "auto") -> Model:
    net = FeatureNet(random_backbone(architecture, image_size=side, seed=0), FeatureSpec(pool))
    width = net(torch.zeros(1, side, side, 3, dtype=torch.uint8)).shape[1]
    torch.manual_seed(0)
    head = nn.Linear(width, 3)
    return Model(net, head, list(COLOURS), recipe=Recipe(), data={}, scores={})


def pixels(count: int, side: int = SIDE) -> list[np.ndarray]:
    return [np.asarray(random_image(i, size=(side, side))) for i in range(count)]


@pytest.mark.parametrize(
    ("architecture", "side"),
    [
        ("resnet18", 64),
        ("convnext_atto", 64),
        pytest.param("swin_tiny_patch4_window7_224", 64, marks=pytest.mark.exhaustive),
        pytest.param("vit_tiny_patch16_224", 64, marks=pytest.mark.exhaustive),
    ],
)
def test_maps_are_coarse_and_from_0_to_1_whatever_the_layout(architecture: str, side: int) -> None:
    maps = heat_maps(model_of(architecture, side=side), pixels(6, side), [0, 1, 2, 0, 1, 2])
    assert maps is not None
    assert len(maps) == 6
    for own in maps:
        assert own.ndim == 2
        assert 2 <= min(own.shape) < side
        assert own.min() >= 0
        assert own.max() <= 1
    assert any(own.max() == 1 for own in maps)  # the map is 0 if no region supports the class


@pytest.mark.slow
def test_the_heat_is_grad_cam() -> None:
    """Reference: channels of the activation, weighted by the mean gradient of the logit."""
    model = model_of("resnet18")
    shown = pixels(2)
    maps = heat_maps(model, shown, [2, 0])
    assert maps is not None
    split = split_backbone(model.net.backbone)
    name = next(b.name for b in reversed(split.boundaries) if len(b.shape) == 3 and b.shape[1] >= 2)
    made = split.prefix(name)(model.net.normalised(torch.from_numpy(np.stack(shown)))).requires_grad_()
    logits = model.head(split.suffix(name)(made))
    (gradient,) = torch.autograd.grad(logits[0, 2] + logits[1, 0], made)
    expected = (gradient.mean((2, 3), keepdim=True) * made).sum(1).relu().detach()
    for own, whole in zip(maps, expected, strict=True):
        assert np.allclose(own, (whole / whole.max().clamp(min=1e-12)).numpy(), atol=1e-4)


def test_no_images_give_no_heat_maps() -> None:
    assert heat_maps(model_of("resnet18"), [], []) is None


def test_the_overlay_is_bright_where_the_map_is_high() -> None:
    grey = np.full((40, 40, 3), 90, np.uint8)
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0] = 1
    shown = np.asarray(Image.open(io.BytesIO(heat_map_jpeg(heat_map_overlay(grey, heat)))))
    assert shown.shape == (40, 40, 3)
    warm, cold = shown[3, 3].astype(int), shown[35, 35].astype(int)
    assert warm[0] > cold[0] + 60
    assert np.abs(cold - 90).max() < 12


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["resnet18", "tf_efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224"])
def test_the_layer_found_by_hooks_is_the_deepest_place_where_the_network_can_be_cut(architecture: str) -> None:
    model = model_of(architecture)
    shown = pixels(2)
    network, layer = gradcam._cut_in_two(model.net)
    assert layer is not None
    expected = gradcam._grad_cam(network, layer, model.head, torch.from_numpy(np.stack(shown)), torch.tensor([1, 2]))
    maps = heat_maps(model, shown, [1, 2])
    assert maps is not None
    for own, whole in zip(maps, expected, strict=True):
        assert np.allclose(own, (whole / whole.max().clamp(min=1e-12)).numpy(), atol=1e-4)


def test_the_model_keeps_no_hook() -> None:
    model = model_of("resnet18")
    cam = GradCam(model)
    assert cam.possible
    cam.maps(pixels(1), [0])
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.net.modules())
