"""Hyperparameter search for heads: several heads are trained on the same batches, and the best on validation is kept.

As in the linear evaluation of DINOv2, heads differ in learning rate and weight decay. Heads with the same layers run as
one stacked head, so that nine linear heads cost little more than one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headstart.backbone.layers import Layout
from headstart.errors import TrainingError
from headstart.import_effects import import_quietly
from headstart.progress import Progress, SilentProgress
from headstart.training.ema import decay_at, update_average
from headstart.training.head_spec import HeadSpec
from headstart.training.heads import PLAIN, LayeredHead, Pool, build_head
from headstart.training.losses import (
    Parts,
    can_keep_together,
    class_sizes,
    correct_in,
    count_learnable,
    image_weights,
    is_multi_label,
    learnable_folds,
    loss_per_image,
    soft_targets,
)
from headstart.training.probe import floored
from headstart.training.sampling import Samples, batch_size_for, epoch_order, seeded
from headstart.training.schedule import warmup_cosine
from headstart.training.suffix_evaluation import EVALUATION_BATCH_SIZE

HELD_OUT = 0.2
"""Share of the training images that is held out to choose the settings if there is no validation set."""

WEIGHTS_AT_ONCE = 40_000_000
"""Weights that all heads of a search may have together; the optimizer keeps six more of each."""

LEAST_HELD_OUT = 20
"""Training images below which nothing is held out: the settings in the middle are taken."""


@dataclass(frozen=True)
class HeadSearchSettings:
    """How heads are trained.

    Attributes:
        rates: learning rates of AdamW; each head is trained with each.
        penalties: weight decays of AdamW; each head is trained with each.
        epochs: passes over the training images.
        batch_size: images of a step.
        label_smoothing: share of the target that is spread over all classes.
        warmup: share of the steps in which the learning rate rises to its full value.
        ema: of the averaged weights, per step.
        clip: largest norm of a head's gradient.
        balance_classes: weight each class equally.
        seed: of first weights, order and dropout.
    """

    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    penalties: tuple[float, ...] = (1e-2, 1e-1, 1.0)
    epochs: int = 10
    batch_size: int = 128
    label_smoothing: float = 0.0
    warmup: float = 0.1
    ema: float = 0.99
    clip: float = 1.0
    balance_classes: bool = False
    seed: int = 0


@dataclass(frozen=True)
class HeadCandidate:
    """One head of a search.

    Attributes:
        spec: its layers.
        lr: its learning rate.
        penalty: its weight decay.
        correct: validation images right, at its best epoch.
        log_loss: mean over the validation images then, in nats.
        epoch: that epoch, from 0.
    """

    spec: HeadSpec
    lr: float
    penalty: float
    correct: int = 0
    log_loss: float = float("inf")
    epoch: int = 0

    def __str__(self) -> str:
        return f"{self.spec}, learning rate {self.lr:g}, weight decay {self.penalty:g}"

    def as_json(self) -> dict[str, Any]:
        """A JSON document."""
        return {
            "head": str(self.spec),
            "lr": self.lr,
            "weight_decay": self.penalty,
            "correct": self.correct,
            "log_loss": self.log_loss,
            "epoch": self.epoch,
        }


@dataclass(frozen=True)
class HeadSearchResult:
    """The outcome.

    Attributes:
        head: the best head, in inference mode.
        best: settings and metrics of the best head.
        candidates: every combination of head, learning rate and weight decay, in the given order.
        reason: how it was chosen, a clause.
        history: of each epoch of the best one: {"epoch", "loss", "accuracy"} of the images as they were shown, and
            {"correct", "log_loss"} on what chose.
    """

    head: LayeredHead
    best: HeadCandidate
    candidates: tuple[HeadCandidate, ...] = field(repr=False)
    reason: str
    history: list[dict[str, float]] = field(repr=False)


def train_heads(
    specs: Sequence[HeadSpec],
    train: Samples,
    val: Samples | None,
    settings: HeadSearchSettings,
    *,
    classes: int,
    layout: Layout = PLAIN,
    dtype: torch.dtype = torch.float32,
    together: Parts | None = None,
    progress: Progress | None = None,
) -> HeadSearchResult:
    """Trains every head with every setting at once, and selects the head with the highest validation accuracy.

    If all heads together have too many weights for the memory, each is trained with the middle weight decay only.
    Feature vectors are standardised by their mean and standard deviation over ``train``, folded into the head.

    Args:
        specs: layers of the heads.
        train: features of the training images, in any number of views.
        val: features of the validation images; None: a share of ``train`` is held out, and the selected head is trained
            again on all of ``train``.
        settings: hyperparameters.
        classes: number of classes.
        layout: meaning of the axes of a feature map.
        dtype: precision of hidden layers and convolutions: float32 or bfloat16.
        together: (N,) numbers of parts (groups, near-duplicates); a part is held out as a whole.
        progress: receives the number of batches done.

    Raises:
        OptionError: a head does not go with the features.
        TrainingError: the loss is not a finite number.
    """
    progress = progress or SilentProgress()
    candidates = [HeadCandidate(*values) for values in product(specs, settings.rates, settings.penalties)]
    if _weights(candidates, train, classes, layout) > WEIGHTS_AT_ONCE:
        middle = settings.penalties[len(settings.penalties) // 2]
        candidates = [one for one in candidates if one.penalty == middle]
    if val is not None:
        search = _HeadSearch(candidates, train, settings, classes, layout, dtype)
        found, heads = search.run(val, progress)
        best = max(range(len(found)), key=lambda i: _rank(found[i]))
        _require_learnt(search.history[best], found[best], progress)
        reason = f"{found[best]}: the best of {len(found)} on {len(val.labels):,} validation images"
        return HeadSearchResult(heads[best], found[best], tuple(found), reason, search.history[best])
    held = _held_out(train, settings.seed, together) if len(candidates) > 1 else None
    if held is None:
        chosen, found = candidates[len(candidates) // 2], []
        reason = f"{chosen}: default, as {len(train.labels):,} training images are too few to choose it"
    else:
        found, _ = _HeadSearch(candidates, held[0], settings, classes, layout, dtype).run(held[1], progress)
        chosen = max(found, key=_rank)
        reason = f"{chosen}: the best of {len(found)} on {len(held[1].labels):,} training images that were held out"
    search = _HeadSearch([chosen], train, settings, classes, layout, dtype)
    _, heads = search.run(None, progress)
    _require_learnt(search.history[0], chosen, progress)
    return HeadSearchResult(heads[0], chosen, tuple(found) or (chosen,), reason, search.history[0])


def _rank(one: HeadCandidate) -> tuple[int, float]:
    """A head whose loss is no number comes last."""
    return (one.correct, -one.log_loss) if math.isfinite(one.log_loss) else (-1, 0.0)


def _require_learnt(history: Sequence[dict[str, float]], chosen: HeadCandidate, progress: Progress) -> None:
    """Warns of training that did not converge.

    Raises:
        TrainingError: the loss is not a finite number.
    """
    first, last = history[0]["loss"], history[-1]["loss"]
    remedy = f"Choose a learning rate (option head_lr) below {chosen.lr:g}"
    if not math.isfinite(last):
        raise TrainingError(f"Training the head {chosen.spec} diverged: its loss is not a finite number. {remedy}.")
    if len(history) > 1 and last > first:
        progress.say(
            f"Warning: training the head {chosen.spec} did not converge: the loss rose from {first:.3f} to "
            f"{last:.3f}. {remedy}, or more epochs (option head_epochs)."
        )


@final
class _HeadSearch:
    def __init__(
        self,
        candidates: Sequence[HeadCandidate],
        train: Samples,
        settings: HeadSearchSettings,
        classes: int,
        layout: Layout,
        dtype: torch.dtype,
    ) -> None:
        self.candidates, self.train, self.settings, self.dtype = list(candidates), train, settings, dtype
        shape = _shape(train)
        self.standard = _moments(train) if len(shape) == 1 else None
        self.stacks = []
        self.fastest = max(one.lr for one in self.candidates)
        for spec in dict.fromkeys(one.spec for one in self.candidates):
            alike = [one for one in self.candidates if one.spec == spec]
            shares = [one.lr / self.fastest for one in alike]
            decays = [share * one.penalty for share, one in zip(shares, alike, strict=True)]
            with seeded(settings.seed, 4):
                heads = [build_head(spec, shape, classes, layout) for _ in alike]
            self.stacks.append(_Stack(heads, shares, decays))
        self.classes, self.multi_label = classes, is_multi_label(train.labels)
        self.targets = soft_targets(train.labels, classes, settings.label_smoothing)
        self.weights = image_weights(train.labels, classes, balance=settings.balance_classes)
        self.history: list[list[dict[str, float]]] = [[] for _ in self.candidates]
        self.sums = torch.zeros(2, len(self.candidates))

    def run(self, val: Samples | None, progress: Progress) -> tuple[list[HeadCandidate], list[LayeredHead]]:
        settings, count = self.settings, len(self.train.labels)
        size = batch_size_for(count, settings.batch_size)
        starts = range(0, count, size)
        steps, step = settings.epochs * len(starts), 0
        what = f"Training {len(self.candidates)} heads" if len(self.candidates) > 1 else "Training the head"
        with progress.task(what, settings.epochs * count) as advance:
            for epoch in range(settings.epochs):
                order = epoch_order(settings.seed, epoch, count)
                for start in starts:
                    self._step(order[start : start + size], epoch, step, steps)
                    step += 1
                    advance(min(size, count - start))
                for history, (loss, accuracy) in zip(self.history, (self.sums / len(starts)).T.tolist(), strict=True):
                    history.append({"epoch": float(epoch), "loss": loss, "accuracy": accuracy})
                self.sums.zero_()
                if val is not None:
                    self._judge(val, epoch)
        if val is None:
            for stack in self.stacks:
                stack.keep(range(stack.count))
        return self.candidates, [self._folded(head) for stack in self.stacks for head in stack.heads()]

    def _step(self, images: npt.NDArray[np.int64], epoch: int, step: int, steps: int) -> None:
        x = self._standardised(self._read(self.train, images, epoch))
        target, weight = self.targets[images], self.weights[images]
        labels, first = torch.from_numpy(self.train.labels[images]), 0
        rate = self.fastest * warmup_cosine(step, steps, self.settings.warmup)
        with seeded(self.settings.seed, 5, step):
            for stack in self.stacks:
                with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                    logits = stack.logits(x)
                logits = logits.float()
                losses = (loss_per_image(logits, target, multi_label=self.multi_label) * weight).mean(1)
                rows = slice(first, first + stack.count)
                self.sums[0, rows] += losses.detach()
                self.sums[1, rows] += correct_in(logits.detach(), labels).float().mean(1)
                first += stack.count
                stack.step(losses.sum(), rate, self.settings.clip)
        decay = decay_at(step, self.settings.ema)
        for stack in self.stacks:
            stack.follow(1 - decay)

    def _judge(self, val: Samples, epoch: int) -> None:
        """Of the averaged weights; those of a head's best epoch are kept."""
        labels, targets = torch.from_numpy(val.labels), soft_targets(val.labels, self.classes, 0.0)
        parts: list[list[Tensor]] = [[] for _ in self.stacks]
        for start in range(0, len(labels), EVALUATION_BATCH_SIZE):
            x = self._standardised(self._read(val, range(start, min(start + EVALUATION_BATCH_SIZE, len(labels)))))
            for part, stack in zip(parts, self.stacks, strict=True):
                part.append(stack.judged(x))
        first = 0
        for part, stack in zip(parts, self.stacks, strict=True):
            logits = torch.cat(part, 1)
            correct = correct_in(logits, labels).sum(1).tolist()
            losses = loss_per_image(logits, targets, multi_label=self.multi_label).mean(1)
            better = []
            for i, (right, loss) in enumerate(zip(correct, losses.tolist(), strict=True)):
                self.history[first + i][-1] |= {"correct": right, "log_loss": loss}
                candidate = self.candidates[first + i]
                if epoch == 0 or (right, -loss) > (candidate.correct, -candidate.log_loss):
                    self.candidates[first + i] = replace(candidate, correct=right, log_loss=loss, epoch=epoch)
                    better.append(i)
            stack.keep(better)
            first += stack.count

    def _read(self, samples: Samples, images: Sequence[int] | npt.NDArray[np.int64], epoch: int = 0) -> Tensor:
        return samples.activations.read(samples.rows([int(i) for i in images], epoch))

    def _standardised(self, x: Tensor) -> Tensor:
        return x if self.standard is None else (x - self.standard[0]) / self.standard[1]

    def _folded(self, head: LayeredHead) -> LayeredHead:
        """The same head for features as they come."""
        if self.standard is None:
            return head
        mean, scale = self.standard
        first = next(part for part in head if isinstance(part, nn.Linear))
        with torch.no_grad():
            first.weight.div_(scale)
            first.bias.sub_(first.weight @ mean)
        return head


class _Stack:
    """Heads with the same layers, run as one stacked head with a leading axis for the head.

    AdamW computes one step with the largest learning rate; each head then scales the step by its learning rate and
    applies its weight decay.

    Args:
        heads: H of them.
        shares: of each, its learning rate over the largest.
        decays: of each, its learning rate times its weight decay.
    """

    def __init__(self, heads: Sequence[LayeredHead], shares: Sequence[float], decays: Sequence[float]) -> None:
        self.count = len(heads)
        self.model = heads[0]
        self.parameters = _side_by_side([dict(head.named_parameters()) for head in heads])
        self.buffers = _side_by_side([dict(head.named_buffers()) for head in heads])
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.live = list(self.parameters.values())
        self.optimizer = torch.optim.AdamW(self.live, lr=1.0, weight_decay=0.0, fused=True)
        self.shares, self.decays = torch.tensor(shares), torch.tensor(decays)
        self.alike = len(set(shares)) == 1
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.best = {name: tensor.clone() for name, tensor in (self.average | self.buffers).items()}

    def logits(self, x: Tensor) -> Tensor:
        """(N, ...) -> (H, N, classes), in training mode."""
        return self._run(self.parameters, x, training=True)

    def judged(self, x: Tensor) -> Tensor:
        """(N, ...) -> (H, N, classes), of the averaged weights in inference mode."""
        with torch.no_grad():
            return self._run(self.average, x, training=False)

    def _run(self, parameters: dict[str, Tensor], x: Tensor, *, training: bool) -> Tensor:
        """Maps are (N, H * channels, ...) until they are pooled; then everything is (H, N, ...)."""
        shared = True  # until the first weights, all heads have the same input
        for name, layer in self.model.named_children():
            weight, bias = parameters.get(f"{name}.weight"), parameters.get(f"{name}.bias")
            if isinstance(layer, nn.Linear):
                assert weight is not None
                assert bias is not None
                if shared:
                    x = nn.functional.linear(x, weight.flatten(0, 1), bias.flatten())
                    x = x.view(len(x), self.count, -1).transpose(0, 1)
                else:
                    x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
                shared = False
            elif isinstance(layer, nn.Conv2d):
                assert weight is not None
                x, shared = nn.functional.conv2d(x, weight.flatten(0, 1)), False
            elif isinstance(layer, nn.BatchNorm2d):
                assert weight is not None
                assert bias is not None
                mean, variance = (self.buffers[f"{name}.{n}"].flatten() for n in ("running_mean", "running_var"))
                x = nn.functional.batch_norm(
                    x, mean, variance, weight.flatten(), bias.flatten(), training and len(x) > 1
                )
            elif isinstance(layer, Pool):
                x = x.view(len(x), self.count, -1, *x.shape[2:]).transpose(0, 1)
                pooled_maps: Tensor = layer(x.flatten(0, 1))
                x = pooled_maps.view(self.count, -1, pooled_maps.shape[1])
            elif isinstance(layer, nn.Dropout):
                x = nn.functional.dropout(x, layer.p, training)
            else:
                x = layer(x)
        return x

    def step(self, loss: Tensor, rate: float, clip: float) -> None:
        """One step down the sum of the heads' losses.

        Args:
            loss: the sum.
            rate: learning rate of the head that learns fastest.
            clip: largest norm of each head's gradient.
        """
        gradients = torch.autograd.grad(loss, self.live)
        norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
        cut = (clip / (norms + 1e-6)).clamp(max=1.0)
        for parameter, gradient in zip(self.live, gradients, strict=True):
            parameter.grad = (gradient * _along(cut, gradient)).contiguous()  # as the fused AdamW takes it to be
        before = [] if self.alike else [p.detach().clone() for p in self.live]
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            for parameter, old in zip(self.live, before, strict=False):
                parameter.lerp_(old, 1 - _along(self.shares, parameter))
            for parameter in self.live:
                if parameter.ndim > 2:
                    parameter.mul_(1 - rate * _along(self.decays, parameter))

    def follow(self, share: float) -> None:
        """Moves the averages towards the weights."""
        update_average(self.average.values(), self.live, share)

    def keep(self, heads: Sequence[int]) -> None:
        """Notes the averages of some heads as their best."""
        rows = list(heads)
        for name, tensor in (self.average | self.buffers).items():
            self.best[name][rows] = tensor[rows]

    def heads(self) -> list[LayeredHead]:
        """The best of each head, in inference mode."""
        found = []
        for i in range(self.count):
            head = copy.deepcopy(self.model)
            head.load_state_dict({name: tensor[i] for name, tensor in self.best.items()})
            found.append(head.requires_grad_(False).eval())
        return found


def _side_by_side(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([part[name].detach() for part in parts]) for name in parts[0]}


def _along(values: Tensor, tensor: Tensor) -> Tensor:
    """(H,) -> (H, 1, ...), to go with a tensor of that many axes."""
    return values.view(-1, *[1] * (tensor.ndim - 1))


def _shape(samples: Samples) -> tuple[int, ...]:
    """Of the features of one image."""
    return tuple(samples.activations.read([(0, 0)]).shape[1:])


def _weights(candidates: Sequence[HeadCandidate], train: Samples, classes: int, layout: Layout) -> int:
    shape = _shape(train)
    with torch.device("meta"):
        of = {one.spec: build_head(one.spec, shape, classes, layout) for one in candidates}
    return sum(p.numel() for one in candidates for p in of[one.spec].parameters())


def _held_out(train: Samples, seed: int, together: Parts | None) -> tuple[Samples, Samples] | None:
    has_parts = together is not None and len(set(together.tolist())) < len(together)
    if together is not None and has_parts and can_keep_together(train.labels, together):
        if len(train.labels) < LEAST_HELD_OUT:
            return None
        learn, judge = learnable_folds(train.labels, round(1 / HELD_OUT), seed, together=together)[0]
        return train.some(learn), replace(train.some(judge), views=0)
    sizes = class_sizes(train.labels)
    alone, others = np.flatnonzero(sizes < 2), np.flatnonzero(sizes > 1)  # what is alone of its class is learnt from
    alike = None if is_multi_label(train.labels) else train.labels[others]
    too_few = alike is not None and HELD_OUT * len(others) < count_learnable(alike)
    if len(others) < LEAST_HELD_OUT or too_few:
        return None
    split = import_quietly("sklearn.model_selection").train_test_split
    learn, judge = split(others, test_size=HELD_OUT, stratify=alike, random_state=seed)
    return train.some(np.concatenate([learn, alone])), replace(train.some(judge), views=0)


def _moments(train: Samples) -> tuple[Tensor, Tensor]:
    """(D,) mean and standard deviation of the features of the unaugmented images."""
    total: Any = 0.0
    squares: Any = 0.0
    count = len(train.labels)
    for start in range(0, count, EVALUATION_BATCH_SIZE):
        x = train.activations.read(
            [(image, 0) for image in range(start, min(start + EVALUATION_BATCH_SIZE, count))]
        ).double()
        total, squares = total + x.sum(0), squares + x.square().sum(0)
    mean = total / count
    deviation = floored((squares / count - mean.square()).clamp(min=0).sqrt().numpy())
    return mean.float(), torch.from_numpy(deviation).float()
