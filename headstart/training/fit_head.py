"""Fitting a classifier on frozen features: logistic regression, another classical classifier, or trained heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from headstart.backbone.layers import Layout
from headstart.errors import OptionError
from headstart.progress import Progress
from headstart.training.classical import CLASSICAL
from headstart.training.head_search import HeadSearchSettings, train_heads
from headstart.training.head_spec import LINEAR, HeadSpec, parse_heads
from headstart.training.heads import PLAIN, build_head, linear_head, mean_of_linear
from headstart.training.losses import Labels, Parts, is_multi_label
from headstart.training.penalty import Features, Penalty
from headstart.training.probe import fit_probe, refit_probe, require_learnable
from headstart.training.recipe import LOGISTIC, Recipe
from headstart.training.sampling import FeatureRows, Samples

EPOCHS_OF_VIEWS = 30
"""Default epochs of trained heads with augmented views; without views fewer epochs are enough."""

Refit = Callable[[npt.NDArray[np.int64]], nn.Module]


@dataclass(frozen=True)
class Fitted:
    """A classifier that was fitted on features.

    Attributes:
        head: (N, ...) features -> (N, classes) logits.
        name: for tables: "probe", "probe svm", "head 512-0.5".
        reason: why its settings were chosen, a sentence.
        settings: the settings and how they were chosen, a JSON document.
        refit: indices of training images -> a head with the same settings that is fitted on these only.
        frozen: number of the head's weights that existed before and were not changed.
        history: figures of each epoch of a trained head, see ``head_search.HeadSearchResult``.
    """

    head: nn.Module
    name: str
    reason: str
    settings: dict[str, Any]
    refit: Refit
    history: list[dict[str, float]] = field(default_factory=list, repr=False)
    frozen: int = 0


@dataclass(frozen=True)
class HeadData:
    """What a classifier is fitted on: N training images.

    Attributes:
        features: (N, D) float32, or their maps.
        labels: see ``training.losses``.
        classes: number of classes.
        layout: meaning of the axes of a map.
        dtype: of hidden layers and convolutions in training: float32 or bfloat16.
        views: augmented views of the same images, for trained heads; default: ``features``.
        val: features and labels on which trained heads are compared; default: held-out training images.
        sample_weight: (N,) weights of the images, above 0, for logistic regression only; as in scikit-learn, a weight
            of 2 counts like the same image twice.
        together: (N,) part of each image; parts are not divided by folds or held-out images, see
            ``losses.learnable_folds``.
        penalty: of logistic regression, if it was chosen before, see ``fit_probe``.
    """

    features: Features
    labels: Labels
    classes: int
    layout: Layout = PLAIN
    dtype: torch.dtype = torch.float32
    views: Samples | None = None
    val: tuple[Features, Labels] | None = None
    sample_weight: npt.NDArray[np.float64] | None = None
    together: Parts | None = None
    penalty: Penalty | None = None


def fit_classifier(
    recipe: Recipe, data: HeadData, *, progress: Progress | None = None, cache: Path | None = None
) -> Fitted:
    """Fits the classifier of a recipe.

    Args:
        recipe: its ``probe``, ``head``, ``single_logit``, ``balance_classes`` and ``seed``, and for trained heads
            ``head_epochs`` and ``head_lr``.
        data: features, labels and what else the fit uses.
        progress: receives the number of fits done.
        cache: the cache folder, where the same fit of a linear probe is kept; None to fit in any case.

    Raises:
        DataError: fewer than two classes have images.
        OptionError: a head is not possible for the features or classes, or does not support ``sample_weight``.
    """
    require_learnable(data.labels)
    check_classes(recipe, data.classes, multi_label=is_multi_label(data.labels))
    specs = check_heads(recipe, data.features.shape[1:], data.classes, data.layout)
    if data.sample_weight is not None and (recipe.head != LINEAR or recipe.probe != LOGISTIC):
        other = f"head {recipe.head!r}" if recipe.head != LINEAR else f"probe {recipe.probe!r}"
        raise OptionError(f"sample_weight: supported only by probe {LOGISTIC!r} with a linear head, not by {other}.")
    if recipe.head != LINEAR:
        return _trained(recipe, specs, data, progress)
    return _logistic(recipe, data, progress, cache) if recipe.probe == LOGISTIC else _classical(recipe, data, progress)


def is_fitted_by_network(recipe: Recipe, networks: int) -> bool:
    """Whether ``fit_by_network`` differs from ``fit_classifier``."""
    return networks > 1 and recipe.head == LINEAR and recipe.probe == LOGISTIC


def fit_by_network(
    recipe: Recipe,
    data: HeadData,
    widths: Sequence[int],
    *,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Fitted:
    """Fits a classifier on the features of each network alone; the head has the mean of their logits.

    Fine-tuning of networks side by side begins with it, because each learns as if it were alone. Only logistic
    regression is fitted in this way.

    Args:
        recipe: see ``fit_classifier``, and so the following and the errors.
        data: features of all networks.
        widths: numbers of features of each.
        progress: receives the number of fits done.
        cache: the cache folder.
    """
    if not is_fitted_by_network(recipe, len(widths)):
        return fit_classifier(recipe, data, progress=progress, cache=cache)
    parts = np.split(data.features, np.cumsum(widths)[:-1], axis=1)
    alone = [
        fit_classifier(recipe, replace(data, features=np.ascontiguousarray(part)), progress=progress, cache=cache)
        for part in parts
    ]
    reason = "; ".join(f"network {place}: {one.reason}" for place, one in enumerate(alone, start=1))
    settings = {"C": alone[0].settings["C"], "reason": reason, "networks": [one.settings for one in alone]}
    head = mean_of_linear([one.head for one in alone])
    return Fitted(head, alone[0].name, reason, settings, lambda learn: mean_of_linear([o.refit(learn) for o in alone]))


def _logistic(recipe: Recipe, data: HeadData, progress: Progress | None, cache: Path | None) -> Fitted:
    options: dict[str, Any] = {"classes": data.classes, "balance": recipe.balance_classes}
    probe = fit_probe(
        data.features,
        data.labels,
        **options,
        sample_weight=data.sample_weight,
        seed=recipe.seed,
        together=data.together,
        penalty=data.penalty,
        progress=progress,
        cache=cache,
    )
    options |= {"c": probe.c, "single": recipe.single_logit}
    refit = partial(
        _refit_logistic,
        features=data.features,
        labels=data.labels,
        sample_weight=data.sample_weight,
        cache=cache,
        **options,
    )
    losses = {str(c): loss for c, loss in probe.losses.items()}
    settings = {"C": probe.c, "reason": probe.reason, "losses": losses}
    head = _linear(probe.weight, probe.bias, single=recipe.single_logit)
    return Fitted(head, "probe", probe.reason, settings, refit)


def _refit_logistic(
    learn: npt.NDArray[np.int64],
    *,
    features: Features,
    labels: Labels,
    sample_weight: npt.NDArray[np.float64] | None,
    single: bool,
    **settings: Any,
) -> nn.Module:
    weights = None if sample_weight is None else sample_weight[learn]
    return _linear(*refit_probe(features[learn], labels[learn], sample_weight=weights, **settings), single=single)


def check_heads(recipe: Recipe, shape: Sequence[int], classes: int, layout: Layout = PLAIN) -> list[HeadSpec]:
    """The heads of a recipe, checked against the features.

    Args:
        recipe: its ``head`` and ``single_logit``.
        shape: of the features of one image.
        classes: number of classes.
        layout: meaning of the axes of a map.

    Raises:
        OptionError: a head is not possible for the features or classes.
    """
    specs = [replace(spec, single=recipe.single_logit) for spec in parse_heads(recipe.head)]
    with torch.device("meta"):
        for spec in specs:
            build_head(spec, shape, classes, layout)
    return specs


def check_classes(recipe: Recipe, classes: int, *, multi_label: bool) -> None:
    """Checks that a recipe's options are possible for the number of classes, or for multi-label data.

    Raises:
        OptionError: a single logit for more than two classes; or multi-label data with a single-label option.
    """
    asked = {
        "single_logit": recipe.single_logit,
        f"probe {recipe.probe}": recipe.probe != LOGISTIC,
        "balance_classes": recipe.balance_classes,
        "extend": bool(recipe.extend),
    }
    if multi_label and (names := [name for name, given in asked.items() if given]):
        raise OptionError(
            f"{names[0]}: applies to images of one class each, but the data is multi-label, with a threshold per "
            "label; leave the option out."
        )
    if recipe.single_logit and classes != 2:
        raise OptionError(f"single_logit: requires two classes, and the data has {classes}.")


def _linear(weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32], *, single: bool) -> nn.Module:
    """A linear head; a single logit is the difference of both logits, with the same probabilities."""
    if single:
        return linear_head(weight[1:] - weight[:1], bias[1:] - bias[:1], single=True)
    return linear_head(weight, bias)


def _classical(recipe: Recipe, data: HeadData, progress: Progress | None) -> Fitted:
    options: dict[str, Any] = {"classes": data.classes, "balance": recipe.balance_classes, "seed": recipe.seed}
    found = CLASSICAL[recipe.probe](data.features, data.labels, **options, together=data.together, progress=progress)
    refit = partial(
        _refit_classical,
        name=recipe.probe,
        features=data.features,
        labels=data.labels,
        **options,
        settings=found.settings,
    )
    settings = found.settings | {"reason": found.reason}
    return Fitted(found.head, f"probe {recipe.probe}", f"{recipe.probe}, {found.reason}", settings, refit)


def _refit_classical(
    learn: npt.NDArray[np.int64], *, name: str, features: Features, labels: Labels, **settings: Any
) -> nn.Module:
    return CLASSICAL[name](features[learn], labels[learn], **settings).head


def _trained(recipe: Recipe, specs: list[HeadSpec], data: HeadData, progress: Progress | None) -> Fitted:
    train = data.views or in_memory(data.features, data.labels)
    smoothing = recipe.label_smoothing
    settings = HeadSearchSettings(
        epochs=recipe.head_epochs or (HeadSearchSettings.epochs if data.views is None else EPOCHS_OF_VIEWS),
        rates=(recipe.head_lr,) if recipe.head_lr else HeadSearchSettings.rates,
        label_smoothing=HeadSearchSettings.label_smoothing if smoothing is None else smoothing,
        balance_classes=recipe.balance_classes,
        seed=recipe.seed,
    )
    options: dict[str, Any] = {
        "classes": data.classes,
        "layout": data.layout,
        "dtype": data.dtype,
        "progress": progress,
    }
    held_out = None if data.val is None else in_memory(*data.val)
    found = train_heads(specs, train, held_out, settings, together=data.together, **options)
    best = found.best
    alone = replace(settings, rates=(best.lr,), penalties=(best.penalty,))
    refit = partial(_refit_trained, spec=best.spec, train=train, settings=alone, **options)
    tried = [candidate.as_json() for candidate in found.candidates]
    document = {"head": str(best.spec), "reason": found.reason, "tried": tried}
    return Fitted(found.head, f"head {best.spec}", found.reason, document, refit, found.history)


def _refit_trained(
    learn: npt.NDArray[np.int64], *, spec: HeadSpec, train: Samples, settings: HeadSearchSettings, **options: Any
) -> nn.Module:
    return train_heads([spec], train.some(learn), None, settings, **options).head


def in_memory(features: Features, labels: Labels) -> Samples:
    """Features in memory as samples with one view of each image."""
    return Samples(FeatureRows(torch.from_numpy(features)), labels, [b""] * len(labels), 0)
