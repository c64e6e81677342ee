"""Backbones: pretrained weights, preprocessing, layer groups and freeze boundaries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.lazy import lazy_names

if TYPE_CHECKING:
    from headstart.backbone.pixel_net import FeatureNet as FeatureNet
    from headstart.backbone.weights import Backbone as Backbone
    from headstart.backbone.weights import load_backbone as load_backbone

_MODULES = {
    "Backbone": "headstart.backbone.weights",
    "FeatureNet": "headstart.backbone.pixel_net",
    "load_backbone": "headstart.backbone.weights",
}

__getattr__, __dir__, __all__ = lazy_names(__name__, _MODULES)
