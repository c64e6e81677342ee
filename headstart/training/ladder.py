"""The ladder: how many layers to fine-tune, decided by measurement.

The lowest rung is the probe; each higher rung fine-tunes from an earlier freeze boundary. A rung starts from the
pretrained weights and the probe's head, or continues from the rung below (gradual unfreezing). Rungs are tried while
the gain is statistically significant, and the best rung is kept, not the last.

A new depth is a line in ``SHARES``; an effort that uses it is a line in ``EFFORTS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headstart.backbone.layers import BatchNorm, group_names
from headstart.backbone.split import HEAD, INPUT, Boundary, SplittableBackbone
from headstart.errors import OptionError, suggestion
from headstart.import_effects import import_quietly
from headstart.training.finetune import FineTuneSettings
from headstart.training.recipe import Recipe
from headstart.training.tuning import Tuning, trained_counts
from headstart.trust.temperature import Losses

ALPHA = 0.05
"""Significance level: a gain counts if noise alone would cause one as large less often than this."""

CROSS_VALIDATE_BELOW = 100
"""Number of validation images below which rungs are also compared by cross-validation on the training images."""

FOLDS = 2
"""Folds of this cross-validation: each half is evaluated by a network that was trained on the other.

Both halves together take no longer than the training itself; three folds take twice as long and have the same result
(docs/results/2026-11-29-calibration.md).
"""

FOLD_EPOCHS = 0.75
"""Share of a rung's epochs in a fold, which has fewer images to learn (docs/results/2026-11-29-calibration.md)."""

KNN = "kNN"
"""Name of the nearest-neighbour reference, which has no probabilities and therefore no log loss."""

DEEPER_FROM = 0.15
"""Log loss of the probe, in nats, below which only the first rung is tried, unless a depth is requested.

Measured on five data sets (docs/concepts/ladder.md): where the probe's log loss was 0.02 to 0.12, no depth was better
than the first rung; where it was 0.20 and 0.22, deeper rungs were.
"""

SHARES = {"last": 0.90, "half": 0.65}
"""Depth -> largest share of the forward pass before the boundary."""


@dataclass(frozen=True)
class Effort:
    """The rungs of an effort, and defaults of their training.

    Attributes:
        depths: of its rungs, in order; names in ``SHARES``.
        epochs: of each rung.
        views: augmented views of each training image.
        cutmix: see ``finetune.FineTuneSettings``; few layers in few epochs learn best without it.
        label_smoothing: see ``finetune.FineTuneSettings``.
    """

    depths: tuple[str, ...]
    epochs: tuple[int, ...]
    views: int
    cutmix: float = 0.5
    label_smoothing: float = 0.1


EFFORTS = {
    "probe": Effort((), (), 0),
    "quick": Effort(("last",), (6,), 2, cutmix=0.0, label_smoothing=0.05),
    "standard": Effort(("last", "half"), (3, 6), 3),
    "thorough": Effort(("last", "half"), (3, 18), 8),
    "deep": Effort(("half",), (6,), 3),
}

_ONLY_IF = f"only if the log loss of the probe is above {DEEPER_FROM} and the previous rung is a significant gain"

LAST_LR = 2e-3
"""Default learning rate from the boundary of depth "last" or a later one: few layers learn best in larger steps.

Chosen by cross-validation on the training images of flowers; 3e-3 was as good there, and worse on small data sets
(docs/results/2026-11-27-quick.md). From earlier boundaries the default is ``FineTuneSettings.lr``.
"""

LR_WITHOUT_BATCHNORM = 1e-4
"""Default learning rate for networks without BatchNorm (VGG, ConvNeXt, vision transformers).

Ten times less than with BatchNorm, as is common; not measured here.
"""

PARAMETER_EFFICIENT_LR = 10.0
"""Factor of the default learning rate for networks without BatchNorm if only biases and norms, or low-rank updates, are
trained. Ten times the rate of full fine-tuning is common for both; not measured here."""

SCRATCH_EPOCHS = 30
SCRATCH_LR = 3e-3
"""Default epochs and learning rate when training from random weights."""

LEAST_STEPS = 150
"""Minimum number of steps of a rung; small data sets get more epochs, up to ``MOST_EPOCHS``."""

MOST_EPOCHS = 30

TRAINING_COST = 3.5
"""Time of a forward and backward pass of a suffix, in forward passes of the fastest PyTorch engine
(docs/results/2026-11-22-heads.md)."""


@dataclass(frozen=True)
class Rung:
    """One depth of fine-tuning.

    Attributes:
        boundary: the freeze boundary; what is trained is after it.
        first_part: the first part that is trained, "blocks.6", as ``recipe.unfreeze`` takes it.
        settings: how it is trained.
        views: augmented views of each training image.
        seconds: expected time of activations and training.
        why: a clause for the user.
        num_trained: number of weights that are trained, without those of the head.
    """

    boundary: Boundary
    first_part: str
    settings: FineTuneSettings
    views: int
    seconds: float
    why: str
    num_trained: int = 0

    @property
    def name(self) -> str:
        """For tables: "fine-tune from blocks.6", "LoRA from blocks.6"."""
        method = self.settings.tuning.method
        if self.boundary.name == INPUT:
            return {"full": "fine-tune", "bias-norm": "bias and norm of", "lora": "LoRA in"}[method] + " all layers"
        return {"full": "fine-tune", "bias-norm": "bias and norm", "lora": "LoRA"}[method] + f" from {self.first_part}"


@dataclass(frozen=True)
class RungResult:
    """The evaluation of a rung.

    Attributes:
        name: "kNN", "probe", "fine-tune from blocks.6".
        boundary: name of the freeze boundary; ``HEAD`` for kNN and probe.
        correct: number of correct images, of ``count``.
        count: validation images; if there are few, with the training images of a cross-validation.
        low: lower end of the 95 % Wilson interval of the accuracy, 0-1.
        high: upper end of this interval.
        log_loss: mean of ``temperature.calibrated_losses``, in nats.
        seconds: time that it took.
        epochs: trained.
        p: p-value of the gain in log loss over the best rung below; None for the first.
        decision: what was decided and why, in words.
    """

    name: str
    boundary: str
    correct: int
    count: int
    low: float
    high: float
    log_loss: float
    seconds: float
    epochs: int = 0
    p: float | None = None
    decision: str = ""


def plan_rungs(
    recipe: Recipe,
    split: SplittableBackbone,
    *,
    train: int,
    rate: float,
    folds: int = 0,
    training_rate: float | None = None,
    multi_label: bool = False,
) -> list[Rung]:
    """The rungs of a recipe, shallowest first.

    Args:
        recipe: effort, and the options that override it.
        split: the backbone.
        train: number of training images.
        rate: images per second of the whole backbone in the fast engine.
        folds: of the cross-validation that rungs are compared by; 0 for none.
        training_rate: images per second of the fastest PyTorch engine; default ``rate``.
        multi_label: images may have any number of labels. CutMix and label smoothing, which are for one class, are then
            off by default (measured, docs/how-to/multi-label.md).

    Raises:
        OptionError: see ``check_depths``.
    """
    effort = EFFORTS[recipe.effort]
    if multi_label:
        effort = replace(effort, cutmix=0.0, label_smoothing=0.0)
    depths, counts = _depths(recipe, split), check_depths(recipe, split)
    settings = [_settings(recipe, effort, epochs, train, lr=_lr(b, split, recipe)) for b, epochs, _ in depths]
    if recipe.gradual_unfreezing:
        settings = [replace(one, first_view=sum(o.epochs for o in settings[:i])) for i, one in enumerate(settings)]
    most_views = max((one.first_view + one.epochs for one in settings), default=0)
    if recipe.fresh_views or (recipe.scratch and not recipe.views):
        views = most_views
    else:
        views = recipe.views or min(effort.views or 4, most_views)
    rungs = [
        Rung(boundary, unfreeze_name(boundary, split), one, views, 0.0, why, num_trained)
        for (boundary, _, why), one, num_trained in zip(depths, settings, counts, strict=True)
    ]
    return _with_seconds(rungs, train, rate, training_rate or rate, folds)


def check_depths(recipe: Recipe, split: SplittableBackbone) -> list[int]:
    """Checks that each rung of a recipe has weights to train.

    Args:
        recipe: effort, and the options that override it.
        split: the backbone.

    Returns:
        The number of weights that each rung trains, without those of the head.

    Raises:
        OptionError: ``recipe.unfreeze`` is not a part of the backbone (lists the parts), or there is nothing to train
            by the method that ``recipe.tune`` names.
    """
    tuning = tuning_of(recipe)
    counts = []
    for boundary, _, _ in _depths(recipe, split):
        counts.append(sum(trained_counts(split, boundary.name, tuning).values()))
        if not counts[-1] and tuning.method != "full":
            raise OptionError(_nothing_to_train(boundary, split, tuning))
    return counts


def _nothing_to_train(boundary: Boundary, split: SplittableBackbone, tuning: Tuning) -> str:
    """Why a method has nothing to train, and what to choose instead."""
    first, start = unfreeze_name(boundary, split), split.boundaries[0].name
    layers, remedy = "biases and no normalization layers", "tune full or lora"
    if tuning.method == "lora":
        layers, remedy = "linear layers", "tune full or bias-norm"
    if tuning.method == "lora" and trained_counts(split, boundary.name, replace(tuning, rank=1)):
        layers, remedy = f"linear layers with more weights than an update of rank {tuning.rank}", "a smaller lora_rank"
    if boundary.name == start or not trained_counts(split, start, tuning):
        return f"tune {tuning.method!r}: the backbone has no {layers}. Choose {remedy}, or another backbone."
    return (
        f"tune {tuning.method!r}: the layers from {first} on have no {layers}. Choose {remedy}, or unfreeze an earlier "
        f"layer group than {first}."
    )


def tuning_of(recipe: Recipe) -> Tuning:
    """Which weights the rungs of a recipe train; "auto" is "full"."""
    method = "full" if recipe.tune == "auto" else recipe.tune
    return Tuning(method, recipe.lora_rank, recipe.update_batchnorm or recipe.scratch)


_Depth = tuple[Boundary, int, str]
"""(boundary, epochs, why it is tried)."""


def _depths(recipe: Recipe, split: SplittableBackbone) -> list[_Depth]:
    """The depths of a recipe's rungs, shallowest first."""
    effort = EFFORTS[recipe.effort]
    return _requested_depth(recipe, effort, split) or _depths_of(recipe, effort, split)


def _requested_depth(recipe: Recipe, effort: Effort, split: SplittableBackbone) -> list[_Depth]:
    """The depth that the recipe names; none if the effort determines the depths."""
    if not (recipe.unfreeze or recipe.scratch):
        return []
    epochs = recipe.epochs or (SCRATCH_EPOCHS if recipe.scratch else max(effort.epochs))
    why = "random weights" if recipe.scratch else "as requested"
    return [(boundary_before(recipe.unfreeze or "all", split), epochs, why)]


def _depths_of(recipe: Recipe, effort: Effort, split: SplittableBackbone) -> list[_Depth]:
    """The depths of an effort; of depths at the same boundary only the first."""
    found: dict[str, _Depth] = {}
    for depth, epochs in zip(effort.depths, effort.epochs, strict=True):
        boundary = deepest_at(SHARES[depth], split)
        if boundary is not None:
            why = f"{100 * (1 - boundary.cost_before):.0f} % of the forward pass is trained"
            found.setdefault(boundary.name, (boundary, recipe.epochs or epochs, why))
    return list(found.values())


def plan_text(rungs: Sequence[Rung], *, images: int, train: int, folds: int, first: float, last: float) -> list[str]:
    """The plan for the user: each step, its expected time and the reason for it, one line each.

    Args:
        rungs: of the ladder; none for a probe only.
        images: number of images.
        train: number of training images.
        folds: of the cross-validation that rungs are compared by; 0 for none.
        first: seconds for features, probe and label check.
        last: seconds for evaluation, map and report.
    """
    lines = [f"Plan: features of {images:,} images and a probe, about {first:.0f} s."]
    repeated = f", once in each of {folds} folds and once on all images" if folds else ""
    for number, rung in enumerate(rungs, start=1):
        lines.append(
            f"Plan, rung {number}: {rung.name} ({rung.why}; {rung.num_trained:,} weights), "
            f"{rung.views} views of {train:,} images, {rung.settings.epochs} epochs{repeated}, "
            f"about {rung.seconds:.0f} s" + ("." if number == 1 else f"; {_ONLY_IF}.")
        )
    whole = first + last + sum(rung.seconds for rung in rungs[:1])
    without = " without later rungs" if len(rungs) > 1 else ""
    lines.append(f"Plan: evaluation, map and report, about {last:.0f} s; about {whole:.0f} s in all{without}.")
    return lines


def fold_settings(settings: FineTuneSettings) -> FineTuneSettings:
    """How a rung is trained in each fold of its cross-validation."""
    return replace(settings, epochs=max(1, round(FOLD_EPOCHS * settings.epochs)))


def paired_p(before: Losses, after: Losses) -> float:
    """p-value of a lower mean loss: one-sided paired t-test of the images' losses.

    Losses are more sensitive than accuracy: a short rung that corrects few images may make many of them more likely.

    Args:
        before: (N,) of each image, see ``temperature.calibrated_losses``.
        after: (N,) of the same images.

    Source: Student's paired test, one-sided ("The Probable Error of a Mean", Biometrika 6, 1908).
    """
    gain = before - after
    if len(gain) < 2 or float(np.ptp(gain)) == 0.0:
        return 0.0 if len(gain) and gain[0] > 0 else 1.0
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    student = import_quietly("scipy.special").stdtr  # SciPy's own tests are imported in 0.3 s
    return float(student(len(gain) - 1, -gain.mean() / error))


def can_improve(correct: npt.NDArray[np.bool_]) -> bool:
    """True if correcting every remaining mistake would be significant (sign test)."""
    return 0.5 ** int((~correct).sum()) < ALPHA


def boundary_before(name: str, split: SplittableBackbone) -> Boundary:
    """The boundary right before a part of the network.

    Args:
        name: of a layer group, of a part of one, or of a module that contains them; or "all". Networks side by side
            are cut together, and boundaries are named after the first one.
        split: the network.

    Raises:
        OptionError: no such part, or it cannot be trained from; lists the parts and suggests a similar name.
    """
    inner = [b for b in split.boundaries if b.name != HEAD]
    if not inner:
        raise OptionError(
            f"unfreeze {name!r}: this backbone cannot be split, so it is not fine-tuned ({split.obstacle})."
        )
    if name == "all":
        return inner[0]
    firsts = [(boundary, split.parts(boundary.name)[0][0]) for boundary in inner]
    part = next((first for _, first in firsts if first == name or first.startswith(f"{name}.")), None)
    if part is not None:  # the last boundary before it: an activation or a pooling may be in between
        return [boundary for boundary, first in firsts if first == part][-1]
    names = ["all"]
    for _, first in firsts:
        path = first.split(".")
        names += [".".join(path[:depth]) for depth in range(1, len(path) + 1)]
    names = list(dict.fromkeys(names))
    raise OptionError(
        f"unfreeze {name!r}: no such layer group.{suggestion(name, names)} There are: {', '.join(names)}."
    )


def unfreeze_name(boundary: Boundary, split: SplittableBackbone) -> str:
    """The shortest name that ``boundary_before`` accepts for the first part after a boundary: "blocks.6"."""
    first = split.parts(boundary.name)[0][0]
    path = first.split(".")
    for length in range(1, len(path)):
        name = ".".join(path[:length])
        if split.parts(boundary_before(name, split).name)[0][0] == first:
            return name
    return first


def deepest_at(share: float, split: SplittableBackbone) -> Boundary | None:
    """The last boundary with at most ``share`` of the forward pass before it; None if there is none.

    Where several networks are side by side, it is the forward pass of the first one.
    """
    fitting = [b for b in split.boundaries if b.name != HEAD and b.depth <= share]
    return max(fitting, key=lambda b: b.depth, default=None)


def considered_layers(split: SplittableBackbone) -> tuple[str, ...]:
    """Earlier layers whose averages may be added to the features, deepest first: the last groups of ``SHARES``."""
    groups = group_names(split.module)
    whole = [b for b in split.boundaries if b.name in groups]
    found = [
        max((b for b in whole if b.depth <= share), key=lambda b: b.depth, default=None) for share in SHARES.values()
    ]
    return tuple(dict.fromkeys(b.name for b in found if b is not None))


def _lr(boundary: Boundary, split: SplittableBackbone, recipe: Recipe) -> float:
    """The default learning rate for fine-tuning from a boundary."""
    if not any(isinstance(part, BatchNorm) for part in split.module.modules()):
        is_full = tuning_of(recipe).method == "full"
        return LR_WITHOUT_BATCHNORM * (1.0 if is_full else PARAMETER_EFFICIENT_LR)
    last = deepest_at(SHARES["last"], split)
    return LAST_LR if last is not None and boundary.depth >= last.depth else FineTuneSettings.lr


def _settings(recipe: Recipe, effort: Effort, epochs: int, train: int, *, lr: float) -> FineTuneSettings:
    settings = FineTuneSettings(
        epochs=epochs,
        tuning=tuning_of(recipe),
        lr=recipe.lr or lr,
        label_smoothing=effort.label_smoothing if recipe.label_smoothing is None else recipe.label_smoothing,
        cutmix=effort.cutmix if recipe.cutmix is None else recipe.cutmix,
        mixup=recipe.mixup,
        feature_jitter=recipe.feature_jitter,
        balance_classes=recipe.balance_classes,
        seed=recipe.seed,
    )
    if recipe.scratch:
        settings = replace(settings, lr=recipe.lr or SCRATCH_LR, decay=1.0)
    if not recipe.epochs:
        settings = replace(settings, epochs=least_epochs(train, epochs))
    return settings


def least_epochs(train: int, epochs: int) -> int:
    """Epochs of a rung: those of its effort, or more if there are few training images."""
    steps = max(1, train // FineTuneSettings.batch_size)
    return max(epochs, min(MOST_EPOCHS, -(-LEAST_STEPS // steps)))


def trained_images(rung: Rung, train: int, folds: int) -> int:
    """Number of images that training a rung shows, over all epochs, on all training images and in the folds."""
    in_folds = max(0, folds - 1) * fold_settings(rung.settings).epochs
    return train * (rung.settings.epochs + in_folds)


def _with_seconds(rungs: list[Rung], train: int, rate: float, training_rate: float, folds: int) -> list[Rung]:
    """The rungs with their expected times.

    The first rung computes the activations at the deepest boundary from pixels; the others start from these. The first
    view is computed together with the features. Folds are evaluated without augmentation, which needs activations too.
    """
    timed = []
    for index, rung in enumerate(rungs):
        cost = rung.boundary.cost_before
        num_views = train * (rung.views - 1 + bool(folds))
        activations = num_views * (max(cost, 0.05) + 0.2) / rate if index == 0 else 0.0
        training = trained_images(rung, train, folds) * TRAINING_COST * (1 - cost) / training_rate
        evaluation = train * bool(folds) * (1 - cost) / training_rate
        timed.append(replace(rung, seconds=activations + training + evaluation))
    return timed
