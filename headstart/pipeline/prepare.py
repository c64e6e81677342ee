"""What comes before any training by steps (weights, images, engines, plan, features, the head on them), and after it.

A run goes through it step by step and writes down what it finds; a loop of one's own has it done at once
(``pipeline.custom_loop``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from headstart.backbone.layers import Layout
from headstart.backbone.pixel_net import ActivationNet, FeatureNet, TappedNet, feature_shape, split_backbone
from headstart.backbone.split import INPUT, Boundary, SplittableBackbone
from headstart.backbone.weights import DEFAULT_BACKBONE, Backbone, load_backbone, random_backbone
from headstart.cache.row_store import RowStore
from headstart.data.augment import Augmentation
from headstart.data.dataset import Dataset
from headstart.data.duplicates import connected_parts
from headstart.data.inspection import Inspection, by_severity, inspect, summary_lines
from headstart.data.preprocessing import Preprocessing
from headstart.data.scan import PixelReader, measure_value_range
from headstart.data.splits import SplitShares
from headstart.engine.conv_bn_fusion import fold_for_training
from headstart.engine.device import resolve_device, training_device
from headstart.engine.interface import Engine, Identity, Pixels
from headstart.engine.measure import measure_engines
from headstart.engine.plan import EnginePlan
from headstart.engine.select import choose_engine
from headstart.engine.streaming import run_stream
from headstart.errors import DataError
from headstart.evaluation.metrics import CROSS_VALIDATION, AnyScores
from headstart.evaluation.predictions import Evaluated, evaluate_predictions
from headstart.features.activations import Activations, Continuation, ImageFiles, Views, activation_store
from headstart.features.extract import Tap, compute_features, feature_store, pick_sample, require_finite
from headstart.model import Model, data_fingerprint
from headstart.pipeline.base_classifier import Known
from headstart.progress import Progress, with_example
from headstart.reports.image_map import ImageMap, make_map
from headstart.runs.status import Noted
from headstart.runs.time_estimate import Step, Timetable
from headstart.training.finetune import TRAINING_TASK, Samples
from headstart.training.fit_head import Fitted, check_classes, check_heads, fit_classifier
from headstart.training.frozen_proof import Digests, digests_of, tensors_of
from headstart.training.head_spec import LINEAR
from headstart.training.heads import vectors_of
from headstart.training.ladder import (
    CROSS_VALIDATE_BELOW,
    FOLDS,
    Rung,
    boundary_before,
    plan_rungs,
    plan_text,
    trained_images,
)
from headstart.training.losses import (
    Folds,
    Labels,
    Parts,
    can_keep_together,
    class_sizes,
    count_learnable,
    learnable_folds,
    probabilities_of,
)
from headstart.training.out_of_fold import OutOfFold, of_frozen_features
from headstart.training.recipe import Recipe
from headstart.trust.calibration import EXTENDED_MODEL, Calibration, calibrate
from headstart.trust.feature_findings import inspect_features
from headstart.trust.ood import (
    INLIER_SHARE,
    MAX_REFERENCES,
    MAX_REFERENCES_FINE_TUNED,
    Scores,
    choose_references,
    cross_fitted_scores,
    make_ood_detector,
    typical_distance,
)
from headstart.trust.thresholds import DEFAULT_THRESHOLD, best_thresholds

MANY = 10**6
"""Images that an engine is chosen for where its choice is measured already: the fastest, however few they are."""


FEATURES_STEP, PROBE_STEP, LABELS_STEP, LAST_STEP = "features", "probe", "label check", "evaluation and report"
"""Steps of a run in its timetable, beside the rungs."""

ENGINE_SECONDS = 1.5
"""To build an engine and to compare it with plain PyTorch."""

PROBE_SECONDS, PROBE_SECONDS_PER_NUMBER = 0.5, 3e-7
"""To fit a classifier with its C chosen: at least, and for each number of the features times classes."""

REPORT_SECONDS, MAP_SECONDS_PER_IMAGE = 5.0, 1.3e-3
"""To draw a report with heat maps, and a map of the images."""

MAPPED = 1500
"""Images above which the time for a map hardly grows."""

LOGGED_MISTAKES = 12
"""Of each stage, in the log."""

PROBE_FOLDS = 5
"""Of cross-validation where nothing but a classifier on frozen features is fitted anew in each."""

USUAL = 5_000
"""Training images that say what is usual, at most."""

SCORED_BELOW = 30
"""Images of the largest set that is held out below which the score shown first is cross-validated: of 1 image, 1 right
is 100 %."""

CHECKED = 100_000
"""Images up to which a run looks for wrong labels: classifiers are fitted on all of them for it, five at a time."""


@dataclass(frozen=True)
class Labelled:
    """Images with labels, and the features that the classifier on them saw.

    Attributes:
        pictures: the images.
        labels: see ``training.losses``.
        features: (N, D) float32, or their maps.
    """

    pictures: ImageFiles
    labels: Labels
    features: npt.NDArray[np.float32]


@final
class Preparation:
    """Steps that need each other in this order: ``read_images``, ``measure``, ``plan``, ``run_backbone``, ``fit``.

    Args:
        dataset: the images.
        recipe: every choice.
        device: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder; the default one where it is not given.
        progress: told of each step.

    Raises:
        OptionError: a choice that cannot be carried out: no such backbone, device, layer or boundary, or a head that
            does not go with the features or the classes.
        WeightsError: its weights cannot be had.

    Attributes:
        seconds: that it took to load the backbone.
        backbone: pretrained, or random where the recipe says so.
        net: the frozen pass to features.
        look: the data, what was found in them, and the split.
        used: split -> numbers of its images in ``look.dataset``.
        keys: split -> content hashes of these images.
        engines: which of them run.
        sample: (n, H, W, 3) of the training images, see ``features.extract.pick_sample``.
        frozen: the backbone, cut; None where the effort trains nothing of it.
        rungs: of the ladder.
        train: what to learn from.
        val: what to judge by; None where there are no such images.
        timetable: of the run, from ``plan`` on.
        reported: features of all but the training images.
        fitted: the classifier on frozen features.
    """

    look: Inspection
    used: dict[str, list[int]]
    keys: dict[str, list[bytes]]
    engines: EnginePlan
    sample: Pixels
    train: Labelled
    val: Labelled | None
    timetable: Timetable
    reported: RowStore
    fitted: Fitted

    def __init__(
        self, dataset: Dataset, recipe: Recipe, *, device: str, cache: Path | None, progress: Progress
    ) -> None:
        started = time.monotonic()
        self.dataset, self.recipe, self.device, self.cache, self.progress = dataset, recipe, device, cache, progress
        resolve_device(device)
        self.known = Known(recipe) if recipe.extend else None
        name, image_size = recipe.backbone or DEFAULT_BACKBONE, recipe.image_size
        if self.known is not None:
            self.backbone = self.known.net.backbone
        elif recipe.scratch:
            self.backbone = random_backbone(name, image_size=image_size, seed=recipe.seed)
        else:
            self.backbone = load_backbone(name, weights=recipe.weights, image_size=image_size)
        for note in self.backbone.notes:
            progress.say(note)
        # An engine does this to the weights that it runs. Which engines are built depends on what the cache holds, and
        # kernels round otherwise in another memory format: so it is done here, for the training too.
        self.backbone.module.to(memory_format=torch.channels_last)
        own = None if self.known is None else self.known.net
        self.net = own or FeatureNet(self.backbone, pool=recipe.pooling, cut=recipe.cut or "")
        self.frozen: SplittableBackbone | None = None
        self.rungs: list[Rung] = []
        self._require_possible()
        self.seconds = round(time.monotonic() - started, 2)

    def _require_possible(self) -> None:
        """Checks every choice that can be checked before an image is read, and cuts the backbone where it is trained.

        Raises:
            OptionError: one that cannot be carried out.
        """
        recipe, dataset = self.recipe, self.dataset
        check_classes(recipe, len(dataset.classes), several=dataset.multi_label)
        if recipe.head != LINEAR:
            check_heads(recipe, feature_shape(self.net), len(dataset.classes), Layout.of(self.backbone.module))
        if recipe.effort != "probe":
            self.frozen = split_backbone(self.backbone, recipe.pooling, recipe.cut or "")
        if self.frozen is not None and recipe.is_named_depth:
            boundary_before(recipe.unfreeze or "all", self.frozen)

    def frozen_digests(self, head: nn.Module | None = None) -> Digests:
        """Of the backbone that runs the frozen pass, and of the classes that stay where a model is extended.

        Args:
            head: of the finished model; the one that is extended where it is not given.
        """
        own = digests_of(tensors_of(self.backbone.module))
        if self.known is not None and not self.recipe.train_old_classes:
            own |= digests_of(self.known.kept_tensors(head))
        return own

    def inspect_images(self) -> Inspection:
        """Looks at every image, keeps its pixels, and settles the split.

        Raises:
            DataError: the data cannot be used, or have no range of values where one is asked for.
        """
        if self.recipe.value_range == "data":
            self._measure_range()
        return self._inspected(self.backbone.preprocessing)

    def _inspected(self, preprocessing: Preprocessing | None) -> Inspection:
        return inspect(
            self.dataset,
            seed=self.recipe.seed,
            shares=SplitShares(self.recipe.val, self.recipe.test),
            preprocessing=preprocessing,
            cache=self.cache,
            progress=self.progress,
        )

    def _measure_range(self) -> None:
        """Puts the range of the training images' values into the preprocessing; a network from pixels follows it.

        Raises:
            DataError: no training image has more than 8 bits per channel.
        """
        look = self._inspected(None)
        bits, files = look.scanned.facts["bits"], look.dataset.files()
        deep = [i for i in look.split.positions("train") if bits[i] > 8]
        if not deep:
            raise DataError(
                f"{look.dataset.root}: no training image has more than 8 bits per channel, which --value-range data "
                "scales. Leave it out."
            )
        value_range = measure_value_range([files[i] for i in deep], progress=self.progress)
        preprocessing = replace(self.backbone.preprocessing, value_range=value_range)
        self.backbone = replace(self.backbone, preprocessing=preprocessing)
        self.net = FeatureNet(self.backbone, pool=self.recipe.pooling, cut=self.recipe.cut or "")
        low, high = (100 * share for share in value_range)
        self.progress.say(
            f"Range of values: {low:.3g} % to {high:.3g} % of the full scale become black to white, by {len(deep):,} "
            "training images of more than 8 bits per channel."
        )

    def read_images(self, look: Inspection | None = None) -> Inspection:
        """Looks at every image and settles the split.

        Args:
            look: what was found before, by this seed and these shares.

        Raises:
            DataError: the images do not suffice to learn from and to judge by.
            OptionError: the recipe does not go with the number of classes.
        """
        recipe = self.recipe
        self.look = look or self.inspect_images()
        _require_learnable(self.look, least=recipe.min_classes)
        dataset = self.look.dataset
        check_classes(recipe, len(dataset.classes), several=dataset.multi_label)
        if self.known is not None:
            self.look = replace(self.look, dataset=_behind(self.known.classes, self.look.dataset))
            self.known.remember(self.cache, self.progress)
        self.used = {name: self.look.split.positions(name) for name in self.look.split.names}
        self.keys = {name: [self.look.scanned.keys[i] for i in own] for name, own in self.used.items()}
        return self.look

    def say_findings(self) -> None:
        """Tells what was found in the data."""
        look = self.look
        parts = [f"{name} {count:,}" for name, count in look.split.sizes.items()]
        known = 0 if self.known is None else len(self.known.classes)
        own = len(look.dataset.classes) - known
        classes = f"{own:,} class{'es' if own > 1 else ''}" + (f" behind {known:,}" if known else "")
        if look.dataset.multi_label:
            each = look.dataset.labels[look.scanned.usable].sum(axis=1).mean()
            classes = f"{own:,} label{'s' if own > 1 else ''}, {each:.1f} to an image"
        self.progress.say(f"{look.dataset.root}: {classes}, {', '.join(parts)} images (split {look.split.origin}).")
        for line in summary_lines(look.findings):
            self.progress.say(line)
        labels, together = look.dataset.labels[self.used["train"]], self._together(self.used["train"])
        has_parts = len(set(together.tolist())) < len(together)
        if has_parts and self.known is None and not can_keep_together(labels, together):
            self.progress.say(
                "Warning: each class has training images of one group only (or near copies of one image), so "
                "cross-validation divides groups and its figures are too high. Add images of further groups."
            )

    def measure(self, kept: EnginePlan | None = None) -> EnginePlan:
        """Settles which engines run, by a sample of the training images.

        Args:
            kept: what was settled when the run began.
        """
        train = self.keys["train"]
        picked = pick_sample(train, self.look.dataset.labels[self.used["train"]])
        self.sample = self._pixels().read([train[place] for place in picked])
        with self.progress.task("Comparing engines", 1, "steps"):
            self.engines = kept or measure_engines(
                self.net,
                self.sample,
                count=len(train),
                device=self.device,
                cache=self.cache,
                progress=self.progress,
            )
        return self.engines

    def plan(self) -> list[str]:
        """Settles the rungs, where the effort has any, and the timetable; the plan in words, a line each."""
        train, images = len(self.keys["train"]), sum(map(len, self.keys.values()))
        rate = self.engines.rate
        folds = FOLDS if len(self.keys.get("val", [])) < CROSS_VALIDATE_BELOW else 0
        if self.frozen is not None and self.frozen.obstacle:
            self.progress.say(
                f"{self.backbone.architecture} can be cut at the head alone ({self.frozen.obstacle}): a probe is all "
                "there is."
            )
        elif self.frozen is not None:
            self.rungs = plan_rungs(
                self.recipe,
                self.frozen,
                train=train,
                rate=rate,
                folds=folds,
                training_rate=self.engines.training_rate,
                several=self.look.dataset.multi_label,
            )
        first, last = self._first_steps(), self._last_step()
        rungs = [
            Step(r.name, r.seconds, TRAINING_TASK, trained_images(r, train, folds), optional=number > 0)
            for number, r in enumerate(self.rungs)
        ]
        self.timetable = Timetable([*first, *rungs, last], self.progress)
        if isinstance(self.progress, Noted):
            self.progress.left = self.timetable.left
        self.progress = self.timetable
        begins = sum(step.seconds for step in first)
        return plan_text(self.rungs, images=images, train=train, folds=folds, first=begins, last=last.seconds)

    def _first_steps(self) -> list[Step]:
        """Features, probe and label check, with the seconds that they take."""
        seconds = 0.0
        for exact in (False, True):
            keys = [key for name, own in self.keys.items() if (name != "train") is exact for key in own]
            store = feature_store(self.net, self.engines.identity(exact=exact, device=self.device), self.cache)
            if missing := len(store.missing(keys)):
                seconds += ENGINE_SECONDS + missing / self._rate(exact=exact)
        numbers = len(self.keys["train"]) * math.prod(store.shape) * len(self.look.dataset.classes)
        fit = PROBE_SECONDS + numbers * PROBE_SECONDS_PER_NUMBER
        checked = self.known is None and sum(map(len, self.keys.values())) <= CHECKED
        return [
            Step(FEATURES_STEP, seconds),
            Step(PROBE_STEP, fit),
            Step(LABELS_STEP, fit * checked),
        ]

    def _last_step(self) -> Step:
        """Evaluation, map and report; a network that was trained runs on what it is judged by, and on references."""
        train, images = len(self.keys["train"]), sum(map(len, self.keys.values()))
        again = images - train + min(MAX_REFERENCES_FINE_TUNED, train) if self.rungs else 0
        drawn = REPORT_SECONDS + min(images, MAPPED) * MAP_SECONDS_PER_IMAGE
        return Step(LAST_STEP, again / self._rate(exact=True) + ENGINE_SECONDS * bool(again) + drawn)

    def _rate(self, *, exact: bool) -> float:
        """Images a second of an engine."""
        return self.engines.rates.get(self.engines.exact, self.engines.rate) if exact else self.engines.rate

    def run_backbone(self) -> None:
        """Features of every image; on the way, activations for the deepest rung."""
        others = [key for name, own in self.keys.items() if name != "train" for key in own]
        learnt = self._features(self.keys["train"], exact=False)
        self.reported = self._features(others, exact=True)
        self.train = self._labelled("train", learnt)
        self.val = self._labelled("val", self.reported) if self.keys.get("val") else None

    def check_labels(self) -> Inspection:
        """Looks for labels that are probably wrong and for images of no class, by the features, and says so in a line.

        After ``fit``, whose penalty it takes.

        Returns:
            What was found in the data, these findings among it. A model that is extended is spared this: of what it
            knew already there may be no images.
        """
        if self.known is not None or sum(map(len, self.keys.values())) > CHECKED:
            return self.look
        positions, _, vectors = self._all_vectors()
        c = self.fitted.settings["C"] if self.fitted.name == "probe" else None
        seed = self.recipe.seed
        together = self._together(positions)
        found = inspect_features(
            self.look.dataset, positions, vectors, c=c, seed=seed, together=together, progress=self.progress
        )
        if found:
            examples = [with_example(finding.message, finding.items).rstrip(".") for finding in found]
            self.progress.say(f"Warning: {'; '.join(examples)}.")
        self.look = replace(self.look, findings=by_severity([*self.look.findings, *found]))
        return self.look

    def map_images(self) -> ImageMap | None:
        """A map of all images by what the backbone, as it came, makes of them."""
        positions, splits, vectors = self._all_vectors()
        files, names = self.look.dataset.files(), self.look.dataset.label_names()
        paths, labels = [files[i] for i in positions], [names[i] for i in positions]
        with self.progress.task("Drawing the map of images", 1, "steps"):
            return make_map(paths, splits, labels, vectors, seed=self.recipe.seed)

    def _all_vectors(self) -> tuple[list[int], list[str], npt.NDArray[np.float32]]:
        """(positions, splits, (N, D) features) of all images that are in a split, those of train first."""
        names = ["train", *(name for name in self.used if name != "train")]
        others = [key for name in names[1:] for key in self.keys[name]]
        features = np.concatenate([self.train.features, self.reported.read(others)])
        places = [(i, name) for name in names for i in self.used[name]]
        vectors = vectors_of(features, Layout.of(self.backbone.module))
        return [i for i, _ in places], [name for _, name in places], vectors

    def fit(self) -> Fitted:
        """Fits the classifier on the features."""
        val = self.val
        if self.known is not None:
            self.fitted = self.known.fit(
                self.train.features,
                self.train.labels,
                self._features_of(self.known.rehearsed.keys, exact=False),
                names=self.look.dataset.classes[len(self.known.classes) :],
                together=self._together(self.used["train"]),
                progress=self.progress,
            )
            return self.fitted
        self.fitted = fit_classifier(
            self.recipe,
            self.train.features,
            self.train.labels,
            classes=len(self.look.dataset.classes),
            layout=Layout.of(self.backbone.module),
            dtype=self.engines.training_dtype,
            shown=self._shown(),
            val=None if val is None else (val.features, val.labels),
            together=self._together(self.used["train"]),
            progress=self.progress,
        )
        return self.fitted

    def mistakes(self, logits: npt.NDArray[np.floating[Any]]) -> dict[str, Any]:
        """The surest wrong answers on val, for the log.

        Args:
            logits: (N, classes) of the validation images.
        """
        assert self.val is not None
        several, classes = self.look.dataset.multi_label, self.look.dataset.classes
        thresholds = [DEFAULT_THRESHOLD] * len(classes) if several else None
        chances = probabilities_of(np.asarray(logits, np.float64), several=several)
        part = evaluate_predictions(
            "val", self.val.pictures.files, self.val.labels, chances, classes, thresholds=thresholds
        )
        wrong = part.mistakes()
        shown = wrong[:LOGGED_MISTAKES]
        names = zip(part.names_of(part.labels[shown]), part.names_of(part.given[shown]), strict=True)
        items = [[part.paths[i], right, given] for i, (right, given) in zip(shown, names, strict=True)]
        return {"count": len(wrong), "of": len(part.paths), "items": items}

    @property
    def few(self) -> bool:
        """Whether there are too few validation images to choose or to calibrate by; cross-validation helps out."""
        return self.val is None or len(self.val.labels) < CROSS_VALIDATE_BELOW

    def finish(
        self, backbone: Backbone, head: nn.Module, outside: OutOfFold | None = None
    ) -> tuple[Model, list[Evaluated]]:
        """The model that came of it, calibrated, and scored on images that it did not learn from.

        Args:
            backbone: the one that all began with, or that with other weights.
            head: behind it.
            outside: out-of-fold predictions of networks trained like this one. Where val is small and the backbone is
                the first one, the head alone is cross-validated here if they are not given.

        Returns:
            The model, and its predictions by set. Where none has ``SCORED_BELOW`` images, those by cross-validation
            come first.
        """
        look, changed = self.look, backbone is not self.backbone
        net = FeatureNet(backbone, pool=self.recipe.pooling, cut=self.recipe.cut or "") if changed else self.net
        thresholds = [DEFAULT_THRESHOLD] * len(look.dataset.classes) if look.dataset.multi_label else None
        model = Model(
            net,
            head,
            look.dataset.classes,
            recipe=self.recipe,
            data=_data_document(look),
            scores={},
            thresholds=thresholds,
        )
        features = {
            name: self._features_once(net, keys) if changed else self.reported.read(keys)
            for name, keys in self.keys.items()
            if name != "train"
        }
        unusual: Scores | None = None
        if self.known is not None:
            model.calibration = Calibration(missing=EXTENDED_MODEL)
        else:
            if outside is None and self.few and not changed:
                outside = self._out_of_fold()
            self._calibrate(model, features.get("val"), outside)
            unusual = self._judge_usual(model, features.get("val"), outside)
        evaluated: list[Evaluated] = []
        for name, own in features.items():
            labels = look.dataset.labels[self.used[name]]
            chances, odd = model.probabilities(own), model.outlier_scores(own)
            chose = name == "val"
            if chose and unusual is not None:
                odd = unusual[: len(own)]
            evaluated.append(self._evaluated(name, self.used[name], model, chances, odd, chose=chose))
            if self.known is not None:
                paths = [look.dataset.files()[i] for i in self.used[name]]
                evaluated += _among_new(name, paths, labels, chances, model.classes, len(self.known.classes))
        if self.known is not None:
            seen = self._features_of(self.known.judged.keys, exact=True)
            evaluated += self.known.judge(model, seen, progress=self.progress)
        elif outside is not None and (most := max(part.scores.count for part in evaluated)) < SCORED_BELOW:
            own_places = [self.used["train"][i] for i in outside.places]
            chances = probabilities_of(outside.logits / model.calibration.temperature, several=thresholds is not None)
            evaluated.insert(0, self._evaluated(CROSS_VALIDATION, own_places, model, chances, None, chose=True))
            self.progress.say(
                f"Only {most} image(s) held out: the first score is of training images, each judged by a classifier "
                f"that did not learn from it ({outside.folds}-fold cross-validation)."
            )
        model.scores = {e.scores.name: _short_scores(e.scores) for e in evaluated}
        return model, evaluated

    def _evaluated(
        self,
        name: str,
        own: list[int],
        model: Model,
        chances: npt.NDArray[np.float64],
        unusual: Scores | None,
        *,
        chose: bool,
    ) -> Evaluated:
        """Predictions for some images; ``chose`` as for ``evaluate_predictions``."""
        dataset = self.look.dataset
        files = dataset.files()
        paths = [files[i] for i in own]
        found = evaluate_predictions(
            name,
            paths,
            dataset.labels[own],
            chances,
            model.classes,
            thresholds=model.thresholds,
            chose=chose,
            together=self._together(own),
        )
        groups = None if dataset.groups is None else tuple(dataset.groups[i] for i in own)
        return replace(found, outliers=unusual, groups=groups)

    def folds(self, count: int) -> Folds:
        """Folds of the training images; groups, and near copies of an image, lie in one fold each.

        Args:
            count: of folds.
        """
        return learnable_folds(self.train.labels, count, self.recipe.seed, together=self._together(self.used["train"]))

    def _together(self, positions: Sequence[int]) -> Parts:
        """(N,) numbers of the parts that images fall into: groups and near copies, which no fold divides."""
        return connected_parts(positions, self.look.dataset.groups, self.look.duplicates)

    def _out_of_fold(self) -> OutOfFold | None:
        """Of the classifier on frozen features; None where every class has one image alone."""
        if class_sizes(self.train.labels).max() < 2:
            return None
        folds = self.folds(PROBE_FOLDS)
        return of_frozen_features(self.fitted, self.train.features, folds, progress=self.progress)

    def _calibrate(self, model: Model, val: npt.NDArray[np.float32] | None, outside: OutOfFold | None) -> None:
        """By what is said of images that were not learnt from: those of val, and out of fold."""
        logits, labels, sources = [], [], []
        judged: list[int] = []
        if val is not None and self.val is not None:
            logits.append(model.logits(val))
            labels.append(self.val.labels)
            judged += self.used["val"]
            sources.append(f"{len(val):,} validation images")
        if outside is not None:
            logits.append(outside.logits)
            labels.append(self.train.labels[outside.places])
            judged += [self.used["train"][i] for i in outside.places]
            sources.append(f"{len(outside.places):,} training images by {outside.folds}-fold cross-validation")
        if not logits:
            logits, labels = [np.empty((0, len(model.classes)))], [self.train.labels[:0]]
        all_logits, all_labels = np.concatenate(logits), np.concatenate(labels)
        model.calibration = calibrate(
            all_logits,
            all_labels,
            target_accuracy=self.recipe.target_accuracy,
            source=" and ".join(sources),
            together=self._together(judged),
        )
        if model.thresholds is not None:
            chances = probabilities_of(all_logits / model.calibration.temperature, several=True)
            model.thresholds = tuple(best_thresholds(chances, all_labels).tolist())

    def _judge_usual(
        self, model: Model, val: npt.NDArray[np.float32] | None, outside: OutOfFold | None
    ) -> Scores | None:
        """Settles what is usual.

        Returns:
            Outlier scores of the images that say it, val first, each fifth by the others; None where they are too few.
        """
        places, references = self._references(model)
        known = make_ood_detector(references)
        if known is None:
            return None
        distances = [] if val is None else [known.distances(model.embed(val))]
        judged = [] if val is None else list(self.used["val"])
        split = self.look.split
        drawn = (
            split.val_drawn or not split.given
        )  # a val that was given may differ from train, and be like later images
        if model.net is self.net and (drawn or self.few):  # frozen: training images are to each other as any image is
            own = self._without_twins()
            parts = self._together(self.used["train"])
            found = known.distances(model.embed(self.train.features[own]), parts=(parts[own], parts[places]))
            far = np.isfinite(found)  # with nothing but their own group among the references, they say nothing
            distances.append(found[far])
            judged += [self.used["train"][i] for i, kept in zip(own, far, strict=True) if kept]
        elif outside is not None and outside.distances is not None:
            distances.append(outside.distances * typical_distance(known, references))
            judged += [self.used["train"][i] for i in outside.places]
        every = np.concatenate(distances) if distances else np.empty(0)
        model.ood_detector = known.with_inlier_distances(every)
        if model.ood_detector is None:
            return None
        scores = cross_fitted_scores(every, together=self._together(judged))
        model.calibration = replace(
            model.calibration, num_inliers=len(scores), num_inliers_accepted=int((scores <= INLIER_SHARE).sum())
        )
        return scores

    def _references(self, model: Model) -> tuple[list[int], npt.NDArray[np.float32]]:
        """Some training images, and their (R, D) features as the finished network sees them."""
        changed, keys = model.net is not self.net, self.keys["train"]
        length = model.embed(self.train.features[:1]).shape[1]
        places = choose_references(keys, length, MAX_REFERENCES_FINE_TUNED if changed else MAX_REFERENCES)
        own = self._features_once(model.net, [keys[i] for i in places]) if changed else self.train.features[places]
        return places, model.embed(own)

    def _without_twins(self) -> list[int]:
        """Training images of which no other one is a near copy, drawn by their content, at most ``USUAL``."""
        twins = {place for pair in self.look.duplicates for place in (pair.first, pair.second)}
        alone = [i for i, place in enumerate(self.used["train"]) if place not in twins]
        keys = self.keys["train"]
        return sorted(sorted(alone, key=lambda i: keys[i])[:USUAL])

    def _pixels(self) -> PixelReader:
        return PixelReader(self.backbone.preprocessing, self._sources, cache=self.cache, progress=self.progress)

    @cached_property
    def _sources(self) -> dict[bytes, str]:
        """Content hash of each image -> its file."""
        files = self.look.dataset.files()
        sources = {self.look.scanned.keys[i]: files[i] for own in self.used.values() for i in own}
        if self.known is not None:
            for part in (self.known.rehearsed, self.known.judged):
                sources |= dict(zip(part.keys, part.files, strict=True))
        return sources

    def _features_once(self, net: FeatureNet, keys: list[bytes]) -> npt.NDArray[np.float32]:
        """Of weights that no other run has: from the pixels by the path that predictions take, and not kept."""
        pixels = self._pixels()
        engine = choose_engine(
            net,
            count=len(keys),
            sample=self.sample,
            plan=self.engines,
            device=self.device,
            progress=self.progress,
        )
        batches = [keys[place : place + engine.batch_size] for place in range(0, len(keys), engine.batch_size)]
        made = []
        with self.progress.task("Evaluating", len(keys)) as advance:
            for rows in run_stream(engine, map(pixels.read, batches)):
                require_finite(net, rows)
                made.append(rows)
                advance(len(rows))
        return np.concatenate(made)

    def _features(self, keys: list[bytes], *, exact: bool) -> RowStore:
        tap = None
        if self.rungs:
            assert self.frozen is not None
            tap = tap_at(self.rungs[-1].boundary, self.frozen, self.backbone, cache=self.cache)
        return compute_features(
            self.net,
            keys,
            sources=self._sources,
            engines=self.engines,
            sample=self.sample,
            exact=exact,
            tap=tap,
            device=self.device,
            cache=self.cache,
            progress=self.progress,
        )

    def _features_of(self, keys: list[bytes], *, exact: bool) -> npt.NDArray[np.float32]:
        """(N, D) of any pictures, also of none."""
        if not keys:
            return np.empty((0, *feature_shape(self.net)), np.float32)
        return self._features(keys, exact=exact).read(keys)

    def _labelled(self, name: str, features: RowStore) -> Labelled:
        files, own = self.look.dataset.files(), self.used[name]
        pictures = ImageFiles([files[i] for i in own], self.keys[name])
        return Labelled(pictures, self.look.dataset.labels[own], features.read(self.keys[name]))

    def _shown(self) -> Samples | None:
        """Features of augmented views, for a head that is trained by steps and is asked to see some."""
        recipe, own = self.recipe, self.train
        if recipe.head == LINEAR or not recipe.views:
            return None
        engine = choose_engine(
            self.net, count=MANY, sample=self.sample, plan=self.engines, exact=False, device=self.device
        )
        views = Views(recipe.views, recipe.seed, Augmentation(flip=recipe.flip))
        shape = own.features.shape[1:]
        made = Activations(
            self.net, own.pictures, shape=shape, engine=engine, views=views, cache=self.cache, progress=self.progress
        )
        made.prepare(self.progress)
        return Samples(made, own.labels, own.pictures.keys, recipe.views)


@final
class RungSamples:
    """The activations that rungs are trained and judged on.

    Args:
        prepared: as far as ``fit``.
    """

    def __init__(self, prepared: Preparation) -> None:
        assert prepared.frozen is not None
        self.backbone, self.frozen, self.rungs = prepared.backbone, prepared.frozen, prepared.rungs
        self.train, self.val, self.recipe = prepared.train, prepared.val, prepared.recipe
        self.engines, self.cache, self.progress = prepared.engines, prepared.cache, prepared.progress
        self.sample = prepared.sample
        self.few = prepared.few
        self.dtype, self.device = self.engines.training_dtype, training_device(prepared.device)
        self._asked_device = prepared.device
        self._made: dict[tuple[str, str], Activations] = {}

    def of(self, rung: Rung) -> tuple[Samples, Samples | None]:
        """(training images in the rung's views, validation images)."""
        train = self._activations(rung, "train", rung.views)
        train.prepare(self.progress)
        own = Samples(train, self.train.labels, self.train.pictures.keys, rung.views)
        if self.val is None:
            return own, None
        val = self._activations(rung, "val", 0)
        val.prepare(self.progress)
        return own, Samples(val, self.val.labels, self.val.pictures.keys, 0)

    def plain(self, rung: Rung) -> Samples:
        """The training images as they are, in float32."""
        made = self._activations(rung, "plain", 0)
        made.prepare(self.progress)
        return Samples(made, self.train.labels, self.train.pictures.keys, 0)

    def describe(self, rung: Rung) -> dict[str, Any]:
        """How the training images' activations were come by, for the log."""
        return self._made[rung.boundary.name, "train"].describe()

    def _activations(self, rung: Rung, what: str, views: int) -> Activations:
        """Those of the deepest rung come from pixels, those of the others from them."""
        boundary = rung.boundary.name
        if (boundary, what) in self._made:
            return self._made[boundary, what]
        deepest = self.rungs[-1]
        pictures = self.val.pictures if what == "val" and self.val is not None else self.train.pictures
        shown = Views(views, self.recipe.seed, Augmentation(flip=self.recipe.flip)) if views else None
        net = ActivationNet(self.backbone, boundary, self.frozen.prefix(boundary))
        if rung is deepest:
            engine = self._engine(net, exact=what != "train")
            made = Activations(
                net,
                pictures,
                shape=rung.boundary.shape,
                engine=engine,
                views=shown,
                cache=self.cache,
                progress=self.progress,
            )
        else:
            earlier = self._activations(deepest, what, views)
            earlier.prepare(self.progress)
            part = self.frozen.segment(deepest.boundary.name, boundary)
            assert isinstance(part, fx.GraphModule)
            dtype = self.dtype if what == "train" else torch.float32
            through = Continuation(deepest.boundary.name, fold_for_training(part, dtype), dtype)
            passes = rung.settings.epochs * (FOLDS if self.few else 1) if what == "train" else 2
            made = Activations(
                net,
                pictures,
                shape=rung.boundary.shape,
                engine=earlier.engine,
                views=shown,
                keep=passes > max(1, views),
                cache=self.cache,
                source=(earlier, through),
                progress=self.progress,
            )
            if not made.keep:
                made.reason = "made anew each time: each row is needed once"
        self._made[boundary, what] = made
        return made

    def _engine(self, net: ActivationNet, *, exact: bool) -> Engine:
        engines = self.engines
        if net.boundary == INPUT:
            engines = replace(engines, exact="torch", fast="torch")
        return choose_engine(
            net,
            count=MANY,
            sample=self.sample,
            plan=engines,
            exact=exact,
            device=self._asked_device,
            progress=self.progress,
        )


def tap_at(boundary: Boundary, frozen: SplittableBackbone, backbone: Backbone, *, cache: Path | None) -> Tap | None:
    """What keeps the images' activations at a boundary while their features are computed; None at the input."""
    if boundary.name == INPUT:
        return None
    net = ActivationNet(backbone, boundary.name, frozen.prefix(boundary.name))

    def store(identity: Identity) -> RowStore:
        return activation_store(net, boundary.shape, identity=identity, cache=cache)

    return Tap(TappedNet(backbone, boundary.name, frozen.tapped(boundary.name)), store)


def _behind(known: tuple[str, ...], dataset: Dataset) -> Dataset:
    """The same images; their new classes stand behind those that are known.

    Raises:
        DataError: none is new.
    """
    new = [name for name in dataset.classes if name not in known]
    if not new:
        raise DataError(
            f"{dataset.root}: all of its classes are known to the model already ({', '.join(dataset.classes[:10])}); "
            "there is nothing to extend it by."
        )
    classes = (*known, *new)
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[name] for name in dataset.label_names()], np.int64)
    return replace(dataset, classes=classes, labels=labels)


def _among_new(
    name: str,
    paths: list[str],
    labels: Labels,
    probabilities: npt.NDArray[np.float64],
    classes: tuple[str, ...],
    known: int,
) -> list[Evaluated]:
    """Images of new classes, told apart from each other alone."""
    own = labels >= known
    if not own.any() or len(classes) - known < 2:
        return []
    chances = probabilities[own][:, known:]
    shares = chances / chances.sum(axis=1, keepdims=True).clip(min=np.finfo(float).tiny)
    mine = [path for path, new in zip(paths, own, strict=True) if new]
    return [evaluate_predictions(f"{name} among the new", mine, labels[own] - known, shares, classes[known:])]


def _require_learnable(look: Inspection, *, least: int) -> None:
    sizes = look.split.sizes
    usable = int(look.scanned.usable.sum())
    if usable > 1 and look.num_distinct_images() == 1:
        raise DataError(
            f"{look.dataset.root}: its {usable:,} files are one image, identical or nearly so: there is nothing to "
            "learn. Add images that differ."
        )
    learnable = [label for label, count in look.counts().get("train", {}).items() if count]
    if look.dataset.multi_label:
        labels = look.dataset.labels[look.split.positions("train")]
        if not count_learnable(labels):
            raise DataError(
                f"{look.dataset.root}: {len(labels):,} training image(s), and each label stands on all of them or on "
                "none: there is nothing to tell apart. Add images, or choose smaller shares for val and test."
            )
    elif len(learnable) < least:
        raise DataError(
            f"{look.dataset.root}: training images of {len(learnable)} class(es) only; a classifier needs {least}. "
            "Add images, or choose smaller shares for val and test."
        )
    if not sizes.keys() & {"val", "test"}:
        raise DataError(
            f"{look.dataset.root}: no image is left to score the classifier on ({len(look.dataset)} in all). "
            "Add images, or choose a larger share for val."
        )


def _data_document(look: Inspection) -> dict[str, Any]:
    train = look.split.positions("train")
    names = look.dataset.label_names()
    return {
        "name": look.dataset.root.name,
        "counts": look.counts(),
        "train_sha256": data_fingerprint([look.scanned.keys[i] for i in train], [names[i] for i in train]),
    }


def _short_scores(scores: AnyScores) -> dict[str, Any]:
    return {k: v for k, v in scores.as_json().items() if k not in ("classes", "confusion")}
