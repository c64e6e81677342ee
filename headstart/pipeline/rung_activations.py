"""Activations for training and evaluating rungs: from pixels for the deepest rung, from its activations for others."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import fx

from headstart.backbone.feature_spec import FeatureSpec
from headstart.backbone.pixel_net import ActivationNet
from headstart.backbone.split import INPUT, SplittableBackbone
from headstart.backbone.weights import Backbone
from headstart.data.augment import Augmentation
from headstart.engine.conv_bn_fusion import fold_for_training
from headstart.engine.interface import Engine, Pixels
from headstart.engine.plan import EnginePlan
from headstart.engine.select import choose_engine
from headstart.features.activations import Activations, Continuation, ImageFiles, Views
from headstart.pipeline.fit import FASTEST, Prepared
from headstart.progress import Progress
from headstart.training.ladder import FOLDS, Rung
from headstart.training.losses import Labels
from headstart.training.recipe import Recipe
from headstart.training.sampling import Samples

EVERY = ("train", "val", "plain")


@dataclass(frozen=True)
class RungImages:
    """Labelled images.

    Attributes:
        images: paths and content hashes of N images.
        labels: see ``training.losses``.
    """

    images: ImageFiles
    labels: Labels


@dataclass(frozen=True)
class RungInputs:
    """What the rungs of a run are trained on. It can be pickled and sent to other processes.

    Attributes:
        backbone: frozen.
        spec: which of its outputs the features are.
        recipe: of the run.
        rungs: of the ladder, shallowest first.
        engines: that run the frozen part.
        sample: (n, H, W, 3) uint8, see ``pipeline.plan.Measured``.
        cross_validates: whether rungs are also trained on folds.
        train: the training images.
        val: the validation images; None if there are none.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        cache: the cache folder; None for the default one.
    """

    backbone: Backbone
    spec: FeatureSpec
    recipe: Recipe
    rungs: tuple[Rung, ...]
    engines: EnginePlan
    sample: Pixels
    cross_validates: bool
    train: RungImages
    val: RungImages | None
    device: str
    cache: Path | None

    @classmethod
    def of(cls, prepared: Prepared) -> RungInputs:
        """Those of a run with at least one rung."""
        job, planned, val = prepared.job, prepared.planned, prepared.featurised.val
        return cls(
            prepared.loaded.backbone,
            replace(prepared.loaded.net.spec, layers=()),
            job.recipe,
            planned.rungs,
            planned.engines,
            planned.sample,
            planned.cross_validates,
            RungImages(prepared.featurised.train.images, prepared.featurised.train.labels),
            None if val is None else RungImages(val.images, val.labels),
            job.device,
            job.cache,
        )


@final
class RungActivations:
    """Activations at the freeze boundary of each rung, computed at first use.

    Args:
        inputs: of the run.
        splittable: its backbone.
        progress: receives the progress of the computation.
        prepares: of "train", "val" and "plain", whose activations are all computed before they are used; those of
            others are computed when they are read.
    """

    def __init__(
        self,
        inputs: RungInputs,
        splittable: SplittableBackbone,
        progress: Progress,
        *,
        prepares: Collection[str] = EVERY,
    ) -> None:
        self._inputs, self._splittable, self._progress, self._prepares = inputs, splittable, progress, prepares
        self._rungs, self._dtype = inputs.rungs, inputs.engines.training_dtype
        self._computed: dict[tuple[str, str], Activations] = {}

    def train_and_val(self, rung: Rung) -> tuple[Samples, Samples | None]:
        """(training images in the rung's views, validation images)."""
        train = self._samples(rung, "train", rung.views)
        return train, None if self._inputs.val is None else self._samples(rung, "val", 0)

    def plain(self, rung: Rung) -> Samples:
        """The training images without augmentation, in float32."""
        return self._samples(rung, "plain", 0)

    def describe(self, rung: Rung) -> dict[str, Any]:
        """How the training images' activations are obtained, for the log."""
        return self._computed[rung.boundary.name, "train"].describe()

    def _samples(self, rung: Rung, what: str, views: int) -> Samples:
        activations = self._activations(rung, what, views)
        if what in self._prepares:
            activations.prepare(self._progress)
        train, val = self._inputs.train, self._inputs.val
        source = val if what == "val" and val is not None else train
        return Samples(activations, source.labels, source.images.keys, views)

    def _activations(self, rung: Rung, what: str, views: int) -> Activations:
        key = rung.boundary.name, what
        if key not in self._computed:
            is_deepest = rung is self._rungs[-1]
            compute = self._from_pixels if is_deepest else self._from_deepest
            self._computed[key] = compute(rung, what, views)
        return self._computed[key]

    def _from_pixels(self, rung: Rung, what: str, views: int) -> Activations:
        net = self._net(rung)
        return Activations(
            net,
            self._images(what),
            shape=rung.boundary.shape,
            engine=self._engine(net, exact=what != "train"),
            views=self._views(views),
            cache=self._inputs.cache,
            progress=self._progress,
        )

    def _from_deepest(self, rung: Rung, what: str, views: int) -> Activations:
        deepest = self._rungs[-1]
        earlier = self._activations(deepest, what, views)
        if what in self._prepares:
            earlier.prepare(self._progress)
        part = self._splittable.segment(deepest.boundary.name, rung.boundary.name)
        assert isinstance(part, fx.GraphModule)
        dtype = self._dtype if what == "train" else torch.float32
        folds = FOLDS if self._inputs.cross_validates else 1
        passes = rung.settings.epochs * folds if what == "train" else 2
        activations = Activations(
            self._net(rung),
            self._images(what),
            shape=rung.boundary.shape,
            engine=earlier.engine,
            views=self._views(views),
            keep=passes > max(1, views),
            cache=self._inputs.cache,
            source=(earlier, Continuation(deepest.boundary.name, fold_for_training(part, dtype), dtype)),
            progress=self._progress,
        )
        if not activations.keep:
            activations.reason = "computed when they are used, because each row is needed only once"
        return activations

    def _net(self, rung: Rung) -> ActivationNet:
        boundary = rung.boundary.name
        return ActivationNet(self._inputs.backbone, boundary, self._splittable.prefix(boundary))

    def _images(self, what: str) -> ImageFiles:
        val = self._inputs.val
        return val.images if what == "val" and val is not None else self._inputs.train.images

    def _views(self, views: int) -> Views | None:
        recipe = self._inputs.recipe
        return Views(views, recipe.seed, Augmentation(flip=recipe.flip)) if views else None

    def _engine(self, net: ActivationNet, *, exact: bool) -> Engine:
        engines = self._inputs.engines
        if net.boundary == INPUT:
            engines = replace(engines, exact="torch", fast="torch")
        return choose_engine(
            net,
            count=FASTEST,
            sample=self._inputs.sample,
            plan=engines,
            exact=exact,
            device=self._inputs.device,
            progress=self._progress,
        )
