"""Activations for training and evaluating rungs: from pixels for the deepest rung, from its activations for others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, final

import torch
from torch import fx

from headstart.backbone.pixel_net import ActivationNet
from headstart.backbone.split import INPUT, SplittableBackbone
from headstart.data.augment import Augmentation
from headstart.engine.conv_bn_fusion import fold_for_training
from headstart.engine.interface import Engine
from headstart.engine.select import choose_engine
from headstart.features.activations import Activations, Continuation, ImageFiles, Views
from headstart.pipeline.fit import FASTEST, Prepared
from headstart.training.ladder import FOLDS, Rung
from headstart.training.sampling import Samples


@final
class RungActivations:
    """Activations at the freeze boundary of each rung, computed at first use.

    Args:
        prepared: a run with at least one rung.
        splittable: its backbone.
    """

    def __init__(self, prepared: Prepared, splittable: SplittableBackbone) -> None:
        self._prepared, self._splittable = prepared, splittable
        self._rungs, self._dtype = prepared.planned.rungs, prepared.planned.engines.training_dtype
        self._computed: dict[tuple[str, str], Activations] = {}

    def train_and_val(self, rung: Rung) -> tuple[Samples, Samples | None]:
        """(training images in the rung's views, validation images)."""
        train = self._samples(rung, "train", rung.views)
        return train, None if self._prepared.featurised.val is None else self._samples(rung, "val", 0)

    def plain(self, rung: Rung) -> Samples:
        """The training images without augmentation, in float32."""
        return self._samples(rung, "plain", 0)

    def describe(self, rung: Rung) -> dict[str, Any]:
        """How the training images' activations are obtained, for the log."""
        return self._computed[rung.boundary.name, "train"].describe()

    def _samples(self, rung: Rung, what: str, views: int) -> Samples:
        activations = self._activations(rung, what, views)
        activations.prepare(self._prepared.job.progress)
        train, val = self._prepared.featurised.train, self._prepared.featurised.val
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
            cache=self._prepared.job.cache,
            progress=self._prepared.job.progress,
        )

    def _from_deepest(self, rung: Rung, what: str, views: int) -> Activations:
        deepest = self._rungs[-1]
        earlier = self._activations(deepest, what, views)
        earlier.prepare(self._prepared.job.progress)
        part = self._splittable.segment(deepest.boundary.name, rung.boundary.name)
        assert isinstance(part, fx.GraphModule)
        dtype = self._dtype if what == "train" else torch.float32
        folds = FOLDS if self._prepared.planned.cross_validates else 1
        passes = rung.settings.epochs * folds if what == "train" else 2
        activations = Activations(
            self._net(rung),
            self._images(what),
            shape=rung.boundary.shape,
            engine=earlier.engine,
            views=self._views(views),
            keep=passes > max(1, views),
            cache=self._prepared.job.cache,
            source=(earlier, Continuation(deepest.boundary.name, fold_for_training(part, dtype), dtype)),
            progress=self._prepared.job.progress,
        )
        if not activations.keep:
            activations.reason = "computed when they are used, because each row is needed only once"
        return activations

    def _net(self, rung: Rung) -> ActivationNet:
        boundary = rung.boundary.name
        return ActivationNet(self._prepared.loaded.backbone, boundary, self._splittable.prefix(boundary))

    def _images(self, what: str) -> ImageFiles:
        val = self._prepared.featurised.val
        return val.images if what == "val" and val is not None else self._prepared.featurised.train.images

    def _views(self, views: int) -> Views | None:
        recipe = self._prepared.job.recipe
        return Views(views, recipe.seed, Augmentation(flip=recipe.flip)) if views else None

    def _engine(self, net: ActivationNet, *, exact: bool) -> Engine:
        engines = self._prepared.planned.engines
        if net.boundary == INPUT:
            engines = replace(engines, exact="torch", fast="torch")
        return choose_engine(
            net,
            count=FASTEST,
            sample=self._prepared.planned.sample,
            plan=engines,
            exact=exact,
            device=self._prepared.job.device,
            progress=self._prepared.job.progress,
        )
