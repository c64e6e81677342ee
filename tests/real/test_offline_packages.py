"""The installed weights on photographs: each network recognises what it was pretrained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from photographs import photographs

from headstart.backbone.offline_packages import OFFLINE_PACKAGES
from headstart.backbone.pixel_net import FeatureNet
from headstart.backbone.weights import load_with_classifier
from headstart.data.image_inputs import read_sources
from headstart.predictor import Predictor

pytestmark = [pytest.mark.untimed, pytest.mark.share]

FOLDERS = {
    "flowers/val/daisy": "n11939491 daisy",
    "hymenoptera/val/ants": "n02219486 ant",
    "hymenoptera/val/bees": "n02206856 bee",
    "hotdog/hot_dog": "n07697537 hotdog",
}
"""Folder of photographs -> class of ImageNet that they show."""


@pytest.mark.parametrize("name", OFFLINE_PACKAGES)
def test_installed_weights_recognise_photographs(name: str) -> None:
    """Top-1 of 1,000 classes on 40 photographs of each class, which were not chosen for being easy: 75 to 95 %."""
    backbone, classifier = load_with_classifier(name)
    net = FeatureNet(backbone)
    predictor = Predictor(net, torch.nn.Identity())
    correct = count = 0
    for folder, label in FOLDERS.items():
        sources, _ = read_sources(photographs(folder))
        pixels = [predictor.preprocess(source.content) for source in sources[:40]]
        batch = np.stack([image for image in pixels if not isinstance(image, str)])
        with torch.inference_mode():
            logits = net(torch.from_numpy(batch)).float() @ classifier.weight.T + classifier.bias
        correct += sum(classifier.classes[i] == label for i in logits.argmax(1).tolist())
        count += len(batch)
    assert count == 160
    assert correct / count > 0.8
