"""Classifiers with random weights and different predictions for different images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from random_images import COLOURS, random_image
from torch import nn

from headstart.backbone.feature_spec import FeatureSpec
from headstart.backbone.layers import Layout
from headstart.backbone.pixel_net import FeatureNet, feature_shape
from headstart.backbone.weights import Backbone, random_backbone
from headstart.data.preprocessing import resize_and_crop
from headstart.model import Model
from headstart.training.head_spec import HeadSpec
from headstart.training.heads import NeighbourHead, RbfHead, build_head, vectors_of
from headstart.training.recipe import Recipe
from headstart.trust.calibration import Calibration
from headstart.trust.ood import OodDetector, make_ood_detector

CLASSES = ("blue", "green", "red")
IMAGES = 64
SPREAD = 3.0
"""Standard deviation of the logits over images."""


def small_model(
    architecture: str | Backbone = "test_resnet",
    *,
    image_size: int | None = 64,
    head: str = "linear",
    pool: Any = "auto",
    cut: str = "",
    several: bool = False,
    ood_detector: bool = False,
) -> Model:
    """A model; ``head`` is a spec, "single" (two classes, one logit), "rbf" or "neighbours"."""
    own = architecture if isinstance(architecture, Backbone) else random_backbone(architecture, image_size=image_size)
    net = FeatureNet(own, FeatureSpec(pool, cut))
    pixels = np.stack([resize_and_crop(shown(i), own.preprocessing) for i in range(IMAGES)])
    with torch.no_grad():
        features = np.concatenate([net(torch.from_numpy(pixels[i : i + 8])).numpy() for i in range(0, IMAGES, 8)])
    classes = CLASSES[:2] if head == "single" else CLASSES
    return Model(
        net,
        _head(head, features, len(classes), feature_shape(net)),
        classes,
        recipe=Recipe(),
        data={},
        scores={},
        thresholds=(0.3, 0.5, 0.6) if several else None,
        calibration=Calibration(temperature=0.7, images=100, target_accuracy=0.95, threshold=0.6),
        ood_detector=_ood_detector(vectors_of(features, Layout.of(own.module))) if ood_detector else None,
    )


def _ood_detector(vectors: np.ndarray) -> OodDetector | None:
    """A detector with the images as references, and their distances to each other as in-distribution distances."""
    known = make_ood_detector(vectors)
    each = np.arange(len(vectors))
    return None if known is None else known.with_inlier_distances(known.distances(vectors, parts=(each, each)))


def shown(seed: int) -> Image.Image:
    """An image in one of three colours."""
    return random_image(seed, list(COLOURS.values())[seed % 3])


def write_shown(folder: Path, count: int, size: Callable[[int], tuple[int, int]] | None = None) -> Path:
    """Writes images of the three colours, each in the folder of its class.

    Args:
        folder: created if it does not exist.
        count: number of images.
        size: number of an image -> its (width, height); None for that of ``shown``.
    """
    for i in range(count):
        file = folder / CLASSES[i % 3] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        (shown(i).resize(size(i)) if size else shown(i)).save(file)
    return folder


def _head(kind: str, features: np.ndarray, classes: int, shape: tuple[int, ...]) -> nn.Module:
    tensor = torch.from_numpy(features)
    if kind == "neighbours":
        labels = torch.arange(IMAGES) % classes
        return NeighbourHead(nn.functional.normalize(tensor, dim=1), labels, classes, 10, 0.05)
    if kind == "rbf":
        mean, scale = tensor.mean(0), tensor.std(0).clamp(min=1e-6)
        coefficients = torch.randn(IMAGES, classes, generator=torch.Generator().manual_seed(0))
        kernel = RbfHead(
            (tensor - mean) / scale, mean, scale, coefficients, torch.zeros(classes), 1 / features.shape[1]
        )
        logits = kernel(tensor)
        spread = SPREAD / logits.std(0)
        kernel.coefficients *= spread
        kernel.bias -= logits.mean(0) * spread
        return kernel
    with torch.random.fork_rng():
        torch.manual_seed(0)
        single = kind == "single"
        spec = replace(HeadSpec.parse("linear" if single else kind), single=single)
        layered = build_head(spec, shape, classes).eval().requires_grad_(False)
    last = layered[-2] if single else layered[-1]
    logits = nn.Sequential(*list(layered)[:-1])(tensor) if single else layered(tensor)
    scale = SPREAD / logits.std(0).clamp(min=1e-12)
    last.bias.copy_((last.bias - logits.mean(0)) * scale)
    last.weight.mul_(scale[:, None])
    return layered
