"""Fine-tuning the suffix behind a freeze boundary, from activations, starting from the probe's head.

Linear probing first, then fine-tuning (Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", ICLR 2022); AdamW with layer-wise learning-rate decay, warm-up and cosine; the weights that are
judged and kept are an exponential moving average. BatchNorm stays in inference mode unless it is asked to
learn: its statistics are constants.

Every random choice follows from the seed and the step alone, so that a run that goes on from a checkpoint ends with the
weights of one that was never stopped.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from headstart.backbone.layers import BatchNorm, Layout
from headstart.backbone.split import SplittableBackbone
from headstart.engine.conv_bn_fusion import fold_for_training
from headstart.engine.device import exact_float32
from headstart.errors import Diverged
from headstart.features.prefetch import ActivationReader, ActivationSource, Row, activation_reader
from headstart.progress import Progress, SilentProgress
from headstart.training.cuda_graph import Graphed
from headstart.training.ema import update_average
from headstart.training.feature_augment import blended, jittered, pasted
from headstart.training.frozen_proof import Digests, digests_of, require_unchanged, tensors_of
from headstart.training.losses import Labels, are_several, image_weights, losses_in, right_in, soft_targets

State = dict[str, Tensor]
CPU = torch.device("cpu")

TRAINING_TASK = "Fine-tuning"
"""Name of the ``Progress`` task that counts the images shown in training."""

ESTIMATED_ON = 16
"""Batches that BatchNorm's statistics are estimated on, at the end of an epoch, where they are learnt."""

AT_ONCE = 64
"""Images of a batch that is not trained on; on a GPU four times as many."""

UNREAD = 16
"""Steps after which a GPU is asked for their losses: to ask for each would make it wait."""


@dataclass(frozen=True)
class Samples:
    """Labelled activations at one boundary.

    Attributes:
        activations: where they are read.
        labels: of N images, see ``training.losses``.
        keys: N content hashes; they decide which view an image shows first.
        views: views of each image; 0: the images as they are.
    """

    activations: ActivationSource
    labels: Labels
    keys: Sequence[bytes]
    views: int

    def rows(self, images: Sequence[int], epoch: int) -> list[Row]:
        """The (image, view) rows that an epoch shows of some images."""
        if not self.views:
            return [(image, 0) for image in images]
        first = [int.from_bytes(self.keys[image][:4], "little") for image in images]
        return [(image, (offset + epoch) % self.views) for image, offset in zip(images, first, strict=True)]

    def some(self, places: npt.NDArray[np.int64]) -> Samples:
        """Some of the images, under numbers of their own."""
        own = _Some(self.activations, places)
        return Samples(own, self.labels[places], [self.keys[i] for i in places], self.views)


@dataclass(frozen=True)
class _Some:
    """Some of the images of a source, under numbers of their own."""

    whole: ActivationSource
    places: npt.NDArray[np.int64]

    def read(self, rows: Sequence[Row]) -> Tensor:
        return self.whole.read(self._in_whole(rows))

    def read_half(self, rows: Sequence[Row]) -> npt.NDArray[np.float16 | np.float32]:
        return self.whole.read_half(self._in_whole(rows))

    def _in_whole(self, rows: Sequence[Row]) -> list[Row]:
        return [(int(self.places[image]), view) for image, view in rows]


@dataclass(frozen=True)
class FeatureRows:
    """Features in memory as a source; every image has the one view.

    Attributes:
        features: (N, ...) float32.
    """

    features: Tensor

    def read(self, rows: Sequence[Row]) -> Tensor:
        """(len(rows), ...) float32."""
        return self.features[[image for image, _ in rows]]

    def read_half(self, rows: Sequence[Row]) -> npt.NDArray[np.float16 | np.float32]:
        """See ``feed.ActivationSource``."""
        return self.read(rows).numpy()


@dataclass(frozen=True)
class TuneSettings:
    """How a suffix is trained.

    Attributes:
        epochs: passes over the training images.
        lr: of the head and the last part; each part before it has ``decay`` times that of the part behind it.
        decay: see ``lr``; 0 < decay <= 1.
        weight_decay: AdamW's, on matrices and filters only, see ``Classifier.parameter_groups``.
        batch_size: images of a step.
        smoothing: share of the target that is spread over all classes.
        cutmix: share of the steps in which a rectangle of each activation is another's, see ``mixing.pasted``.
        mixup: in the other steps, both parameters of the beta distribution of ``mixing.blended``; 0: none.
        jitter: standard deviation of ``mixing.jittered``; 0: none.
        ema: of the averaged weights, per step.
        warmup: share of the steps in which the learning rate rises to its full value.
        clip: largest norm of the gradient.
        balance: weigh the classes alike, however many images each has.
        live_norms: BatchNorm behind the boundary normalises by each batch, and its statistics are estimated anew after
            each epoch, as a network that is trained from scratch must; otherwise they are constants.
        first_view: the view that the first epoch begins with; rungs below have shown those before it.
        seed: of order, CutMix, mixup and jitter.
    """

    epochs: int
    lr: float = 1e-3
    decay: float = 0.8
    weight_decay: float = 0.05
    batch_size: int = 32
    smoothing: float = 0.0
    cutmix: float = 0.0
    mixup: float = 0.0
    jitter: float = 0.1
    ema: float = 0.99
    warmup: float = 0.1
    clip: float = 1.0
    balance: bool = False
    live_norms: bool = False
    first_view: int = 0
    seed: int = 0


@dataclass
class Progressed:
    """How far a rung has come: all that is needed to go on from there.

    Attributes:
        step: steps done.
        history: of each finished epoch: {"epoch", "loss", "accuracy"} of the images as they were shown, and {"correct",
            "log_loss"} on val.
        best: the entry of ``history`` whose weights are kept.
        sums: of the epoch under way: of the training loss and of the accuracy of each step, and its steps.
        tensors: parameters, their average, AdamW's moments, the best average; by name. Empty while training.
        last: the last step: {"step" from 1, "steps", "epoch", "loss", "lr"}; on a GPU the loss is of up to ``UNREAD``
            steps before.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None
    sums: tuple[float, float, int] = (0.0, 0.0, 0)
    tensors: State = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """All that a checkpoint keeps beside the tensors."""
        return {"step": self.step, "history": self.history, "best": self.best, "sums": list(self.sums)}


Checkpoint = Callable[[Progressed, Callable[[], State]], None]


@dataclass(frozen=True)
class Tuned:
    """The outcome; the network's own parameters hold it as well.

    Attributes:
        head: (N, ...) features -> (N, classes) logits.
        history: see ``Progressed``.
        best: its entry whose weights these are.
        frozen: of every tensor that was not trained, as it was after the last step; the same as before the first one.
    """

    head: nn.Module
    history: list[dict[str, float]]
    best: dict[str, float]
    frozen: Digests = field(default_factory=dict, repr=False)


def trained_names(split: SplittableBackbone, boundary: str, *, live_norms: bool = False) -> list[str]:
    """Names of the parameters behind a boundary, and of BatchNorm's statistics there where they are learnt as well."""
    names = [name for _, own in split.parts(boundary) for name in own]
    return names + (list(_statistics(split, split.suffix(boundary))) if live_norms else [])


def _norms(suffix: nn.Module) -> list[BatchNorm]:
    return [part for part in suffix.modules() if isinstance(part, BatchNorm)]


def _statistics(split: SplittableBackbone, suffix: nn.Module) -> dict[str, Tensor]:
    """BatchNorm's running means and variances in a suffix, by their names in the network."""
    own = {id(norm.running_mean) for norm in _norms(suffix)} | {id(norm.running_var) for norm in _norms(suffix)}
    return {name: buffer for name, buffer in split.module.named_buffers() if id(buffer) in own}


UNDECAYED = ("*.bias", "*bias_table", "*pos_emb*", "*rel_pos*", "*_token", "*_tokens")
"""Patterns for parameters that hold no matrix to multiply by, whatever their shape; timm names them for most networks,
not for all."""


def undecayed_names(module: nn.Module) -> frozenset[str]:
    """Parameters that weight decay leaves alone: vectors, position embeddings, tokens, and those that timm names."""
    named: Any = getattr(module, "no_weight_decay", None)
    patterns = [*UNDECAYED, *(named() if callable(named) else ())]
    return frozenset(
        name
        for name, parameter in module.named_parameters()
        if parameter.ndim <= 1 or any(fnmatchcase(name, pattern) for pattern in patterns)
    )


class _Suffix(nn.Module):
    """(N, *shape) activations -> (N, ...) float32 features, computed in ``dtype`` where that does no harm."""

    def __init__(self, suffix: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.suffix, self.low = suffix, dtype == torch.bfloat16

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.low, cache_enabled=x.device.type == "cpu"):
            features: Tensor = self.suffix(x)
        return features.float()


class Classifier(nn.Module):
    """The trainable part of a network and its head: the activation at a boundary -> logits.

    It shares the network's own parameters: training it trains the network. BatchNorm stays in inference mode, also
    after ``train()``, and is folded into the convolutions where that is possible, unless it is asked to learn.

    Args:
        split: the network; what lies before the boundary is not touched.
        boundary: its name.
        head: (N, ...) features -> (N, classes) logits; not copied.
        dtype: in which the suffix computes: float32 or bfloat16.
        live_norms: BatchNorm normalises by each batch while ``learning_norms``.

    Attributes:
        suffix: activation -> features.
        head: features -> logits.
        parts: (part, {name in the network: parameter}) from the boundary to the end, without the head.
        norms: layers of BatchNorm that learn.
        statistics: their running means and variances, by their names in the network.
        undecayed: names of the network's parameters that weight decay leaves alone.
    """

    def __init__(
        self,
        split: SplittableBackbone,
        boundary: str,
        head: nn.Module,
        *,
        dtype: torch.dtype = torch.float32,
        live_norms: bool = False,
    ) -> None:
        super().__init__()
        suffix = split.suffix(boundary)
        self.norms = _norms(suffix) if live_norms else []
        self.statistics = _statistics(split, suffix) if live_norms else {}
        if isinstance(suffix, fx.GraphModule) and not live_norms:
            suffix = fold_for_training(suffix, dtype)
        self.suffix, self.head = _Suffix(suffix, dtype), head
        named = dict(split.module.named_parameters())
        self.parts = [(part, {name: named[name] for name in own}) for part, own in split.parts(boundary)]
        self.undecayed = undecayed_names(split.module)
        self.eval()
        for parameter in self.trainable().values():
            parameter.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, *shape) float32 activations -> (N, classes) float32 logits."""
        logits: Tensor = self.head(self.suffix(x))
        return logits

    def train(self, mode: bool = True) -> Self:
        """Sets the head's dropout to work, and nothing else."""
        super().train(mode)
        self.suffix.eval()
        for part in self.head.modules():
            if isinstance(part, BatchNorm):
                part.eval()
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """Every parameter that is trained, by its name in the model file: "head.0.weight", "backbone.blocks.6.0..."."""
        own = {f"head.{name}": weight for name, weight in self.head.named_parameters()}
        return own | {f"backbone.{name}": weight for _, part in self.parts for name, weight in part.items()}

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What an optimizer is given."""
        return list(self.trainable().values())

    def parameter_groups(self, lr: float, *, decay: float = 1.0, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """What an optimizer is given for layer-wise learning rates, the head first.

        Args:
            lr: of the head and the last part.
            decay: each part has so much of the learning rate of the part behind it; 0 < decay <= 1.
            weight_decay: on the network's matrices and filters; not on biases, norms, position embeddings, class
                tokens, and whatever else timm's ``no_weight_decay`` names for the architecture.
        """
        groups = [{"params": list(self.head.parameters()), "lr": lr, "weight_decay": 0.0}]
        for place, (_, weights) in enumerate(self.parts):
            own = lr * decay ** (len(self.parts) - 1 - place)
            decayed = [p for name, p in weights.items() if name not in self.undecayed]
            others = [p for name, p in weights.items() if name in self.undecayed]
            groups += [
                {"params": params, "lr": own, "weight_decay": share}
                for params, share in ((decayed, weight_decay), (others, 0.0))
                if params
            ]
        return groups


def fine_tune(
    split: SplittableBackbone,
    boundary: str,
    head: nn.Module,
    train: Samples,
    val: Samples | None,
    settings: TuneSettings,
    *,
    val_chooses: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    start: Progressed | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Trains the parameters behind a boundary, in place, and leaves the best average in them.

    On a GPU what is read stays there as far as there is room, the next batches are read meanwhile, and a step is one
    launch. The network is on the CPU before and after.

    Args:
        split: the network; what lies before the boundary, and BatchNorm's statistics, are not touched.
        boundary: its name.
        head: to start from; not changed. Its BatchNorm stays in inference mode as well.
        train: what to learn from.
        val: what is scored after each epoch, and chooses the epoch that is kept; the last one where it is not given.
        settings: how.
        val_chooses: False: val is scored for the curve alone, and the last epoch is kept.
        dtype: in which the suffix computes: float32 or bfloat16.
        device: where: the CPU or a CUDA device.
        start: where to go on; from the beginning where it is not given.
        checkpoint: called after every step with how far it has come, and a function that gives the tensors for it.
        progress: told of each batch.

    Raises:
        Diverged: the loss is not a finite number.
        TrainingError: a frozen tensor changed meanwhile.
    """
    with _on(device, split.module), exact_float32(device):
        trainer = _Trainer(split, boundary, head, train, val, settings, val_chooses, dtype, device)
        before = trainer.frozen_digests()
        if start is not None:
            trainer.restore(start)
        tuned = trainer.run(checkpoint, progress or SilentProgress())
        after = trainer.frozen_digests()
    require_unchanged(before, after, where=f"fine-tuning behind {boundary}")
    return replace(tuned, frozen=after)


@contextmanager
def _on(device: torch.device, module: nn.Module) -> Iterator[None]:
    """A network on a device for a while, and on the CPU afterwards; its parameters stay the same objects."""
    module.to(device)
    try:
        yield
    finally:
        module.to(CPU)


def logits_of(
    split: SplittableBackbone,
    boundary: str,
    samples: Samples,
    head: nn.Module,
    *,
    device: torch.device = CPU,
    progress: Progress | None = None,
) -> npt.NDArray[np.float64]:
    """(N, classes) logits of samples, in float32.

    Args:
        split: the network as it is.
        boundary: of the samples.
        samples: seen in their first view.
        head: behind the network, on the CPU.
        device: where to compute them.
        progress: told of each batch.
    """
    found = _behind(split, boundary, samples, [copy.deepcopy(head)], device, progress)
    logits: npt.NDArray[np.float64] = found.double().numpy()
    return logits


def features_of(
    split: SplittableBackbone,
    boundary: str,
    samples: Samples,
    *,
    device: torch.device = CPU,
    progress: Progress | None = None,
) -> npt.NDArray[np.float32]:
    """(N, ...) features of samples, in float32; arguments as ``logits_of``."""
    features: npt.NDArray[np.float32] = _behind(split, boundary, samples, [], device, progress).numpy()
    return features


def _behind(
    split: SplittableBackbone,
    boundary: str,
    samples: Samples,
    more: list[nn.Module],
    device: torch.device,
    progress: Progress | None,
) -> Tensor:
    """What comes out of the network behind a boundary, and of more layers behind it; on the CPU."""
    with _on(device, split.module), exact_float32(device):
        suffix = split.suffix(boundary)
        suffix = fold_for_training(suffix, torch.float32) if isinstance(suffix, fx.GraphModule) else suffix
        whole = nn.Sequential(suffix, *more).to(device)
        feed = activation_reader(samples.activations, device, rows=0)
        with (progress or SilentProgress()).task("Judging", len(samples.labels)) as advance:
            return _in_turn(samples, feed, whole, device, advance)


def _in_turn(
    samples: Samples,
    feed: ActivationReader,
    compute: Callable[[Tensor], Tensor],
    device: torch.device,
    advance: Callable[[int], None] = lambda _count: None,
) -> Tensor:
    """(N, ...), on the CPU, of the first views, a batch at a time."""
    count, step = len(samples.labels), AT_ONCE if device == CPU else 4 * AT_ONCE
    batches = [samples.rows(range(start, min(start + step, count)), 0) for start in range(0, count, step)]
    feed.expect(batches)
    made = []
    with torch.no_grad():
        for batch in batches:
            made.append(compute(feed.read(batch)))
            advance(len(batch))
        return torch.cat(made).cpu()


def rate(step: int, steps: int, warmup: float) -> float:
    """Share of the full learning rate: a straight rise over a share of the steps, then half a cosine down to 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def epoch_order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """The order in which an epoch shows the images."""
    return np.random.default_rng((seed, 1, epoch)).permutation(count)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """PyTorch's own generator, set by some numbers; afterwards it is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
        yield


class _Trainer:
    def __init__(
        self,
        split: SplittableBackbone,
        boundary: str,
        head: nn.Module,
        train: Samples,
        val: Samples | None,
        settings: TuneSettings,
        val_chooses: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.settings, self.train, self.val, self.device = settings, train, val, device
        self.chooses = val_chooses and val is not None
        self.head = copy.deepcopy(head).to(device)
        self.classifier = Classifier(split, boundary, self.head, dtype=dtype, live_norms=settings.live_norms)
        self.classifier.to(device)  # tables that the graph of a suffix holds beside the network's own tensors
        self.feed = activation_reader(train.activations, device, rows=len(train.labels) * max(1, train.views))
        self.val_feed = None if val is None else activation_reader(val.activations, device, rows=len(val.labels))
        self.unread: list[Tensor] = []
        self.order: tuple[int, npt.NDArray[np.int64]] | None = None
        self.norms, self.statistics = self.classifier.norms, self.classifier.statistics
        self.batch_counts = [cast(Tensor, norm.num_batches_tracked) for norm in self.norms]
        self.first_batch_counts = [count.clone() for count in self.batch_counts]
        self.dropouts = [part for part in self.head.modules() if isinstance(part, nn.Dropout)]
        self.parameters = self.classifier.trainable()
        groups = self.classifier.parameter_groups(settings.lr, decay=settings.decay, weight_decay=settings.weight_decay)
        self.full_rates = [group["lr"] for group in groups]
        self.recorded: Graphed | None = None
        self.follow: float | Tensor = 0.0
        self.lr = 0.0
        if device != CPU:
            self.rates = torch.zeros(len(groups) + 1, device=device)
            self.follow = self.rates[-1]
            for group, own in zip(groups, self.rates, strict=False):
                group["lr"] = own
        self.optimizer = torch.optim.AdamW(groups, fused=True, capturable=device != CPU)
        self.live = list(self.parameters.values())
        self.network, self.layout = split.module, Layout.of(split.module)
        self.average = [p.detach().clone() for p in self.live]
        self.best: list[Tensor] = []
        self.done = Progressed()
        count = len(train.labels)
        self.batch = min(settings.batch_size, max(4, count // 8))
        self.per_epoch = math.ceil(count / self.batch)
        self.steps = settings.epochs * self.per_epoch
        with torch.no_grad():
            classes = self.head(torch.zeros(1, *split.boundaries[-1].shape, device=device)).shape[1]
        self.classes, self.several = classes, are_several(train.labels)
        self.targets = soft_targets(train.labels, classes, settings.smoothing)
        self.weights = image_weights(train.labels, classes, balance=settings.balance)

    def frozen_digests(self) -> Digests:
        """Of all that is not trained: in the network, in what the suffix holds beside it, and in the head."""
        network = tensors_of(self.network)
        shared = {id(tensor) for tensor in network.values()}
        beside = {name: t for name, t in tensors_of(self.classifier.suffix).items() if id(t) not in shared}
        head = {f"head.{name}": tensor for name, tensor in self.head.named_buffers()}
        trained = [name.removeprefix("backbone.") for name in self.parameters] + list(self.statistics)
        return digests_of(network | beside | head, without=trained)

    def run(self, checkpoint: Checkpoint | None, progress: Progress) -> Tuned:
        done, count = self.done, len(self.train.labels)
        with progress.task(TRAINING_TASK, self.settings.epochs * count) as advance:
            advance(min(done.step * self.batch, self.settings.epochs * count))
            self._record()
            self._expect()
            while done.step < self.steps:
                epoch, place = divmod(done.step, self.per_epoch)
                self.unread.append(self._step(epoch, place))
                done.step += 1
                last = place + 1 == self.per_epoch
                if self.device == CPU or last or len(self.unread) == UNREAD:
                    self._settle()
                done.last |= {"step": done.step, "steps": self.steps, "epoch": epoch, "lr": self.lr}
                advance(min(self.batch, count - place * self.batch))
                if last:
                    self._end_epoch(epoch)
                    self._expect()
                if checkpoint is not None:
                    checkpoint(done, self.snapshot)
        _copy([*self.live, *self.statistics.values()], self.best)
        _copy(self.batch_counts, self.first_batch_counts)  # they count batches since the last estimate only
        for parameter in self.live:
            parameter.requires_grad_(False)
        assert done.best is not None
        return Tuned(self.head.to(CPU), done.history, done.best)

    def _expect(self) -> None:
        """Tells the feed what the rest of the epoch will ask for."""
        epoch, place = divmod(self.done.step, self.per_epoch)
        if epoch < self.settings.epochs:
            self.feed.expect([self._rows(epoch, self._images(epoch, later)) for later in range(place, self.per_epoch)])

    def _images(self, epoch: int, place: int) -> npt.NDArray[np.int64]:
        if self.order is None or self.order[0] != epoch:
            self.order = epoch, epoch_order(self.settings.seed, epoch, len(self.train.labels))
        return self.order[1][place * self.batch : (place + 1) * self.batch]

    def _rows(self, epoch: int, images: npt.NDArray[np.int64]) -> list[Row]:
        return self.train.rows(images.tolist(), self.settings.first_view + epoch)

    def _settle(self) -> None:
        """Takes in the losses of the last steps, for which a GPU is waited for."""
        for loss, right in torch.stack(self.unread).tolist() if self.unread else []:
            sums = self.done.sums
            self.done.sums = (sums[0] + loss, sums[1] + right, sums[2] + 1)
            self.done.last["loss"] = loss
        self.unread = []

    def _step(self, epoch: int, place: int) -> Tensor:
        """(2,): loss, share right; of mixed pictures each half counts by its share."""
        settings, step, device = self.settings, self.done.step, self.device
        images = self._images(epoch, place)
        x = self.feed.read(self._rows(epoch, images))
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
        labels = torch.from_numpy(self.train.labels[images])
        target = share * target + (1 - share) * target[other]
        weight = share * weight + (1 - share) * weight[other]
        self._set_rates(step)
        inputs = x, target.to(device), weight.to(device)
        if self.recorded is not None and self.recorded.takes(*inputs):
            loss, given = self.recorded(*inputs)
        else:
            loss, given = self._learn(*inputs)
        right = share * right_in(given, labels.to(device)).float().mean()
        right += (1 - share) * right_in(given, labels[other].to(device)).float().mean()
        return torch.stack([loss.float(), right])

    def _set_rates(self, step: int) -> None:
        share, keep = rate(step, self.steps, self.settings.warmup), min(self.settings.ema, (2 + step) / (11 + step))
        rates = [full * share for full in self.full_rates]
        self.lr = rates[0]
        if self.device == CPU:
            self.follow = 1 - keep
            for group, own in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = own
        else:  # in place: a recorded step reads them from where they are
            self.rates.copy_(torch.tensor([*rates, 1 - keep]), non_blocking=True)

    def _learn(self, x: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, (N, classes) logits) of a batch, by which the weights and their average have moved."""
        with self._dropping(self.done.step), self._learning_statistics(len(x)):
            logits = self.classifier(x)
            loss = (losses_in(logits, target, several=self.several) * weight).mean()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.live, self.settings.clip)
        self.optimizer.step()
        update_average(self.average, self.live, self.follow)
        return loss.detach(), logits.detach()

    def _record(self) -> None:
        """Makes a step one launch, on a GPU.

        Before the feed's threads ask the GPU for anything: nobody else may meanwhile.
        """
        if self.device == CPU or self.dropouts or self.norms or self.done.step >= self.steps:
            return
        images = self._images(0, 0)
        x = self.feed.read(self._rows(0, images))
        inputs = x, self.targets[images].to(self.device), self.weights[images].to(self.device)
        before = self.snapshot()
        self.rates.zero_()
        try:
            self.recorded = Graphed(self._learn, inputs)
        except RuntimeError:  # a layer that waits for the GPU, say: step by step, then
            self.recorded = None
        self._return_to(before)

    def _return_to(self, state: State) -> None:
        """Takes back steps, leaving every tensor where it is in memory."""
        for place, (name, parameter) in enumerate(self.parameters.items()):
            _copy([parameter, self.average[place]], [state[f"live/{name}"], state[f"average/{name}"]])
            for moment, tensor in self.optimizer.state.get(parameter, {}).items():
                _copy([tensor], [state.get(f"{moment}/{name}", torch.zeros_like(tensor))])

    @contextmanager
    def _learning_statistics(self, count: int) -> Iterator[None]:
        """One image alone has no statistics."""
        for norm in self.norms:
            norm.train(count > 1)
        yield
        for norm in self.norms:
            norm.eval()

    @contextmanager
    def _dropping(self, step: int) -> Iterator[None]:
        """The head's dropout at work, what it drops decided by the seed and the step alone."""
        if not self.dropouts:
            yield
            return
        with seeded(self.settings.seed, 3, step):
            for dropout in self.dropouts:
                dropout.train()
            yield
            for dropout in self.dropouts:
                dropout.eval()

    def _end_epoch(self, epoch: int) -> None:
        loss, accuracy, steps = self.done.sums
        entry = {"epoch": float(epoch), "loss": loss / max(1, steps), "accuracy": accuracy / max(1, steps)}
        self.done.sums = (0.0, 0.0, 0)
        if not math.isfinite(entry["loss"]):
            raise Diverged(
                f"Fine-tuning diverged: in epoch {epoch + 1} the loss is not a finite number. Choose a smaller --lr "
                f"than {self.settings.lr:g}."
            )
        with self._averaged():
            if self.norms:
                self._estimate_statistics(epoch)
            if self.val is not None and self.val_feed is not None:
                entry |= self._validate(self.val, self.val_feed)
        self.done.history.append(entry)
        best = self.done.best
        if best is None or not self.chooses or _rank(entry) > _rank(best):
            self.done.best = entry
            self.best = [tensor.clone() for tensor in (*self.average, *self.statistics.values())]

    def _validate(self, val: Samples, feed: ActivationReader) -> dict[str, float]:
        logits = _in_turn(val, feed, self.classifier, self.device)
        targets = soft_targets(val.labels, self.classes, 0.0)
        correct = right_in(logits, torch.from_numpy(val.labels)).sum()
        loss = losses_in(logits, targets, several=self.several).mean()
        return {"correct": float(correct), "log_loss": float(loss)}

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights in place of those that are trained."""
        kept = [p.detach().clone() for p in self.live]
        _copy(self.live, self.average)
        yield
        _copy(self.live, kept)

    def _estimate_statistics(self, epoch: int) -> None:
        """BatchNorm's statistics of the weights as they are, over some of the epoch's batches.

        Running averages lag behind the weights, and those of the averaged weights were never seen.

        Source: "PreciseBN" in Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021.
        """
        places = [self._images(epoch, place) for place in range(min(ESTIMATED_ON, self.per_epoch))]
        momenta = [norm.momentum for norm in self.norms]
        for norm in self.norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches
            norm.train()
        with torch.no_grad():
            for images in places:
                if len(images) > 1:
                    self.classifier(self.feed.read(self._rows(epoch, images)))
        for norm, momentum in zip(self.norms, momenta, strict=True):
            norm.momentum = momentum
            cast(Tensor, norm.num_batches_tracked).zero_()
            norm.eval()

    def snapshot(self) -> State:
        """Everything that ``restore`` needs beside ``Progressed.as_json``, which is up to date afterwards."""
        self._settle()
        state: State = {}
        for place, (name, parameter) in enumerate(self.parameters.items()):
            state[f"live/{name}"] = parameter.detach().clone()
            state[f"average/{name}"] = self.average[place].clone()
            if self.best:
                state[f"best/{name}"] = self.best[place].clone()
            for moment, tensor in self.optimizer.state.get(parameter, {}).items():
                state[f"{moment}/{name}"] = tensor.clone()
        if self.best:
            for place, name in enumerate(self.statistics, start=len(self.live)):
                state[f"best/{name}"] = self.best[place].clone()
        return state

    def restore(self, start: Progressed) -> None:
        self.done = Progressed(start.step, list(start.history), start.best, start.sums)
        tensors = {name: tensor.to(self.device) for name, tensor in start.tensors.items()}
        for place, (name, parameter) in enumerate(self.parameters.items()):
            _copy([parameter], [tensors[f"live/{name}"]])
            self.average[place] = tensors[f"average/{name}"].clone()
            moments = ("step", "exp_avg", "exp_avg_sq")
            self.optimizer.state[parameter] = {m: tensors[f"{m}/{name}"].clone() for m in moments}
        if start.best is not None:
            self.best = [tensors[f"best/{name}"].clone() for name in (*self.parameters, *self.statistics)]


def _rank(entry: dict[str, float]) -> tuple[float, float]:
    return entry["correct"], -entry["log_loss"]


def _copy(to: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for old, new in zip(to, tensors, strict=True):
            old.copy_(new)
