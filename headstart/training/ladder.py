"""The ladder: how deep to fine-tune, decided by measurement.

Rungs from the probe to ever earlier freeze boundaries; each begins from the pretrained weights and the probe's head, or
goes on from the rung below (gradual unfreezing). The ladder is climbed while the gain is more than noise, and the best
rung is kept, not the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.stats import ttest_1samp

from headstart.backbone.layers import BatchNorm
from headstart.backbone.split import HEAD, Boundary, SplittableBackbone
from headstart.errors import OptionError, suggestion
from headstart.training.finetune import FineTuneSettings
from headstart.training.recipe import Recipe
from headstart.trust.temperature import Losses

ALPHA = 0.05
"""A gain counts as more than noise where chance alone would give one as large less often than this."""

CROSS_VALIDATE_BELOW = 100
"""Validation images below which rungs are compared by cross-validation on the training images as well."""

FOLDS = 2
"""Of that cross-validation: each half is judged by a network that learnt from the other.

Together the halves cost no more than the training itself; three folds cost twice as much and say the same
(docs/results/2026-11-29-calibration.md).
"""

FOLD_EPOCHS = 0.75
"""Share of a rung's epochs that folds are trained for: fewer images are learnt in fewer steps (as above)."""

KNN = "kNN"
"""Name of the reference by nearest neighbours: it gives no probabilities, so it has no log loss."""

DEEPER_FROM = 0.15
"""Log loss of the probe, in nats, below which nothing deeper than the first rung is tried, unless it is asked for.

Measured on five data sets (docs/concepts/ladder.md): where the probe left 0.02 to 0.12, no depth gained more than the
first rung did; where it left 0.20 and 0.22, deeper ones did.
"""

SHARES = {"last": 0.90, "half": 0.65}
"""Depth -> largest share of the forward pass that lies before the boundary."""


@dataclass(frozen=True)
class Effort:
    """What an effort tries.

    Attributes:
        depths: of its rungs, in order.
        epochs: of each rung.
        views: of each training image.
        cutmix: see ``finetune.TuneSettings``; few layers in few epochs learn best without.
        smoothing: see there; this is the home of its default, as of CutMix's.
    """

    depths: tuple[str, ...]
    epochs: tuple[int, ...]
    views: int
    cutmix: float = 0.5
    smoothing: float = 0.1


EFFORTS = {
    "probe": Effort((), (), 0),
    "quick": Effort(("last",), (6,), 2, cutmix=0.0, smoothing=0.05),
    "standard": Effort(("last", "half"), (3, 6), 3),
    "thorough": Effort(("last", "half"), (3, 18), 8),
}

_ONLY_IF = f"only if the probe leaves more than {DEEPER_FROM} nats and the rung below gained more than noise"

LAST_LR = 2e-3
"""Learning rate behind the boundary of depth "last" and behind later ones: few layers learn best by larger steps.

By cross-validation on the training images of flowers; 3e-3 did as well there, and worse on small sets
(docs/results/2026-11-27-quick.md). Behind
earlier boundaries it is ``FineTuneSettings.lr``.
"""

LR_WITHOUT_BATCHNORM = 1e-4
"""Learning rate for networks without BatchNorm (VGG, ConvNeXt, vision transformers), where nothing else is asked for.

Ten times less than with it, as the field does; not measured here.
"""

SCRATCH_EPOCHS = 30
SCRATCH_LR = 3e-3
"""Epochs and learning rate of random weights, where nothing else is asked for."""

LEAST_STEPS = 150
"""Steps that a rung has at least; small sets get more epochs, up to ``MOST_EPOCHS``."""

MOST_EPOCHS = 30

TRAINING_COST = 3.5
"""Forward and backward pass of a suffix, in forward passes of PyTorch's own fastest engine
(measured, docs/results/2026-11-22-heads.md)."""


@dataclass(frozen=True)
class Rung:
    """One depth of fine-tuning.

    Attributes:
        boundary: the freeze boundary; what lies behind it is trained.
        settings: how.
        views: of each training image.
        seconds: expected, for activations and training together.
        why: a clause for the user.
    """

    boundary: Boundary
    settings: FineTuneSettings
    views: int
    seconds: float
    why: str

    @property
    def name(self) -> str:
        """For tables: "behind blocks.4"."""
        return f"behind {self.boundary.name}"


@dataclass(frozen=True)
class RungResult:
    """What a rung gave.

    Attributes:
        name: "kNN", "probe", "behind blocks.4".
        boundary: its name; ``HEAD`` for kNN and probe.
        correct: images right, of ``count`` that rungs are compared on.
        count: validation images, with the training images of a cross-validation where there are few.
        low: of the 95 % Wilson interval.
        high: of the 95 % Wilson interval.
        log_loss: mean of ``temperature.calibrated_losses``, in nats.
        seconds: that it took.
        epochs: trained.
        p: chance that noise alone gives such a gain in log loss on the best rung below; None for the first.
        decision: what followed, in words.
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
    several: bool = False,
) -> list[Rung]:
    """The rungs that a recipe asks for, shallowest first.

    Args:
        recipe: effort, and what overrides it.
        split: the backbone.
        train: training images.
        rate: images a second of the whole backbone in the fast engine.
        folds: of the cross-validation by which rungs are judged as well; 0 for none.
        training_rate: the same of the fastest of PyTorch's own engines; ``rate`` where it is not given.
        several: whether an image may bear any number of labels. Then CutMix and label smoothing, which are for one
            class, are off where nothing else is asked for (measured, docs/how-to/multi-label.md).

    Raises:
        OptionError: no such boundary to unfreeze behind; lists those that there are.
    """
    effort = EFFORTS[recipe.effort]
    if several:
        effort = replace(effort, cutmix=0.0, smoothing=0.0)
    if recipe.unfreeze or recipe.scratch:
        chosen = [boundary_before(recipe.unfreeze or "all", split)]
        epochs = [recipe.epochs or (SCRATCH_EPOCHS if recipe.scratch else max(effort.epochs))]
        whys = ["random weights" if recipe.scratch else "as asked"]
    else:
        depths = [(depth, deepest_at(SHARES[depth], split)) for depth in effort.depths]
        found = [(d, b, e) for (d, b), e in zip(depths, effort.epochs, strict=True) if b is not None]
        distinct = [(d, b, e) for i, (d, b, e) in enumerate(found) if b not in [other for _, other, _ in found[:i]]]
        chosen = [b for _, b, _ in distinct]
        epochs = [recipe.epochs or e for _, _, e in distinct]
        whys = [f"{100 * (1 - b.cost_before):.0f} % of the forward pass is trained" for b in chosen]
    settings = [_settings(recipe, effort, n, train, lr=_lr(b, split)) for b, n in zip(chosen, epochs, strict=True)]
    if recipe.gradual_unfreezing:
        settings = [replace(own, first_view=sum(o.epochs for o in settings[:i])) for i, own in enumerate(settings)]
    shown = max((own.first_view + own.epochs for own in settings), default=0)
    views = (
        shown
        if recipe.fresh_views or (recipe.scratch and not recipe.views)
        else recipe.views or min(effort.views or 4, shown)
    )
    rungs = [Rung(b, own, views, 0.0, why) for b, own, why in zip(chosen, settings, whys, strict=True)]
    return _with_seconds(rungs, train, rate, training_rate or rate, folds)


def plan_text(rungs: Sequence[Rung], *, images: int, train: int, folds: int, first: float, last: float) -> list[str]:
    """What is going to be done, the time that it is expected to take, and why; a line each.

    Args:
        rungs: of the ladder; none for a probe alone.
        images: in all.
        train: training images.
        folds: of the cross-validation by which rungs are judged as well; 0 for none.
        first: seconds for features, probe and label check.
        last: seconds for evaluation, map and report.
    """
    lines = [f"Plan: features of {images:,} images and a probe, about {first:.0f} s."]
    judged = f", once for each of {folds} folds and once on all" if folds else ""
    for number, rung in enumerate(rungs, start=1):
        lines.append(
            f"Plan, rung {number}: train what lies behind {rung.boundary.name} ({rung.why}; "
            f"{rung.boundary.parameters_after:,} weights) from {rung.views} views of {train:,} images, "
            f"{rung.settings.epochs} epochs{judged}, about {rung.seconds:.0f} s"
            + ("." if number == 1 else f"; {_ONLY_IF}.")
        )
    whole = first + last + sum(rung.seconds for rung in rungs[:1])
    without = " without later rungs" if len(rungs) > 1 else ""
    lines.append(f"Plan: evaluation, map and report, about {last:.0f} s; about {whole:.0f} s in all{without}.")
    return lines


def fold_settings(settings: FineTuneSettings) -> FineTuneSettings:
    """How a rung is trained in each fold of its cross-validation."""
    return replace(settings, epochs=max(1, round(FOLD_EPOCHS * settings.epochs)))


def paired_p(before: Losses, after: Losses) -> float:
    """Chance that noise alone lowers the mean loss by as much, given how the differences scatter.

    Losses tell more than right and wrong: a short rung that mends few images may make many of them much likelier.

    Args:
        before: (N,) of each image, see ``temperature.calibrated_losses``.
        after: (N,) of the same images.

    Source: Student's paired test, one-sided ("The Probable Error of a Mean", Biometrika 6, 1908).
    """
    gain = before - after
    if len(gain) < 2 or float(np.ptp(gain)) == 0.0:
        return 0.0 if len(gain) and gain[0] > 0 else 1.0
    return float(ttest_1samp(gain, 0.0, alternative="greater").pvalue)


def room_for_gain(right: npt.NDArray[np.bool_]) -> bool:
    """Whether mending every mistake that is left would be more than noise."""
    return 0.5 ** int((~right).sum()) < ALPHA


def boundary_before(name: str, split: SplittableBackbone) -> Boundary:
    """The boundary right before a part of the network.

    Args:
        name: of a layer group, of a part of one, or of anything that they lie in; "all".
        split: the network.

    Raises:
        OptionError: no part of that name can be trained from; lists those that can, and suggests a similar one.
    """
    inner = [b for b in split.boundaries if b.name != HEAD]
    if not inner:
        raise OptionError(
            f"unfreeze {name!r}: this backbone cannot be split, so it is not fine-tuned ({split.obstacle})."
        )
    if name == "all":
        return inner[0]
    firsts = [(boundary, split.parts(boundary.name)[0][0]) for boundary in inner]
    wanted = next((first for _, first in firsts if first == name or first.startswith(f"{name}.")), None)
    if wanted is not None:  # the last of those that lie before it: an activation or a pooling may stand between
        return [boundary for boundary, first in firsts if first == wanted][-1]
    known = ["all"]
    for _, first in firsts:
        path = first.split(".")
        known += [".".join(path[:depth]) for depth in range(1, len(path) + 1)]
    known = list(dict.fromkeys(known))
    raise OptionError(
        f"unfreeze {name!r}: no such layer group.{suggestion(name, known)} There are: {', '.join(known)}."
    )


def deepest_at(share: float, split: SplittableBackbone) -> Boundary | None:
    """The last boundary before which at most a share of the forward pass lies; None where there is none."""
    fitting = [b for b in split.boundaries if b.name != HEAD and b.cost_before <= share]
    return max(fitting, key=lambda b: b.cost_before, default=None)


def _lr(boundary: Boundary, split: SplittableBackbone) -> float:
    """The learning rate behind a boundary, where nothing else is asked for."""
    if not any(isinstance(part, BatchNorm) for part in split.module.modules()):
        return LR_WITHOUT_BATCHNORM
    last = deepest_at(SHARES["last"], split)
    return LAST_LR if last is not None and boundary.cost_before >= last.cost_before else FineTuneSettings.lr


def _settings(recipe: Recipe, effort: Effort, epochs: int, train: int, *, lr: float) -> FineTuneSettings:
    settings = FineTuneSettings(
        epochs=epochs,
        lr=recipe.lr or lr,
        smoothing=effort.smoothing if recipe.label_smoothing is None else recipe.label_smoothing,
        cutmix=effort.cutmix if recipe.cutmix is None else recipe.cutmix,
        mixup=recipe.mixup,
        jitter=recipe.feature_jitter,
        balance=recipe.balance_classes,
        live_norms=recipe.update_batchnorm or recipe.scratch,
        seed=recipe.seed,
    )
    if recipe.scratch:
        settings = replace(settings, lr=recipe.lr or SCRATCH_LR, decay=1.0)
    steps = max(1, train // settings.batch_size)
    if not recipe.epochs:
        settings = replace(settings, epochs=max(epochs, min(MOST_EPOCHS, -(-LEAST_STEPS // steps))))
    return settings


def trained_images(rung: Rung, train: int, folds: int) -> int:
    """Images that the steps of a rung show in all, in every epoch, on all training images and in each fold.

    Each fold leaves one part of ``folds`` out.
    """
    in_folds = max(0, folds - 1) * fold_settings(rung.settings).epochs
    return train * (rung.settings.epochs + in_folds)


def _with_seconds(rungs: list[Rung], train: int, rate: float, training_rate: float, folds: int) -> list[Rung]:
    """The deepest boundary's activations are made from pixels, with the first rung; the others from those.

    The first view comes with the features. Folds are judged on the images as they are, which need activations too.
    """
    timed = []
    for place, rung in enumerate(rungs):
        cost = rung.boundary.cost_before
        made = train * (rung.views - 1 + bool(folds))
        making = made * (max(cost, 0.05) + 0.2) / rate if place == 0 else 0.0
        training = trained_images(rung, train, folds) * TRAINING_COST * (1 - cost) / training_rate
        judging = train * bool(folds) * (1 - cost) / training_rate
        timed.append(replace(rung, seconds=making + training + judging))
    return timed
