from __future__ import annotations

import numpy as np
import pytest
import torch

from headstart.backbone.batchnorm_prior import average_features
from headstart.backbone.pixel_net import FeatureNet
from headstart.backbone.weights import load_backbone, random_backbone


@pytest.mark.slow
def test_an_average_image_is_what_the_last_batchnorm_says() -> None:
    net = FeatureNet(load_backbone(image_size=64))
    average = average_features(net)
    assert average is not None
    assert average.shape == (1280,)
    norm = net.backbone.module.bn2
    z = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    drawn = torch.clamp(norm.bias + norm.weight * z, 0, 6).mean(0).numpy()
    assert np.abs(average - drawn).max() < 0.03
    assert average_features(FeatureNet(random_backbone("resnet18", image_size=64))) is None
    assert average_features(FeatureNet(random_backbone("vit_tiny_patch16_224"))) is None
