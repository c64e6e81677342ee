"""Small networks with the names and layer groups of well-known architectures, so that documented commands are fast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import ClassifierHead
from timm.models import _registry as registry
from timm.models import build_model_with_cfg
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet
from timm.models.vgg import VGG, ConvMlp
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from headstart.backbone import pixel_net, weights
from headstart.backbone.compute_cost import compute_cost
from headstart.backbone.offline_packages import OFFLINE_PACKAGES
from headstart.backbone.weights import build_architecture

SIDE = 64
"""Side of the input in pixels."""

LITE = ["ds_r1_k3_s1_e1_c16", "cn_r1_k3_s2_c24", "cn_r1_k3_s2_c40", "ds_r1_k3_s2_c80", "ds_r1_k3_s1_c112"]
LITE += ["ds_r1_k3_s2_c192", "ir_r1_k3_s1_e6_c320"]
"""One block for each stage, with few convolutions: each costs time whenever a network is built, traced or exported."""

VGG16 = [4, 4, "M", 8, 8, "M", 16, 16, 16, "M", 32, 32, 32, "M", 32, 32, 32, "M"]
HIDDEN = 64


def _build(kind: type[nn.Module], name: str, pretrained: bool, more: dict[str, Any], **fixed: Any) -> nn.Module:
    module: nn.Module = build_model_with_cfg(kind, name, pretrained, **fixed, **more | _of_side(more))
    return module


def _of_side(more: dict[str, Any]) -> dict[str, Any]:
    return {"pretrained_cfg_overlay": dict(more.get("pretrained_cfg_overlay") or {}, input_size=(3, SIDE, SIDE))}


def _inverted_residuals(name: str, pretrained: bool = False, **more: Any) -> nn.Module:
    """``conv_stem``, ``blocks.0`` to ``blocks.6`` and ``conv_head``, like EfficientNet-Lite0 and MobileNetV2."""
    fixed = {
        "block_args": decode_arch_def([[stage] for stage in LITE]),
        "num_features": 128,
        "stem_size": 16,
        "round_chs_fn": partial(round_channels, multiplier=0.25),
        "act_layer": nn.ReLU,  # a ReLU6 takes a third of a second in each export
    }
    return _build(EfficientNet, name, pretrained, more, **fixed)


class _SmallVGG(VGG):
    """VGG whose layers after the convolutions have ``HIDDEN`` units instead of 4,096."""

    def __init__(self, cfg: list[Any], num_classes: int = 1000, global_pool: str = "avg", **more: Any) -> None:
        super().__init__(cfg, num_classes, global_pool=global_pool, **more)
        self.pre_logits = ConvMlp(self.num_features, HIDDEN, 7)
        self.head = ClassifierHead(HIDDEN, num_classes, pool_type=global_pool)
        self.head_hidden_size = self.head.num_features


def _vgg(name: str, pretrained: bool = False, **more: Any) -> nn.Module:
    """A network with the layer groups of VGG16, ``features.0`` to ``features.30``, and a small ``pre_logits``."""
    return _build(_SmallVGG, name, pretrained, more, model_cfg=VGG16)


def _transformer(name: str, pretrained: bool = False, **more: Any) -> nn.Module:
    """A vision transformer with the layer groups of ViT-Tiny, ``blocks.0`` to ``blocks.11``."""
    fixed = {"patch_size": 16, "embed_dim": 32, "depth": 12, "num_heads": 2, "mlp_ratio": 2}
    return _build(VisionTransformer, name, pretrained, {"img_size": SIDE} | more, **fixed)


def _same_as(other: str) -> Callable[..., nn.Module]:
    def build(name: str, pretrained: bool = False, **more: Any) -> nn.Module:
        entry = registry.model_entrypoint(other)
        module: nn.Module = entry(pretrained=pretrained, **more | _of_side(more) | {"pretrained_cfg": None})
        return module

    return build


SMALL: dict[str, Callable[..., nn.Module]] = {
    **{name.partition(".")[0]: _inverted_residuals for name in OFFLINE_PACKAGES},
    "mobilenetv2_100": _inverted_residuals,
    "vgg16": _vgg,
    "vit_tiny_patch16_224": _transformer,
    "legacy_xception": _same_as("test_resnet"),
    "resnet50": _same_as("test_resnet"),
    "resnetv2_50": _same_as("test_resnet"),
}


def _compute_here(work: Any, shards: Any, **_options: Any) -> Iterator[Any]:
    """Instead of worker processes, which would build the networks in full size."""
    computer = work.computer("cpu")
    for shard in shards:
        yield shard, computer(shard.rows)


@contextmanager
def small_architectures() -> Iterator[None]:
    """Context in which these names build small networks, and the installed weights are random."""

    def installed(name: str, image_size: int | None) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2 + sorted(OFFLINE_PACKAGES).index(name))
            return build_architecture(name, image_size=image_size, classes=1000)

    with pytest.MonkeyPatch.context() as patch:
        for name, build in SMALL.items():
            patch.setitem(registry._model_entrypoints, name, partial(build, name))
        patch.setattr(weights, "_offline_network", installed)
        patch.setattr("headstart.distributed.bulk.compute_in_processes", _compute_here)
        patch.setattr(pixel_net, "_SPLIT", {})  # the cuts of each architecture are kept by its name
        compute_cost.cache_clear()  # as its cost is
        yield
    compute_cost.cache_clear()
