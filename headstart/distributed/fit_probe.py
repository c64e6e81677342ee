"""A classifier from features in shards: split, linear probe in passes over the shards, calibration and scores.

The steps are those of a run, on what the shards have: there are no pixels, so that near-duplicates are not looked for
and nothing is fine-tuned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.backbone.pixel_net import FeatureNet
from headstart.data.finding import Finding
from headstart.data.image_table import SPLITS
from headstart.data.splits import SplitShares, check_given_shares, draw, drawn_split, draws_val
from headstart.distributed.shard_findings import MOST_CHECKED, shard_findings
from headstart.distributed.sharded_features import Features, ShardedFeatures
from headstart.distributed.work import network_description
from headstart.errors import DataError, WeightsError
from headstart.evaluation.predictions import Evaluated, evaluate_predictions, short_scores
from headstart.model import Model
from headstart.prediction import INLIER_SHARE
from headstart.progress import Progress
from headstart.training.heads import linear_head
from headstart.training.losses import probabilities_of
from headstart.training.recipe import Recipe
from headstart.training.streamed_probe import fit_streamed_probe
from headstart.trust.calibration import calibrate
from headstart.trust.ood import cross_fitted_scores, make_ood_detector, num_references
from headstart.trust.thresholds import DEFAULT_THRESHOLD, best_thresholds

MOST_EVALUATED = 100_000
"""Images of val, and of test, at most, that calibrate and score: drawn by content, kept in memory."""


@dataclass(frozen=True)
class ShardedFit:
    """A classifier that was fitted to shards.

    Attributes:
        model: calibrated, with its scores.
        evaluated: predictions and scores of val and test.
        reason: why the penalty of the classifier was chosen.
        findings: see ``shard_findings``.
    """

    model: Model
    evaluated: tuple[Evaluated, ...]
    reason: str
    findings: tuple[Finding, ...] = ()


def fit_probe_on_shards(
    sharded: ShardedFeatures, net: FeatureNet, *, recipe: Recipe, most_checked: int = MOST_CHECKED, progress: Progress
) -> ShardedFit:
    """Fits a linear classifier to features in shards.

    Args:
        sharded: features, labels and splits. Splits that are not given are drawn by content, or by group.
        net: the network that computed the features.
        recipe: seed, shares of val and test, and target accuracy.
        most_checked: images, at most, whose labels are checked; 0: none.
        progress: receives messages and progress.

    Raises:
        WeightsError: the features are of another network.
        DataError: the images cannot be learnt from.
    """
    _require_network(sharded, net)
    assigned = _splits(sharded, SplitShares(recipe.val, recipe.test), recipe.seed)
    train = np.flatnonzero(assigned == 0)
    if not len(train):
        raise DataError(f"{sharded.folder}: no image is in split train.")
    probe = fit_streamed_probe(
        partial(sharded.batches, assigned == 0),
        sharded.labels[train],
        classes=len(sharded.classes),
        seed=recipe.seed,
        progress=progress,
    )
    model = Model(
        net,
        linear_head(probe.weight, probe.bias),
        sharded.classes,
        recipe=recipe,
        data=_data_document(sharded, assigned),
        scores={},
        thresholds=[DEFAULT_THRESHOLD] * len(sharded.classes) if sharded.multi_label else None,
    )
    held_out = _held_out(sharded, assigned, progress)
    features = {name: sharded.read(places) for name, places in held_out.items() if len(places)}
    if "val" in features:
        model = _calibrated(model, sharded, assigned == 0, held_out["val"], features["val"])
    evaluated = tuple(_score(model, sharded, name, held_out[name], part) for name, part in features.items())
    findings = shard_findings(
        sharded, probe.c * len(train), seed=recipe.seed, most_checked=most_checked, progress=progress
    )
    return ShardedFit(model.replace(scores=short_scores(evaluated)), evaluated, probe.reason, findings)


def _require_network(sharded: ShardedFeatures, net: FeatureNet) -> None:
    """Raises a ``WeightsError`` if another network computed the features."""
    if network_description(net) != sharded.network:
        raise WeightsError(
            f"{sharded.folder}: the features were computed by another network or with other weights "
            f"({sharded.network.get('network', {}).get('architecture')}). Give the options of headstart extract again."
        )


def _splits(sharded: ShardedFeatures, shares: SplitShares, seed: int) -> npt.NDArray[np.int8]:
    """(N,) indices into ``SPLITS``: as given; val, or val and test, drawn by the rules of ``data.splits``.

    Raises:
        DataError: the data have splits, but no train.
        OptionError: see ``check_given_shares``.
    """
    assigned = sharded.splits.copy()
    given = {SPLITS[place] for place in np.unique(assigned) if place >= 0}
    check_given_shares(sharded.folder, given, shares)
    if given and "train" not in given:
        raise DataError(f"{sharded.folder}: has the splits {', '.join(sorted(given))}, but none named train.")
    is_train = assigned == SPLITS.index("train")
    if "val" in given or ("test" in given and not draws_val(int(is_train.sum()), shares)):
        return assigned
    groups = sharded.groups or [""] * len(sharded)
    keys = (sharded.keys[i].tobytes() for i in range(len(sharded)))
    draws = [draw(key, group, seed=seed) for key, group in zip(keys, groups, strict=True)]
    if "test" in given:
        assigned[is_train & (np.array(draws) < shares.val_share)] = SPLITS.index("val")
        return assigned
    return np.array([SPLITS.index(drawn_split(one, shares)) for one in draws], np.int8)


def _held_out(
    sharded: ShardedFeatures, assigned: npt.NDArray[np.int8], progress: Progress
) -> dict[str, npt.NDArray[np.int64]]:
    """Places of the images of val and test that calibrate and score."""
    found = {}
    for place, name in enumerate(SPLITS):
        if name != "train":
            found[name] = sharded.first_by_content(assigned == place, MOST_EVALUATED)
            if len(found[name]) < (count := int((assigned == place).sum())):
                progress.say(f"{name}: {len(found[name]):,} of {count:,} images, drawn by content, are scored.")
    return found


def _calibrated(
    model: Model,
    sharded: ShardedFeatures,
    is_train: npt.NDArray[np.bool_],
    places: npt.NDArray[np.int64],
    val: Features,
) -> Model:
    """The model with temperature, thresholds and out-of-distribution detector, from the images of val.

    Args:
        model: without them.
        sharded: the features.
        is_train: (N,) the training images.
        places: of the images of val.
        val: their features.
    """
    logits, labels = model.logits(val), sharded.labels[places]
    calibration = calibrate(
        logits, labels, target_accuracy=model.recipe.target_accuracy, source=f"{len(labels):,} validation images"
    )
    thresholds = model.thresholds
    if thresholds is not None:
        probabilities = probabilities_of(logits / calibration.temperature, multi_label=True)
        thresholds = tuple(best_thresholds(probabilities, labels).tolist())
    references = sharded.first_by_content(is_train, num_references(sharded.length))
    detector = make_ood_detector(model.embed(sharded.read(references)))
    if detector is not None:
        distances = detector.distances(model.embed(val))
        detector = detector.with_inlier_distances(distances)
        accepted = int((cross_fitted_scores(distances) <= INLIER_SHARE).sum())
        if detector is not None:
            calibration = replace(calibration, num_inliers=len(distances), num_inliers_accepted=accepted)
    return model.replace(calibration=calibration, thresholds=thresholds, ood_detector=detector)


def _score(
    model: Model, sharded: ShardedFeatures, name: str, places: npt.NDArray[np.int64], part: Features
) -> Evaluated:
    """Predictions and scores of some images."""
    return evaluate_predictions(
        name,
        sharded.paths(places),
        sharded.labels[places],
        model.probabilities(part),
        model.classes,
        thresholds=model.thresholds,
        chose=name == "val",
    )


def _data_document(sharded: ShardedFeatures, assigned: npt.NDArray[np.int8]) -> dict[str, Any]:
    """Counts of the data by split and class, for the model file."""
    counts = {
        name: {
            label: int((sharded.labels[of, number] if sharded.multi_label else sharded.labels[of] == number).sum())
            for number, label in enumerate(sharded.classes)
        }
        for place, name in enumerate(SPLITS)
        if (of := assigned == place).any()
    }
    return {"name": sharded.folder.name, "counts": counts, "shards": len(sharded.files)}
