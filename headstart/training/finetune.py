"""Fine-tuning the suffix behind a freeze boundary, from activations, starting from the probe's head.

Linear probing first, then fine-tuning (Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", ICLR 2022); AdamW with layer-wise learning-rate decay, warm-up and cosine; the weights that are
judged and kept are an exponential moving average. BatchNorm stays in inference mode: its statistics are constants.

Every random choice follows from the seed and the step alone, so that a run that goes on from a checkpoint ends with the
weights of one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from headstart.backbone.fold import fold_for_training
from headstart.backbone.layers import Layout
from headstart.backbone.split import SplittableBackbone
from headstart.progress import Progress, SilentProgress
from headstart.training.mixing import blended, jittered, pasted

Labels = npt.NDArray[np.int64]
State = dict[str, Tensor]
Head = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""(classes, D) weight and (classes,) bias."""

AT_ONCE = 64
"""Images of a batch that is not trained on."""


class ActivationSource(Protocol):
    """Activations by (image, view)."""

    def read(self, rows: Sequence[tuple[int, int]]) -> Tensor:
        """(len(rows), *shape) float32."""


@dataclass(frozen=True)
class Samples:
    """Labelled activations at one boundary.

    Attributes:
        activations: where they are read.
        labels: (N,) int64, in [0, classes).
        keys: N content hashes; they decide which view an image shows first.
        views: views of each image; 0: the images as they are.
    """

    activations: ActivationSource
    labels: Labels
    keys: Sequence[bytes]
    views: int

    def rows(self, images: Sequence[int], epoch: int) -> list[tuple[int, int]]:
        """The (image, view) rows that an epoch shows of some images."""
        if not self.views:
            return [(image, 0) for image in images]
        first = [int.from_bytes(self.keys[image][:4], "little") for image in images]
        return [(image, (offset + epoch) % self.views) for image, offset in zip(images, first, strict=True)]


@dataclass(frozen=True)
class TuneSettings:
    """How a suffix is trained.

    Attributes:
        epochs: passes over the training images.
        lr: of the head and the last part; each part before it has ``decay`` times that of the part behind it.
        decay: see ``lr``; 0 < decay <= 1.
        weight_decay: AdamW's, on matrices and filters only.
        batch_size: images of a step.
        smoothing: share of the target that is spread over all classes.
        cutmix: share of the steps in which a rectangle of each activation is another's, see ``mixing.pasted``.
        mixup: in the other steps, both parameters of the beta distribution of ``mixing.blended``; 0: none.
        jitter: standard deviation of ``mixing.jittered``; 0: none.
        ema: of the averaged weights, per step.
        warmup: share of the steps in which the learning rate rises to its full value.
        clip: largest norm of the gradient.
        patience: epochs without a better validation after which training stops.
        balance: weigh the classes alike, however many images each has.
        first_view: the view that the first epoch begins with; rungs below have shown those before it.
        seed: of order, CutMix, mixup and jitter.
    """

    epochs: int
    lr: float = 1e-3
    decay: float = 0.8
    weight_decay: float = 0.05
    batch_size: int = 32
    smoothing: float = 0.1
    cutmix: float = 0.5
    mixup: float = 0.0
    jitter: float = 0.1
    ema: float = 0.99
    warmup: float = 0.1
    clip: float = 1.0
    patience: int = 10
    balance: bool = False
    first_view: int = 0
    seed: int = 0


@dataclass
class Progressed:
    """How far a rung has come: all that is needed to go on from there.

    Attributes:
        step: steps done.
        history: of each finished epoch: {"epoch", "loss", "correct", "log_loss"}.
        best: the entry of ``history`` whose weights are kept.
        loss: mean training loss of the epoch under way, and its steps.
        tensors: parameters, their average, AdamW's moments, the best average; by name. Empty while training.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None
    loss: tuple[float, int] = (0.0, 0)
    tensors: State = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Everything but the tensors."""
        return {"step": self.step, "history": self.history, "best": self.best, "loss": list(self.loss)}


Checkpoint = Callable[[Progressed, Callable[[], State]], None]


@dataclass(frozen=True)
class Tuned:
    """The outcome; the network's own parameters hold it as well.

    Attributes:
        weight: (classes, D) float32 of the head.
        bias: (classes,) float32.
        history: see ``Progressed``.
        best: its entry whose weights these are.
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    history: list[dict[str, float]]
    best: dict[str, float]


def trained_names(split: SplittableBackbone, boundary: str) -> list[str]:
    """Names of the parameters behind a boundary."""
    return [name for _, own in split.parts(boundary) for name in own]


def fine_tune(
    split: SplittableBackbone,
    boundary: str,
    head: Head,
    train: Samples,
    val: Samples | None,
    settings: TuneSettings,
    *,
    dtype: torch.dtype = torch.float32,
    start: Progressed | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Trains the parameters behind a boundary, in place, and leaves the best average in them.

    Args:
        split: the network; what lies before the boundary, and BatchNorm's statistics, are not touched.
        boundary: its name.
        head: to start from.
        train: what to learn from.
        val: what chooses the epoch that is kept; the last one where it is not given.
        settings: how.
        dtype: in which the suffix computes: float32 or bfloat16.
        start: where to go on; from the beginning where it is not given.
        checkpoint: called after every step with how far it has come, and a function that gives the tensors for it.
        progress: told of each batch.
    """
    trainer = _Trainer(split, boundary, head, train, val, settings, dtype)
    if start is not None:
        trainer.restore(start)
    return trainer.run(checkpoint, progress or SilentProgress())


def logits_of(split: SplittableBackbone, boundary: str, samples: Samples, head: Head) -> npt.NDArray[np.float64]:
    """(N, classes) logits of samples, in float32.

    Args:
        split: the network as it is.
        boundary: of the samples.
        samples: seen in their first view.
        head: behind the network.
    """
    suffix = split.suffix(boundary)
    suffix = fold_for_training(suffix, torch.float32) if isinstance(suffix, fx.GraphModule) else suffix
    weight, bias = (torch.from_numpy(part) for part in head)
    logits: npt.NDArray[np.float64] = _in_turn(samples, lambda x: suffix(x) @ weight.T + bias).double().numpy()
    return logits


def _in_turn(samples: Samples, logits: Callable[[Tensor], Tensor]) -> Tensor:
    """(N, classes) of the first views, a batch at a time."""
    count = len(samples.labels)
    with torch.no_grad():
        batches = [range(start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE)]
        return torch.cat([logits(samples.activations.read(samples.rows(batch, 0))) for batch in batches])


class _Trainer:
    def __init__(
        self,
        split: SplittableBackbone,
        boundary: str,
        head: Head,
        train: Samples,
        val: Samples | None,
        settings: TuneSettings,
        dtype: torch.dtype,
    ) -> None:
        self.settings, self.train, self.val, self.dtype = settings, train, val, dtype
        suffix = split.suffix(boundary)
        self.suffix = fold_for_training(suffix, dtype) if isinstance(suffix, fx.GraphModule) else suffix
        named = dict(split.module.named_parameters())
        self.head = [nn.Parameter(torch.from_numpy(np.array(part, dtype=np.float32))) for part in head]
        self.parameters: dict[str, nn.Parameter] = dict(zip(("head.weight", "head.bias"), self.head, strict=True))
        groups = [{"params": self.head, "scale": 1.0, "weight_decay": 0.0}]
        parts = split.parts(boundary)
        for place, (_, own) in enumerate(parts):
            scale = settings.decay ** (len(parts) - 1 - place)
            weights = {name: named[name] for name in own}
            self.parameters |= {f"backbone.{name}": weight for name, weight in weights.items()}
            matrices = [p for p in weights.values() if p.ndim > 1]
            vectors = [p for p in weights.values() if p.ndim <= 1]
            groups += [
                {"params": ps, "scale": scale, "weight_decay": decay}
                for ps, decay in ((matrices, settings.weight_decay), (vectors, 0.0))
                if ps
            ]
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, fused=True)
        self.live = list(self.parameters.values())
        self.layout = Layout.of(split.module)
        self.average = [p.detach().clone() for p in self.live]
        self.best: list[Tensor] = []
        self.done = Progressed()
        count = len(train.labels)
        self.batch = min(settings.batch_size, max(4, count // 8))
        self.per_epoch = math.ceil(count / self.batch)
        self.steps = settings.epochs * self.per_epoch
        classes = len(head[1])
        self.targets = nn.functional.one_hot(torch.from_numpy(train.labels), classes).float()
        self.targets = self.targets * (1 - settings.smoothing) + settings.smoothing / classes
        present = np.bincount(train.labels, minlength=classes)
        shares = np.where(present > 0, count / (np.count_nonzero(present) * np.maximum(present, 1)), 0.0)
        weights_of = shares[train.labels] if settings.balance else np.ones(count)
        self.weights = torch.from_numpy(weights_of.astype(np.float32))

    def run(self, checkpoint: Checkpoint | None, progress: Progress) -> Tuned:
        done, count = self.done, len(self.train.labels)
        with progress.task("Fine-tuning", self.settings.epochs * count) as advance:
            advance(min(done.step * self.batch, self.settings.epochs * count))
            while done.step < self.steps and not self._stopped():
                epoch, place = divmod(done.step, self.per_epoch)
                loss = self._step(epoch, place)
                done.step += 1
                done.loss = (done.loss[0] + loss, done.loss[1] + 1)
                advance(min(self.batch, count - place * self.batch))
                if place + 1 == self.per_epoch:
                    self._end_epoch(epoch)
                if checkpoint is not None:
                    checkpoint(done, self.snapshot)
        _copy(self.live, self.best)
        for parameter in self.live:
            parameter.requires_grad_(False)
        assert done.best is not None
        weight, bias = (p.detach().numpy().copy() for p in self.head)
        return Tuned(weight, bias, done.history, done.best)

    def _stopped(self) -> bool:
        best = self.done.best
        return best is not None and len(self.done.history) - 1 - best["epoch"] >= self.settings.patience

    def _step(self, epoch: int, place: int) -> float:
        settings, step = self.settings, self.done.step
        order = np.random.default_rng((settings.seed, 1, epoch)).permutation(len(self.train.labels))
        images = order[place * self.batch : (place + 1) * self.batch]
        x = self.train.activations.read(self.train.rows(images.tolist(), settings.first_view + epoch))
        target, weight = self.targets[images], self.weights[images]
        chance = np.random.default_rng((settings.seed, 2, step))
        if settings.jitter:
            x = jittered(x, settings.jitter, self.layout, chance)
        if chance.random() < settings.cutmix:
            x, other, share = pasted(x, self.layout, chance)
        elif settings.mixup:
            x, other, share = blended(x, settings.mixup, chance)
        else:
            other, share = torch.arange(len(x)), 1.0
        target = share * target + (1 - share) * target[other]
        weight = share * weight + (1 - share) * weight[other]
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * group["scale"] * self._rate(step)
        loss = -((target * nn.functional.log_softmax(self._logits(x), 1)).sum(1) * weight).mean()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.live, settings.clip)
        self.optimizer.step()
        keep = min(settings.ema, (2 + step) / (11 + step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.live], 1 - keep)
        return float(loss.detach())

    def _rate(self, step: int) -> float:
        """Share of the full learning rate: a straight rise, then half a cosine down to 0."""
        rise = max(1, round(self.settings.warmup * self.steps))
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))

    def _logits(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            features = self.suffix(x)
        logits: Tensor = features.float() @ self.head[0].T + self.head[1]
        return logits

    def _end_epoch(self, epoch: int) -> None:
        entry = {"epoch": float(epoch), "loss": self.done.loss[0] / max(1, self.done.loss[1])}
        self.done.loss = (0.0, 0)
        if self.val is not None:
            entry |= self._validate(self.val)
        self.done.history.append(entry)
        best = self.done.best
        if best is None or self.val is None or _rank(entry) > _rank(best):
            self.done.best = entry
            self.best = [tensor.clone() for tensor in self.average]

    def _validate(self, val: Samples) -> dict[str, float]:
        """Of the averaged weights."""
        kept = [p.detach().clone() for p in self.live]
        _copy(self.live, self.average)
        logits, labels = _in_turn(val, self._logits), torch.from_numpy(val.labels)
        _copy(self.live, kept)
        correct, loss = (logits.argmax(1) == labels).sum(), nn.functional.cross_entropy(logits, labels)
        return {"correct": float(correct), "log_loss": float(loss)}

    def snapshot(self) -> State:
        """Everything that ``restore`` needs beside ``Progressed.as_json``."""
        state: State = {}
        for place, (name, parameter) in enumerate(self.parameters.items()):
            state[f"live/{name}"] = parameter.detach().clone()
            state[f"average/{name}"] = self.average[place].clone()
            if self.best:
                state[f"best/{name}"] = self.best[place].clone()
            for moment, tensor in self.optimizer.state.get(parameter, {}).items():
                state[f"{moment}/{name}"] = tensor.clone()
        return state

    def restore(self, start: Progressed) -> None:
        self.done = Progressed(start.step, list(start.history), start.best, start.loss)
        tensors = start.tensors
        for place, (name, parameter) in enumerate(self.parameters.items()):
            _copy([parameter], [tensors[f"live/{name}"]])
            self.average[place] = tensors[f"average/{name}"].clone()
            moments = ("step", "exp_avg", "exp_avg_sq")
            self.optimizer.state[parameter] = {m: tensors[f"{m}/{name}"].clone() for m in moments}
        if start.best is not None:
            self.best = [tensors[f"best/{name}"].clone() for name in self.parameters]


def _rank(entry: dict[str, float]) -> tuple[float, float]:
    return entry["correct"], -entry["log_loss"]


def _copy(to: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for old, new in zip(to, tensors, strict=True):
            old.copy_(new)
