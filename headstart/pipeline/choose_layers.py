"""Step 5 of a run: whether features of earlier layers help, decided by cross-validation on the training images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headstart.backbone.pixel_net import FeatureNet, split_backbone
from headstart.cache.entries import cache_root
from headstart.cache.joined_rows import JoinedRows
from headstart.pipeline.featurise import Featurised, LabelledFeatures
from headstart.pipeline.fit import Prepared, fit_head
from headstart.pipeline.inspect_images import Inspected
from headstart.pipeline.load import Job, Loaded
from headstart.pipeline.plan import Planned
from headstart.training.ladder import paired_p
from headstart.training.penalty import Penalty
from headstart.training.probe import cross_validate_once

BY_CHANCE = 0.3
"""p-value of the paired test above which the last layer alone is kept.

More features cost nothing in the frozen pass, so the test only keeps out what is as likely to be noise as not.
"""


@dataclass(frozen=True)
class ChosenLayers:
    """A run's backbone and features with the layers that were chosen.

    Attributes:
        loaded: the backbone.
        planned: with the rungs' boundaries in this backbone.
        featurised: the features.
        penalty: of the probe on these features; None where nothing was chosen.
    """

    loaded: Loaded
    planned: Planned
    featurised: Featurised
    penalty: Penalty | None = None


def choose_and_fit(
    job: Job, loaded: Loaded, inspected: Inspected, planned: Planned, featurised: Featurised
) -> Prepared:
    """Chooses the layers, see ``choose_layers``, and fits the head on their features."""
    chosen = choose_layers(job, loaded, inspected, planned, featurised)
    loaded, planned, featurised = chosen.loaded, chosen.planned, chosen.featurised
    fitted = fit_head(job, loaded, inspected, planned, featurised, chosen.penalty)
    return Prepared(job, loaded, inspected, planned, featurised, fitted)


def choose_layers(
    job: Job, loaded: Loaded, inspected: Inspected, planned: Planned, featurised: Featurised
) -> ChosenLayers:
    """Keeps the features of earlier layers if they lower the cross-validated log loss of the probe.

    The last layer alone is compared with the last layer and all earlier ones considered, on the same folds.

    Args:
        job: see ``Job``.
        loaded: the backbone, with the features of all layers that are considered.
        inspected: the images.
        planned: engines and rungs.
        featurised: features of all these layers.
    """
    if not (job.recipe.chooses_layers and loaded.net.spec.layers):
        return ChosenLayers(loaded, planned, featurised)
    assert isinstance(featurised.held_out, JoinedRows)  # features of several layers
    width = featurised.held_out.widths[0]
    tried = [_tried(job, inspected, featurised.train, end) for end in (width, featurised.train.features.shape[1])]
    if tried[0] is None or tried[1] is None:
        return _last_layer_alone(loaded, planned, featurised)
    (alone, alone_losses), (joined, joined_losses) = tried[0], tried[1]
    p = paired_p(alone_losses, joined_losses)
    names, before, after = ", ".join(loaded.net.spec.layers), float(alone_losses.mean()), float(joined_losses.mean())
    verdict = "are added" if p < BY_CHANCE else "are not added"
    job.progress.say(
        f"Layers: averages of {names} {verdict} to the features: log loss {before:.3f} without and {after:.3f} with "
        f"them in cross-validation (p = {p:.2g})."
    )
    if p < BY_CHANCE:
        return ChosenLayers(loaded, planned, featurised, joined)
    return replace(_last_layer_alone(loaded, planned, featurised), penalty=alone)


def _tried(
    job: Job, inspected: Inspected, train: LabelledFeatures, width: int
) -> tuple[Penalty, npt.NDArray[np.float64]] | None:
    """The penalty and the losses of the training images with the first features; None for too few images."""
    return cross_validate_once(
        np.ascontiguousarray(train.features[:, :width]),
        train.labels,
        balance=job.recipe.balance_classes,
        seed=job.recipe.seed,
        together=inspected.parts(inspected.positions["train"]),
        progress=job.progress,
        cache=cache_root(job.cache),
    )


def _last_layer_alone(loaded: Loaded, planned: Planned, featurised: Featurised) -> ChosenLayers:
    """The same without the features of earlier layers."""
    spec, held_out = replace(loaded.net.spec, layers=()), featurised.held_out
    assert isinstance(held_out, JoinedRows)  # features of several layers
    last = held_out.stores[0]

    def of_last(labelled: LabelledFeatures) -> LabelledFeatures:
        return replace(labelled, features=np.ascontiguousarray(labelled.features[:, : last.shape[0]]))

    val = None if featurised.val is None else of_last(featurised.val)
    splittable = None if loaded.splittable is None else split_backbone(loaded.backbone, spec)
    if splittable is not None:
        boundaries = {boundary.name: boundary for boundary in splittable.boundaries}
        rungs = tuple(replace(rung, boundary=boundaries[rung.boundary.name]) for rung in planned.rungs)
        planned = replace(planned, rungs=rungs)
    net = FeatureNet(loaded.backbone, spec)
    return ChosenLayers(
        replace(loaded, net=net, splittable=splittable), planned, Featurised(of_last(featurised.train), val, last)
    )
