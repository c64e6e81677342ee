"""Step 5 of a run: the head on frozen features, and the labels checked by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headstart.backbone.layers import Layout
from headstart.cache.entries import cache_root
from headstart.data.augment import Augmentation
from headstart.engine.select import choose_engine
from headstart.features.activations import Activations, Views
from headstart.pipeline.featurise import Featurised, image_vectors
from headstart.pipeline.inspect_images import Inspected
from headstart.pipeline.load import Job, Loaded
from headstart.pipeline.plan import CHECKED, Planned
from headstart.progress import with_example
from headstart.training.fit_head import Fitted, HeadData, fit_by_network, fit_classifier
from headstart.training.head_spec import LINEAR
from headstart.training.penalty import Penalty
from headstart.training.sampling import Samples
from headstart.trust.feature_findings import inspect_features

FASTEST = 10**6
"""Number of images for which the fastest engine is chosen: its speed was measured before, however few there are."""


@dataclass(frozen=True)
class Prepared:
    """A run up to the head on frozen features: where fine-tuning, evaluation and custom loops begin.

    Attributes:
        job: what is to be done.
        loaded: the backbone.
        inspected: the images.
        planned: engines and rungs.
        featurised: features of the images.
        fitted: the head.
        last: what rungs start from, if it differs: the features of the last layer alone, and for networks side by side
            a head that is fitted on each alone.
    """

    job: Job
    loaded: Loaded
    inspected: Inspected
    planned: Planned
    featurised: Featurised
    fitted: Fitted
    last: Prepared | None = None

    @property
    def for_rungs(self) -> Prepared:
        """What rungs start from, see ``last``.

        A head that also reads earlier layers, which are frozen, learns less from fine-tuning: on flowers log loss 0.181
        instead of 0.156 (docs/results/2026-11-30-layers.md).
        """
        return self.last or self


def fit_head(
    job: Job,
    loaded: Loaded,
    inspected: Inspected,
    planned: Planned,
    featurised: Featurised,
    penalty: Penalty | None = None,
    *,
    by_network: bool = False,
) -> Fitted:
    """Fits the classifier that the recipe asks for on the frozen features.

    Args:
        job: see ``Job``.
        loaded: the backbone.
        inspected: the images.
        planned: engines and rungs.
        featurised: the features.
        penalty: was chosen before.
        by_network: fit it on the features of each network alone, see ``fit_by_network``.
    """
    train, val = featurised.train, featurised.val
    data = HeadData(
        train.features,
        train.labels,
        classes=len(inspected.dataset.classes),
        layout=Layout.of(loaded.backbone.module),
        dtype=planned.engines.training_dtype,
        views=_augmented(job, loaded, planned, featurised),
        val=None if val is None else (val.features, val.labels),
        together=inspected.parts(inspected.positions["train"]),
        penalty=penalty,
    )
    options: dict[str, Any] = {"progress": job.progress, "cache": cache_root(job.cache)}
    if by_network and loaded.splittable is not None:
        return fit_by_network(job.recipe, data, loaded.splittable.feature_widths, **options)
    return fit_classifier(job.recipe, data, **options)


def _augmented(job: Job, loaded: Loaded, planned: Planned, featurised: Featurised) -> Samples | None:
    """Features of augmented views, for heads that are trained by steps where the recipe asks for views."""
    recipe, train = job.recipe, featurised.train
    if recipe.head == LINEAR or not recipe.views:
        return None
    engine = choose_engine(
        loaded.net, count=FASTEST, sample=planned.sample, plan=planned.engines, exact=False, device=job.device
    )
    features = Activations(
        loaded.net,
        train.images,
        shape=train.features.shape[1:],
        engine=engine,
        views=Views(recipe.views, recipe.seed, Augmentation(flip=recipe.flip)),
        cache=job.cache,
        progress=job.progress,
    )
    features.prepare(job.progress)
    return Samples(features, train.labels, train.images.keys, recipe.views)


def check_labels(job: Job, loaded: Loaded, inspected: Inspected, featurised: Featurised, fitted: Fitted) -> Inspected:
    """Looks for labels that are probably wrong and for images of no class, by the frozen features.

    Returns:
        The images with what was found. Skipped for more than ``plan.CHECKED`` images.
    """
    if inspected.num_images > CHECKED:
        return inspected
    images = image_vectors(loaded, inspected, featurised)
    found = inspect_features(
        inspected.dataset,
        images.positions,
        images.vectors,
        c=fitted.settings["C"] if fitted.name == "probe" else None,
        seed=job.recipe.seed,
        together=inspected.parts(images.positions),
        progress=job.progress,
        cache=job.cache,
    )
    if found:
        examples = [with_example(finding.message, finding.items).rstrip(".") for finding in found]
        job.progress.say(f"Warning: {'; '.join(examples)}.")
    return inspected.with_findings(found)
