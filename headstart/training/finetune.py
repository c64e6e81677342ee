"""Fine-tuning the suffix after a freeze boundary, from activations, starting from the probe's head.

Linear probing first, then fine-tuning (Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", ICLR 2022); AdamW with layer-wise learning-rate decay, warm-up and cosine schedule; the weights
that are evaluated and kept are an exponential moving average. BatchNorm stays in inference mode unless
``Tuning.update_batchnorm``: its statistics are constants.

Every random choice is a function of seed and step, so that a resumed run ends with the weights of one never stopped.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TypedDict, Unpack, cast

import numpy as np
import torch
from torch import Tensor, nn

from headstart.backbone.split import SplittableBackbone
from headstart.engine.device import exact_float32
from headstart.errors import Diverged
from headstart.features.prefetch import ActivationReader, Row, activation_reader
from headstart.progress import Progress, SilentProgress
from headstart.training.cuda_graph import RecordedStep
from headstart.training.feature_augment import draw_augmentation
from headstart.training.frozen_proof import Digests, digests_of, require_unchanged, tensors_of
from headstart.training.losses import correct_in, image_weights, is_multi_label, loss_per_image, soft_targets
from headstart.training.ranks import ALONE, Rank
from headstart.training.sampling import BatchOrder, Samples, batch_size_for, seeded
from headstart.training.schedule import warmup_cosine
from headstart.training.suffix_classifier import SuffixClassifier
from headstart.training.suffix_evaluation import CPU, compute_in_batches, on_device
from headstart.training.trained_weights import TrainedWeights, copy_tensors
from headstart.training.training_step import EpochFigures, FineTuneCheckpoint, TrainingStep
from headstart.training.tuning import FULL, Tuning

TRAINING_TASK = "Fine-tuning"
"""Name of the ``Progress`` task that counts the images shown in training."""

STATISTICS_BATCHES = 16
"""Batches that BatchNorm's statistics are estimated on at the end of an epoch, if they are learnt."""

UNREAD_LOSSES = 16
"""Steps after which a GPU's losses are read; reading each loss would make the CPU wait for the GPU."""


@dataclass(frozen=True)
class FineTuneSettings:
    """How a suffix is trained.

    Attributes:
        epochs: passes over the training images.
        tuning: which weights after the boundary are trained.
        lr: learning rate of the head and the last part; each earlier part has ``decay`` times that of the next one.
        decay: see ``lr``; 0 < decay <= 1.
        weight_decay: AdamW's, on matrices and filters only, see ``SuffixClassifier.parameter_groups``.
        batch_size: images per step.
        label_smoothing: share of the target that is spread over all classes.
        cutmix: share of the steps that use CutMix, see ``feature_augment.cutmix``.
        mixup: parameter of mixup's beta distribution in the other steps, see ``feature_augment.mixup``; 0: none.
        feature_jitter: standard deviation of ``feature_augment.jitter_channels``; 0: none.
        ema: decay of the averaged weights per step.
        warmup: share of the steps in which the learning rate rises to its full value.
        clip: largest norm of the gradient.
        balance_classes: give all classes the same weight, however many images each has.
        first_view: the view that the first epoch begins with; the rungs below have shown earlier views.
        seed: of order, CutMix, mixup and jitter.
    """

    epochs: int
    tuning: Tuning = FULL
    lr: float = 1e-3
    decay: float = 0.8
    weight_decay: float = 0.05
    batch_size: int = 32
    label_smoothing: float = 0.0
    cutmix: float = 0.0
    mixup: float = 0.0
    feature_jitter: float = 0.1
    ema: float = 0.99
    warmup: float = 0.1
    clip: float = 1.0
    balance_classes: bool = False
    first_view: int = 0
    seed: int = 0


@dataclass(frozen=True)
class FineTuneResult:
    """The outcome of fine-tuning; the network's parameters hold the trained weights too.

    Attributes:
        head: (N, ...) features -> (N, classes) logits.
        history: figures of each epoch.
        best: the entry of ``history`` whose weights were kept.
        frozen: digests of every tensor that was not trained, after the last step and before updates are merged.
    """

    head: nn.Module
    history: list[EpochFigures]
    best: EpochFigures
    frozen: Digests = field(default_factory=dict, repr=False)


class FineTuneOptions(TypedDict, total=False):
    """Options of ``fine_tune`` and ``fine_tune_steps``.

    Attributes:
        val_chooses: False: val is evaluated for the learning curve only, and the last epoch is kept; default True.
        dtype: in which the suffix computes: float32 (default) or bfloat16.
        device: the CPU (default) or a CUDA device.
        start: where to continue; default from the beginning.
        rank: of this process, where several train together; they take the same steps.
    """

    val_chooses: bool
    dtype: torch.dtype
    device: torch.device
    start: FineTuneCheckpoint | None
    rank: Rank


def fine_tune(
    split: SplittableBackbone,
    boundary: str,
    head: nn.Module,
    train: Samples,
    val: Samples | None,
    settings: FineTuneSettings,
    *,
    on_step: Callable[[TrainingStep], None] | None = None,
    progress: Progress | None = None,
    **options: Unpack[FineTuneOptions],
) -> FineTuneResult:
    """Trains the parameters after a boundary in place; the best average remains in them. See ``fine_tune_steps``.

    Args:
        split: as in ``fine_tune_steps``, and so the following.
        boundary: its name.
        head: to start from; not changed.
        train: to learn from.
        val: evaluated after each epoch.
        settings: how to train.
        on_step: called after each step.
        progress: receives the number of images shown.
        **options: see ``FineTuneOptions``.

    Raises:
        Diverged: the loss is not a finite number.
        TrainingError: a frozen tensor changed.
    """
    loop = fine_tune_steps(split, boundary, head, train, val, settings, **options)
    task = (progress or SilentProgress()).task(TRAINING_TASK, settings.epochs * len(train.labels))
    with task as advance, closing(loop):
        shown = 0
        while True:
            try:
                done = next(loop)
            except StopIteration as end:
                return cast(FineTuneResult, end.value)
            advance(done.images_shown - shown)
            shown = done.images_shown
            if on_step is not None:
                on_step(done)


def fine_tune_steps(
    split: SplittableBackbone,
    boundary: str,
    head: nn.Module,
    train: Samples,
    val: Samples | None,
    settings: FineTuneSettings,
    **options: Unpack[FineTuneOptions],
) -> Generator[TrainingStep, None, FineTuneResult]:
    """The training loop: yields each step and returns the result; the network is on the CPU before and after.

    On a GPU activations are prefetched and kept in its memory if they fit, and a step is one launch of a CUDA graph.

    Args:
        split: the network; what precedes the boundary is not changed, nor are BatchNorm's statistics.
        boundary: its name.
        head: to start from; not changed. Its BatchNorm stays in inference mode too.
        train: to learn from.
        val: evaluated after each epoch, and chooses the epoch that is kept; without it the last one is kept.
        settings: how to train.
        **options: see ``FineTuneOptions``.

    Raises:
        Diverged: the loss is not a finite number.
        TrainingError: a frozen tensor changed.
    """
    device = options.get("device", CPU)
    with on_device(device, split.module), exact_float32(device):
        trainer = _Trainer(split, boundary, head, train, val, settings, options)
        before = trainer.frozen_digests()
        if (start := options.get("start")) is not None:
            trainer.restore(start)
        trainer.record_step()
        trainer.prefetch()
        for step in range(trainer.step, trainer.order.steps):
            epoch, index = divmod(step, trainer.order.per_epoch)
            trainer.learn(epoch, index)
            if index + 1 == trainer.order.per_epoch:
                trainer.end_epoch(epoch)
                trainer.prefetch()
            yield trainer.done(epoch, index)
        result = trainer.finish()
        after = trainer.frozen_digests()
        require_unchanged(before, after, where=f"fine-tuning after {boundary}")
        trainer.classifier.merge()  # only now, because the proof is of the module that was trained
    return replace(result, frozen=after)


class _Trainer:
    """State of one fine-tuning: classifier, weights, data, and the figures of the current epoch."""

    def __init__(
        self,
        split: SplittableBackbone,
        boundary: str,
        head: nn.Module,
        train: Samples,
        val: Samples | None,
        settings: FineTuneSettings,
        options: FineTuneOptions,
    ) -> None:
        device, dtype = options.get("device", CPU), options.get("dtype", torch.float32)
        self.settings, self.train, self.val, self.device = settings, train, val, device
        self.val_chooses, self.rank = options.get("val_chooses", True) and val is not None, options.get("rank", ALONE)
        self.network, self.layouts = split.module, split.layouts
        self.boundary = next(b for b in split.boundaries if b.name == boundary)
        self.head = copy.deepcopy(head).to(device)
        self.classifier = SuffixClassifier(
            split, boundary, self.head, dtype=dtype, tuning=settings.tuning, seed=settings.seed
        ).to(device)  # the graph of a suffix may hold tables beside the network's tensors
        self.dropouts = [part for part in self.head.modules() if isinstance(part, nn.Dropout)]
        groups = self.classifier.parameter_groups(settings.lr, decay=settings.decay, weight_decay=settings.weight_decay)
        self.weights = TrainedWeights(self.classifier.trainable(), self.classifier.statistics, groups, device)
        self.num_batches = [cast(Tensor, norm.num_batches_tracked) for norm in self.classifier.norms]
        self.first_num_batches = [count.clone() for count in self.num_batches]
        count = len(train.labels)
        batch_size = batch_size_for(count, settings.batch_size)
        self.order = BatchOrder(train, batch_size, settings.epochs, settings.seed, settings.first_view)
        self.reader = activation_reader(train.activations, device, rows=count * max(1, train.views))
        self.own_val = val if val is None or self.rank.is_alone else val.some(self.rank.owned(len(val.labels)))
        self.val_reader = _reader_of(self.own_val, device)
        with torch.no_grad():
            self.num_classes = self.head(torch.zeros(1, *split.boundaries[-1].shape, device=device)).shape[1]
        self.is_multi_label = is_multi_label(train.labels)
        self.targets = soft_targets(train.labels, self.num_classes, settings.label_smoothing)
        self.image_weights = image_weights(train.labels, self.num_classes, balance=settings.balance_classes)
        self.recorded: RecordedStep | None = None
        self.step, self.sums, self.history = 0, (0.0, 0.0, 0), list[EpochFigures]()
        self.best: EpochFigures | None = None
        self.unread: list[Tensor] = []
        self.last_loss: float | None = None

    def frozen_digests(self) -> Digests:
        """Digests of everything that is not trained: in the network, in tables of the suffix, and in the head."""
        network = tensors_of(self.network)
        others = {id(tensor) for tensor in (*network.values(), *self.weights.live)}
        tables = {name: t for name, t in tensors_of(self.classifier.suffix).items() if id(t) not in others}
        head = {f"head.{name}": tensor for name, tensor in self.head.named_buffers()}
        trained = [name.removeprefix("backbone.") for name in self.weights.parameters]
        return digests_of(network | tables | head, without=[*trained, *self.weights.statistics])

    def prefetch(self) -> None:
        """Announces what the rest of the epoch will read."""
        if self.step < self.order.steps:
            epoch, index = divmod(self.step, self.order.per_epoch)
            self.reader.expect(self._own_rows(epoch, later) for later in range(index, self.order.per_epoch))

    def _own_rows(self, epoch: int, index: int) -> list[Row]:
        """The rows of a step that this rank takes."""
        rows = self.order.rows(epoch, index)
        return [rows[place] for place in self.rank.places(self.order.images(epoch, index)) or [0]]

    def learn(self, epoch: int, index: int) -> None:
        """One step: reads a batch, augments it, and moves the weights."""
        images = self.order.images(epoch, index)
        own = self.rank.places(images)
        places = own or [0]  # of a batch with fewer images than ranks one that does not count
        x, partner, share = self._augmented(epoch, index, places)
        target, weight = (
            (share * values[images] + (1 - share) * values[images][partner])[places]
            for values in (self.targets, self.image_weights)
        )
        rate = warmup_cosine(self.step, self.order.steps, self.settings.warmup)
        self.weights.set_rates(self.step, rate, self.settings.ema)
        inputs = x, target.to(self.device), weight.to(self.device) * (len(own) / len(images))
        is_recorded = self.recorded is not None and self.recorded.accepts(*inputs)
        loss, logits = self.recorded(*inputs) if self.recorded and is_recorded else self._update(*inputs)
        labels = torch.from_numpy(self.train.labels[images])
        right = share * correct_in(logits, labels[places].to(self.device)).float().sum()
        right += (1 - share) * correct_in(logits, labels[partner][places].to(self.device)).float().sum()
        self.unread.append(torch.stack([loss.float(), right * (len(own) / len(places) / len(images))]))
        self.step += 1
        if self.device == CPU or index + 1 == self.order.per_epoch or len(self.unread) == UNREAD_LOSSES:
            self._read_losses()

    def _augmented(self, epoch: int, index: int, places: list[int]) -> tuple[Tensor, Tensor, float]:
        """(activations of this rank's images, partner of each image of the batch, share of the image itself)."""
        rows, settings = self.order.rows(epoch, index), self.settings
        own = self.boundary.activations(self.reader.read([rows[place] for place in places]))
        drawn = draw_augmentation(
            [(len(rows), *part.shape[1:]) for part in own],
            self.layouts,
            np.random.default_rng((settings.seed, 2, self.step)),
            jitter=settings.feature_jitter,
            cutmix_share=settings.cutmix,
            mixup_alpha=settings.mixup,
        )
        if self.rank.is_alone:
            return drawn.apply(own), drawn.partner, drawn.share
        others = None
        if drawn.share != 1.0:
            partners = [rows[place] for place in drawn.partner[places].tolist()]
            others = self.boundary.activations(self.reader.read(partners))
        return drawn.apply(own, places, others), drawn.partner, drawn.share

    def _update(self, x: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Moves the weights by the gradient of a batch; its loss and (N, classes) logits."""
        with self._dropout(self.step), self.classifier.learning_statistics(len(x)):
            logits = self.classifier.logits_by_network(x)
            losses = [loss_per_image(one, target, multi_label=self.is_multi_label) for one in logits]
            loss = (torch.stack(losses) * weight).mean()
        self.weights.step(loss, self.settings.clip, self.rank)
        return loss.detach(), logits.detach().mean(0)

    @contextmanager
    def _dropout(self, step: int) -> Iterator[None]:
        """Context in which the head's dropout is active; what it drops is a function of the seed and the step."""
        if not self.dropouts:
            yield
            return
        with seeded(self.settings.seed, 3, step, *([] if self.rank.is_alone else [self.rank.number])):
            for dropout in self.dropouts:
                dropout.train()
            yield
            for dropout in self.dropouts:
                dropout.eval()

    def record_step(self) -> None:
        """Records a step as a CUDA graph, on a GPU; recording allows no other thread to use the GPU."""
        is_recordable = self.device != CPU and self.rank.is_alone and not self.dropouts and not self.classifier.norms
        if not is_recordable or self.step >= self.order.steps:
            return
        images = self.order.images(0, 0)
        x = self.reader.read(self.order.rows(0, 0))
        inputs = x, self.targets[images].to(self.device), self.image_weights[images].to(self.device)
        before = self.weights.snapshot()
        self.weights.zero_rates()
        try:
            self.recorded = RecordedStep(self._update, inputs)
        except RuntimeError:  # a layer that cannot be recorded, for example because it waits for the GPU
            self.recorded = None
        self.weights.rewind(before)

    def _read_losses(self) -> None:
        """Adds the losses of the last steps to the sums; on a GPU this waits for them."""
        if not self.unread:
            return
        figures = torch.stack(self.unread)
        self.rank.add_up([figures])
        for loss, accuracy in figures.tolist():
            self.sums = (self.sums[0] + loss, self.sums[1] + accuracy, self.sums[2] + 1)
            self.last_loss = loss
        self.unread = []

    def end_epoch(self, epoch: int) -> None:
        """Evaluates the averaged weights, and keeps them if they are the best.

        Raises:
            Diverged: the loss is not a finite number.
        """
        loss, accuracy, steps = self.sums
        entry = {"epoch": float(epoch), "loss": loss / max(1, steps), "accuracy": accuracy / max(1, steps)}
        self.sums = (0.0, 0.0, 0)
        if not math.isfinite(entry["loss"]):
            raise Diverged(
                f"Fine-tuning diverged: in epoch {epoch + 1} the loss is not a finite number. Choose a learning rate "
                f"(option lr) below {self.settings.lr:g}."
            )
        with self.weights.averaged():
            if self.classifier.norms:
                shown = (self.order.rows(epoch, i) for i in range(min(STATISTICS_BATCHES, self.order.per_epoch)))
                self.classifier.estimate_statistics(self.reader.read(rows) for rows in shown if len(rows) > 1)
            entry |= self._validate()
        self.history.append(entry)
        if self.best is None or not self.val_chooses or _rank(entry) > _rank(self.best):
            self.best = entry
            self.weights.keep_best()

    def _validate(self) -> EpochFigures:
        if self.val is None or self.own_val is None or self.val_reader is None:
            return {}
        own = torch.zeros(0, self.num_classes)
        if len(self.own_val.labels):
            own = compute_in_batches(self.own_val, self.val_reader, self.classifier, self.device)
        logits = self.rank.collected(own, len(self.val.labels))
        targets = soft_targets(self.val.labels, self.num_classes, 0.0)
        correct = correct_in(logits, torch.from_numpy(self.val.labels)).sum()
        loss = loss_per_image(logits, targets, multi_label=self.is_multi_label).mean()
        return {"correct": float(correct), "log_loss": float(loss)}

    def done(self, epoch: int, index: int) -> TrainingStep:
        """The step that was just done."""
        count = len(self.train.labels)
        return TrainingStep(
            step=self.step,
            steps=self.order.steps,
            epoch=epoch,
            images_shown=epoch * count + min(count, (index + 1) * self.order.batch_size),
            lr=self.weights.lr,
            loss=self.last_loss,
            history=tuple(self.history),
            checkpoint=self.checkpoint,
        )

    def checkpoint(self) -> FineTuneCheckpoint:
        """Copies everything that ``restore`` needs."""
        self._read_losses()
        return FineTuneCheckpoint(self.step, list(self.history), self.best, self.sums, self.weights.snapshot())

    def restore(self, start: FineTuneCheckpoint) -> None:
        """Continues from a checkpoint."""
        self.step = start.step
        self.history, self.best, self.sums = list(start.history), start.best, start.sums
        tensors = {name: tensor.to(self.device) for name, tensor in start.tensors.items()}
        self.weights.restore(tensors, has_best=start.best is not None)

    def finish(self) -> FineTuneResult:
        """Leaves the best average in the network."""
        if self.best is None:
            raise ValueError("no epoch has ended")
        self.weights.load_best()
        copy_tensors(self.num_batches, self.first_num_batches)  # they count batches since the last estimate only
        return FineTuneResult(self.head.to(CPU), self.history, self.best)


def _reader_of(samples: Samples | None, device: torch.device) -> ActivationReader | None:
    return None if samples is None else activation_reader(samples.activations, device, rows=len(samples.labels))


def _rank(entry: EpochFigures) -> tuple[float, float]:
    return entry["correct"], -entry["log_loss"]
