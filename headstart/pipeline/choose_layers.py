"""Step 5 of a run: whether features of earlier layers help, decided by cross-validation on the training images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headstart.backbone.pixel_net import FeatureNet
from headstart.backbone.side_by_side import networks
from headstart.cache.entries import cache_root
from headstart.cache.joined_rows import JoinedRows
from headstart.pipeline.featurise import Featurised, LabelledFeatures
from headstart.pipeline.fit import Prepared, fit_head
from headstart.pipeline.inspect_images import Inspected
from headstart.pipeline.load import Job, Loaded
from headstart.pipeline.plan import Planned
from headstart.training.fit_head import is_fitted_by_network
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
        featurised: the features.
        penalty: of the probe on these features; None where nothing was chosen.
        last: the same with the last layer alone; None where the features are these.
    """

    loaded: Loaded
    featurised: Featurised
    penalty: Penalty | None = None
    last: ChosenLayers | None = None


def choose_and_fit(
    job: Job, loaded: Loaded, inspected: Inspected, planned: Planned, featurised: Featurised
) -> Prepared:
    """Chooses the layers, see ``choose_layers``, and fits the head on their features.

    Where rungs follow, which train the last layer's features alone, a head is fitted on these too; for networks side by
    side on those of each network.
    """
    chosen = choose_layers(job, loaded, inspected, featurised)

    def fitted_on(found: ChosenLayers, last: Prepared | None = None, *, by_network: bool = False) -> Prepared:
        fitted = fit_head(job, found.loaded, inspected, planned, found.featurised, found.penalty, by_network=by_network)
        return Prepared(job, found.loaded, inspected, planned, found.featurised, fitted, last)

    several = is_fitted_by_network(job.recipe, len(networks(loaded.backbone.module)))
    if not planned.rungs or not (several or chosen.last):
        return fitted_on(chosen)
    start = replace(chosen.last or chosen, penalty=None) if several else chosen.last
    assert start is not None
    return fitted_on(chosen, fitted_on(start, by_network=several))


def choose_layers(job: Job, loaded: Loaded, inspected: Inspected, featurised: Featurised) -> ChosenLayers:
    """Keeps the features of earlier layers if they lower the cross-validated log loss of the probe.

    The last layer alone is compared with the last layer and all earlier ones considered, on the same folds.

    Args:
        job: see ``Job``.
        loaded: the backbone, with the features of all layers that are considered.
        inspected: the images.
        featurised: features of all these layers.
    """
    if not loaded.net.spec.layers:
        return ChosenLayers(loaded, featurised)
    last = _last_layer_alone(loaded, featurised)
    if not job.recipe.chooses_layers:
        return ChosenLayers(loaded, featurised, last=last)
    assert isinstance(featurised.held_out, JoinedRows)  # features of several layers
    width = featurised.held_out.widths[0]
    tried = [_tried(job, inspected, featurised.train, end) for end in (width, featurised.train.features.shape[1])]
    if tried[0] is None or tried[1] is None:
        return last
    (alone, alone_losses), (joined, joined_losses) = tried[0], tried[1]
    p = paired_p(alone_losses, joined_losses)
    names, before, after = ", ".join(loaded.net.spec.layers), float(alone_losses.mean()), float(joined_losses.mean())
    verdict = "are added" if p < BY_CHANCE else "are not added"
    job.progress.say(
        f"Layers: averages of {names} {verdict} to the features: log loss {before:.3f} without and {after:.3f} with "
        f"them in cross-validation (p = {p:.2g})."
    )
    if p < BY_CHANCE:
        return ChosenLayers(loaded, featurised, joined, last=replace(last, penalty=alone))
    return replace(last, penalty=alone)


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


def _last_layer_alone(loaded: Loaded, featurised: Featurised) -> ChosenLayers:
    """The same without the features of earlier layers."""
    spec, held_out = replace(loaded.net.spec, layers=()), featurised.held_out
    assert isinstance(held_out, JoinedRows)  # features of several layers
    last = held_out.stores[0]

    def of_last(labelled: LabelledFeatures) -> LabelledFeatures:
        return replace(labelled, features=np.ascontiguousarray(labelled.features[:, : last.shape[0]]))

    val = None if featurised.val is None else of_last(featurised.val)
    loaded = replace(loaded, net=FeatureNet(loaded.backbone, spec))
    return ChosenLayers(loaded, Featurised(of_last(featurised.train), val, last))
