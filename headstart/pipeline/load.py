"""Step 1 of a run: the backbone, and every check that needs no image."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from headstart.backbone.feature_spec import FeatureSpec
from headstart.backbone.layers import Layout
from headstart.backbone.pixel_net import FeatureNet, feature_shape, split_backbone
from headstart.backbone.split import SplittableBackbone
from headstart.backbone.weights import DEFAULT_BACKBONE, Backbone, load_backbone, random_backbone
from headstart.data.dataset import Dataset
from headstart.distributed.rank_group import THIS_PROCESS, RankSettings, check_ranks
from headstart.engine.device import resolve_device
from headstart.progress import Progress
from headstart.training.fit_head import check_classes, check_heads
from headstart.training.head_spec import LINEAR
from headstart.training.ladder import check_depths, considered_layers
from headstart.training.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """What is to be done, and where it is computed.

    Attributes:
        dataset: the images.
        recipe: every option.
        device: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder; None for the default one.
        progress: receives messages and the progress of each task.
        ranks: the processes that fine-tune.
    """

    dataset: Dataset
    recipe: Recipe
    device: str
    cache: Path | None
    progress: Progress
    ranks: RankSettings = THIS_PROCESS


@dataclass(frozen=True)
class Loaded:
    """The backbone of a run.

    Attributes:
        backbone: pretrained, or with random weights where the recipe asks for that.
        net: the frozen pass from pixels to features.
        splittable: the backbone with its freeze boundaries, and the last layer's features alone, which is what rungs
            train; None where the effort fine-tunes nothing.
        seconds: time that loading took.
    """

    backbone: Backbone
    net: FeatureNet
    splittable: SplittableBackbone | None
    seconds: float


def load(job: Job) -> Loaded:
    """Loads the backbone and checks all options that can be checked before an image is read.

    Args:
        job: see ``Job``.

    Raises:
        OptionError: an option cannot be carried out: no such backbone, device, layer or boundary, or a head that does
            not fit the features or the classes.
        WeightsError: the weights cannot be loaded.
        LicenseError: their licence is restricted, and the recipe does not accept it.
    """
    started = time.monotonic()
    resolve_device(job.device)
    recipe = job.recipe
    check_ranks(job.ranks, updates_batchnorm=recipe.update_batchnorm or recipe.scratch)
    name = recipe.backbone or DEFAULT_BACKBONE
    if recipe.scratch:
        backbone = random_backbone(name, image_size=recipe.image_size, fit=recipe.fit, seed=recipe.seed)
    else:
        backbone = load_backbone(
            name,
            weights=recipe.weights,
            image_size=recipe.image_size,
            fit=recipe.fit,
            accept_license=recipe.accept_license,
            progress=job.progress,
        )
    prepare_backbone(job, backbone)
    net = FeatureNet(backbone, _feature_spec(recipe, backbone))
    check_classes(recipe, len(job.dataset.classes), multi_label=job.dataset.multi_label)
    if recipe.head != LINEAR:
        check_heads(recipe, feature_shape(net), len(job.dataset.classes), Layout.of(backbone.module))
    splittable = None if recipe.effort == "probe" else split_backbone(backbone, replace(net.spec, layers=()))
    if splittable is not None:
        check_depths(recipe, splittable)
    elif job.ranks.is_parallel:
        job.progress.say("Workers are not used, because nothing is fine-tuned.")
    return Loaded(backbone, net, splittable, round(time.monotonic() - started, 2))


def _feature_spec(recipe: Recipe, backbone: Backbone) -> FeatureSpec:
    """Which outputs the features are; where layers are chosen later, with all that are considered."""
    spec = FeatureSpec(recipe.pooling, recipe.cut or "", recipe.named_layers)
    return replace(spec, layers=considered_layers(split_backbone(backbone))) if recipe.chooses_layers else spec


def prepare_backbone(job: Job, backbone: Backbone) -> None:
    """Reports the backbone's notes, and stores its weights in the memory format that engines use.

    An engine converts the weights that it runs to that format, and kernels round differently in another one. Which
    engines are built depends on the cache, so training would too if the conversion were left to them.
    """
    for note in backbone.notes:
        job.progress.say(note)
    backbone.module.to(memory_format=torch.channels_last)
