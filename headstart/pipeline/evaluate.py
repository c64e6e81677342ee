"""Step 7 of a run: the classifier is calibrated, and scored on images that it did not learn from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from headstart.backbone.pixel_net import FeatureNet
from headstart.backbone.weights import Backbone
from headstart.data.fingerprint import data_fingerprint
from headstart.data.inspection import Inspection
from headstart.engine.select import choose_engine
from headstart.engine.streaming import run_stream
from headstart.evaluation.metrics import CROSS_VALIDATION
from headstart.evaluation.predictions import Evaluated, evaluate_predictions, short_scores
from headstart.features.extract import require_finite
from headstart.model import Model
from headstart.pipeline.fit import Prepared
from headstart.pipeline.inspect_images import Inspected, pixel_reader
from headstart.prediction import INLIER_SHARE
from headstart.training.losses import Folds, class_sizes, learnable_folds, probabilities_of
from headstart.training.out_of_fold import OutOfFold, of_frozen_features
from headstart.trust.calibration import calibrate
from headstart.trust.ood import (
    MAX_REFERENCES,
    MAX_REFERENCES_FINE_TUNED,
    OodDetector,
    choose_references,
    cross_fitted_scores,
    make_ood_detector,
    typical_distance,
)
from headstart.trust.thresholds import DEFAULT_THRESHOLD, best_thresholds

LOGGED_MISTAKES = 12
"""Most confident mistakes of each stage that the log holds."""

PROBE_FOLDS = 5
"""Folds where nothing but a head on frozen features is fitted in each."""

USUAL = 5_000
"""Training images, at most, whose distances say what is in-distribution."""

SCORED_BELOW = 30
"""Images of the largest held-out set below which the score shown first is cross-validated: of 1 image, 1 correct is
100 %."""

Features = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TrainedClassifier:
    """A backbone with a head, not calibrated yet.

    Attributes:
        backbone: the frozen one, or a fine-tuned copy.
        head: on its features.
        out_of_fold: predictions for training images by classifiers trained like this one; None where there are none.
    """

    backbone: Backbone
    head: nn.Module
    out_of_fold: OutOfFold | None = None


@dataclass(frozen=True)
class EvaluatedModel:
    """The finished model and its predictions.

    Attributes:
        model: calibrated, with its scores.
        evaluated: predictions and scores by set, what is shown first first.
    """

    model: Model
    evaluated: tuple[Evaluated, ...]


@dataclass(frozen=True)
class _InDistribution:
    """The out-of-distribution detector, and the scores of in-distribution images that were not trained on."""

    detector: OodDetector | None = None
    scores: Scores | None = None  # val first; cross-fitted: each fifth by the other four


def evaluate(prepared: Prepared, trained: TrainedClassifier) -> EvaluatedModel:
    """Calibrates a classifier and scores it.

    Where val is small, out-of-fold predictions on training images calibrate too; of a head on the frozen backbone they
    are computed here if they are not given.

    Args:
        prepared: the run up to the head.
        trained: the classifier.
    """
    model = build_model(prepared, trained)
    features = held_out_features(prepared, model)
    is_frozen = model.net is prepared.loaded.net
    outside = trained.out_of_fold
    if outside is None and prepared.planned.cross_validates and is_frozen:
        outside = _out_of_fold(prepared)
    model = _calibrated(prepared, model, features.get("val"), outside)
    usual = _in_distribution(prepared, model, features.get("val"), outside)
    calibration = model.calibration
    if usual.scores is not None:
        kept = int((usual.scores <= INLIER_SHARE).sum())
        calibration = replace(calibration, num_inliers=len(usual.scores), num_inliers_accepted=kept)
    model = model.replace(ood_detector=usual.detector, calibration=calibration)
    evaluated = [score_set(prepared, model, name, images, usual.scores) for name, images in features.items()]
    if outside is not None and (most := max(part.scores.count for part in evaluated)) < SCORED_BELOW:
        evaluated.insert(0, _cross_validated(prepared, model, outside, most))
    return with_scores(model, evaluated)


def build_model(prepared: Prepared, trained: TrainedClassifier) -> Model:
    """The classifier as a ``Model``, without calibration and scores."""
    job, loaded, dataset = prepared.job, prepared.loaded, prepared.inspected.dataset
    net = loaded.net
    if trained.backbone is not loaded.backbone:
        net = FeatureNet(trained.backbone, net.spec)
    return Model(
        net,
        trained.head,
        dataset.classes,
        recipe=job.recipe,
        data=_data_document(prepared.inspected.inspection),
        scores={},
        thresholds=[DEFAULT_THRESHOLD] * len(dataset.classes) if dataset.multi_label else None,
    )


def held_out_features(prepared: Prepared, model: Model) -> dict[str, Features]:
    """Features of each held-out split, as predictions compute them."""
    keys = {name: prepared.inspected.keys[name] for name in prepared.inspected.held_out}
    if model.net is prepared.loaded.net:
        return {name: prepared.featurised.held_out.read(part) for name, part in keys.items()}
    return {name: _uncached_features(prepared, model.net, part) for name, part in keys.items()}


def _uncached_features(prepared: Prepared, net: FeatureNet, keys: list[bytes]) -> Features:
    """(N, D) float32 features by a fine-tuned network, computed as predictions are; no other run could use them."""
    job, planned = prepared.job, prepared.planned
    pixels = pixel_reader(job, prepared.loaded, prepared.inspected)
    engine = choose_engine(
        net,
        count=len(keys),
        sample=planned.sample,
        plan=planned.engines,
        device=job.device,
        progress=job.progress,
    )
    batches = [keys[start : start + engine.batch_size] for start in range(0, len(keys), engine.batch_size)]
    found = []
    with job.progress.task("Evaluating", len(keys)) as advance:
        for rows in run_stream(engine, map(pixels.read, batches)):
            require_finite(net, rows)
            found.append(rows)
            advance(len(rows))
    return np.concatenate(found)


def with_scores(model: Model, evaluated: list[Evaluated]) -> EvaluatedModel:
    """The model with its scores in it."""
    return EvaluatedModel(model.replace(scores=short_scores(evaluated)), tuple(evaluated))


def score_set(
    prepared: Prepared, model: Model, name: str, features: Features, usual: Scores | None = None
) -> Evaluated:
    """Predictions and scores of one split.

    Args:
        prepared: the run.
        model: calibrated.
        name: of the split.
        features: (N, D) of its images.
        usual: outlier scores of the images that say what is in-distribution, val first: val keeps these, which were
            cross-fitted.
    """
    odd = model.outlier_scores(features)
    if name == "val" and usual is not None:
        odd = usual[: len(features)]
    positions = prepared.inspected.positions[name]
    return _evaluated(prepared, name, positions, model, model.probabilities(features), odd, chose=name == "val")


def _evaluated(
    prepared: Prepared,
    name: str,
    positions: list[int],
    model: Model,
    probabilities: Scores,
    outliers: Scores | None,
    *,
    chose: bool,
) -> Evaluated:
    """Predictions for some images; ``chose`` as for ``evaluate_predictions``."""
    dataset = prepared.inspected.dataset
    files = dataset.files()
    found = evaluate_predictions(
        name,
        [files[i] for i in positions],
        dataset.labels[positions],
        probabilities,
        model.classes,
        thresholds=model.thresholds,
        chose=chose,
        together=prepared.inspected.parts(positions),
    )
    groups = None if dataset.groups is None else tuple(dataset.groups[i] for i in positions)
    return replace(found, outliers=outliers, groups=groups)


def _cross_validated(prepared: Prepared, model: Model, outside: OutOfFold, most: int) -> Evaluated:
    """Out-of-fold predictions as a set of their own, where hardly any image is held out."""
    positions = [prepared.inspected.positions["train"][i] for i in outside.places]
    multi_label = model.thresholds is not None
    probabilities = probabilities_of(outside.logits / model.calibration.temperature, multi_label=multi_label)
    prepared.job.progress.say(
        f"Only {most} image(s) held out, so the main score comes from cross-validation: each training image is "
        f"predicted by a classifier that was not trained on it ({outside.folds}-fold cross-validation)."
    )
    return _evaluated(prepared, CROSS_VALIDATION, positions, model, probabilities, None, chose=True)


def training_folds(inspected: Inspected, count: int, seed: int) -> Folds:
    """Folds of the training images; a group, or the near copies of an image, are in one fold.

    Args:
        inspected: the images.
        count: of folds.
        seed: of the shuffle.
    """
    positions = inspected.positions["train"]
    return learnable_folds(inspected.dataset.labels[positions], count, seed, together=inspected.parts(positions))


def _out_of_fold(prepared: Prepared) -> OutOfFold | None:
    """Of the head on frozen features; None where every class has one image only."""
    train = prepared.featurised.train
    if class_sizes(train.labels).max() < 2:
        return None
    folds = training_folds(prepared.inspected, PROBE_FOLDS, prepared.job.recipe.seed)
    return of_frozen_features(prepared.fitted, train.features, folds, progress=prepared.job.progress)


def _calibrated(prepared: Prepared, model: Model, val: Features | None, outside: OutOfFold | None) -> Model:
    """The model with temperature and thresholds, fitted on predictions for val and out of fold."""
    inspected, train = prepared.inspected, prepared.featurised.train
    logits, labels, sources = [np.empty((0, len(model.classes)))], [train.labels[:0]], []
    positions: list[int] = []
    if val is not None:
        logits.append(model.logits(val))
        labels.append(inspected.dataset.labels[inspected.positions["val"]])
        positions += inspected.positions["val"]
        sources.append(f"{len(val):,} validation images")
    if outside is not None:
        logits.append(outside.logits)
        labels.append(train.labels[outside.places])
        positions += [inspected.positions["train"][i] for i in outside.places]
        sources.append(f"{len(outside.places):,} training images by {outside.folds}-fold cross-validation")
    all_logits, all_labels = np.concatenate(logits), np.concatenate(labels)
    calibration = calibrate(
        all_logits,
        all_labels,
        target_accuracy=prepared.job.recipe.target_accuracy,
        source=" and ".join(sources),
        together=inspected.parts(positions),
    )
    thresholds = model.thresholds
    if thresholds is not None:
        probabilities = probabilities_of(all_logits / calibration.temperature, multi_label=True)
        thresholds = tuple(best_thresholds(probabilities, all_labels).tolist())
    return model.replace(calibration=calibration, thresholds=thresholds)


def _in_distribution(
    prepared: Prepared, model: Model, val: Features | None, outside: OutOfFold | None
) -> _InDistribution:
    """Out-of-distribution detection: distances that images which were not learnt from have to training images."""
    inspected, places = prepared.inspected, _reference_places(prepared, model)
    references = model.embed(_training_features(prepared, model, places))
    detector = make_ood_detector(references)
    if detector is None:
        return _InDistribution()
    distances = [] if val is None else [detector.distances(model.embed(val))]
    positions = [] if val is None else list(inspected.positions["val"])
    split = inspected.inspection.split
    is_drawn = split.val_drawn or not split.given  # a given val may differ from train, and be like later images
    if model.net is prepared.loaded.net and (is_drawn or prepared.planned.cross_validates):
        found, judged = _distances_in_training(prepared, model, detector, places)
        distances.append(found)
        positions += judged
    elif outside is not None and outside.distances is not None:
        distances.append(outside.distances * typical_distance(detector, references))
        positions += [inspected.positions["train"][i] for i in outside.places]
    every = np.concatenate(distances) if distances else np.empty(0)
    detector = detector.with_inlier_distances(every)
    if detector is None:
        return _InDistribution()
    return _InDistribution(detector, cross_fitted_scores(every, together=inspected.parts(positions)))


def _distances_in_training(
    prepared: Prepared, model: Model, detector: OodDetector, references: list[int]
) -> tuple[Scores, list[int]]:
    """Distances of training images to those of other groups, and their positions.

    Frozen features were not learnt from any image, so distances between training images are like those of new images.
    """
    train, positions = prepared.featurised.train, prepared.inspected.positions["train"]
    judged = _without_near_copies(prepared.inspected)
    parts = prepared.inspected.parts(positions)
    found = detector.distances(model.embed(train.features[judged]), parts=(parts[judged], parts[references]))
    is_known = np.isfinite(found)  # infinite where the references are of the image's own group
    return found[is_known], [positions[i] for i, is_finite in zip(judged, is_known, strict=True) if is_finite]


def _reference_places(prepared: Prepared, model: Model) -> list[int]:
    """Places, among the training images, of those that the model keeps as references."""
    train = prepared.featurised.train
    length = model.embed(train.features[:1]).shape[1]
    most = MAX_REFERENCES if model.net is prepared.loaded.net else MAX_REFERENCES_FINE_TUNED
    return choose_references(train.images.keys, length, most)


def _training_features(prepared: Prepared, model: Model, places: list[int]) -> Features:
    """Features of some training images by the finished network."""
    train = prepared.featurised.train
    if model.net is prepared.loaded.net:
        return train.features[places]
    keys = [train.images.keys[i] for i in places]
    return _uncached_features(prepared, model.net, keys)


def _without_near_copies(inspected: Inspected) -> list[int]:
    """Places of training images without a near copy, drawn by their content, at most ``USUAL``."""
    copies = {place for pair in inspected.inspection.duplicates for place in (pair.first, pair.second)}
    alone = [i for i, position in enumerate(inspected.positions["train"]) if position not in copies]
    keys = inspected.keys["train"]
    return sorted(sorted(alone, key=lambda i: keys[i])[:USUAL])


def mistakes_on_val(prepared: Prepared, logits: npt.NDArray[np.floating[Any]]) -> dict[str, Any]:
    """The most confident mistakes on val, for the log.

    Args:
        prepared: the run, which has validation images.
        logits: (N, classes) logits of the validation images.

    Returns:
        ``count``, ``of`` (images) and ``items`` (path, label, predicted label).
    """
    inspected = prepared.inspected
    dataset, positions, files = inspected.dataset, inspected.positions["val"], inspected.dataset.files()
    part = evaluate_predictions(
        "val",
        [files[i] for i in positions],
        dataset.labels[positions],
        probabilities_of(np.asarray(logits, np.float64), multi_label=dataset.multi_label),
        dataset.classes,
        thresholds=[DEFAULT_THRESHOLD] * len(dataset.classes) if dataset.multi_label else None,
    )
    wrong = part.mistakes()
    shown = wrong[:LOGGED_MISTAKES]
    names = zip(part.names_of(part.labels[shown]), part.names_of(part.given[shown]), strict=True)
    items = [[part.paths[i], label, predicted] for i, (label, predicted) in zip(shown, names, strict=True)]
    return {"count": len(wrong), "of": len(part.paths), "items": items}


def _data_document(inspection: Inspection) -> dict[str, Any]:
    train = inspection.split.positions("train")
    names = inspection.dataset.label_names()
    return {
        "name": inspection.dataset.name,
        "counts": inspection.counts(),
        "train_sha256": data_fingerprint([inspection.scanned.keys[i] for i in train], [names[i] for i in train]),
    }
