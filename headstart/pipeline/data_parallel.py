"""Data-parallel fine-tuning: the rungs of the ladder are trained by several processes, which share out each batch.

Each rank computes and caches the activations of the images that it owns. This process hands out what is trained, passes
on each step as if it had made it itself, and takes the weights at the end, when those of all ranks must be equal.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import numpy as np
import numpy.typing as npt
from torch import nn

from headstart.backbone.pixel_net import split_backbone
from headstart.distributed.rank_group import RankGroup, RankSettings, start_ranks
from headstart.engine.device import training_device
from headstart.errors import TrainingError, WorkerError
from headstart.features.activations import Activations
from headstart.pipeline.rung_activations import RungActivations, RungInputs
from headstart.progress import Progress, SilentProgress
from headstart.training.finetune import TRAINING_TASK, FineTuneResult, FineTuneSettings, fine_tune_steps
from headstart.training.frozen_proof import Digests, digests_of
from headstart.training.ladder import Rung
from headstart.training.ranks import Rank
from headstart.training.trained_weights import TensorDict
from headstart.training.training_step import FineTuneCheckpoint, TrainingStep
from headstart.training.tuning import changed_names

CALL_SECONDS = 0.5
"""Seconds that one call to the ranks should take: their steps are reported together."""

CHUNK = 256
"""Images whose activations are computed in one call."""


@dataclass(frozen=True)
class RungTask:
    """What the ranks train.

    Attributes:
        rung: its place in the ladder's rungs.
        settings: how it is trained.
        head: to start from.
        weights: of the network to start from.
        learn: the training images to learn from, where not all; then there is no val.
        val_chooses: see ``finetune.FineTuneOptions``.
        start: where to continue; None from the beginning.
    """

    rung: int
    settings: FineTuneSettings
    head: nn.Module
    weights: TensorDict
    learn: npt.NDArray[np.int64] | None
    val_chooses: bool
    start: FineTuneCheckpoint | None


@dataclass(frozen=True)
class RankResult:
    """What one rank ends with.

    Attributes:
        tuned: the outcome; None but for the first rank.
        changed: tensors of the network that differ from those that training began with; empty but for the first rank.
        digests: of the changed tensors and of the head, on every rank.
    """

    tuned: FineTuneResult | None
    changed: TensorDict
    digests: Digests


@final
class RungRank:
    """The member of one rank: it trains rungs together with the other ranks.

    Args:
        inputs: of the run.
        rank: of this process.
        device: of this rank.
    """

    def __init__(self, inputs: RungInputs, rank: Rank, device: str) -> None:
        self.inputs, self.rank = replace(inputs, device=device), rank
        self.result: FineTuneResult | None = None
        split = split_backbone(inputs.backbone, inputs.spec)
        self.split = split.copied()
        self.activations = RungActivations(self.inputs, split, SilentProgress(), prepares=())

    def begin(self, task: RungTask) -> int:
        """Begins to train; returns the number of images whose activations this rank computes."""
        self.rung = self.inputs.rungs[task.rung]
        self.task, self.result = task, None
        self.split.module.load_state_dict(task.weights)
        train, val = self.activations.train_and_val(self.rung)
        self.source = train.activations
        self.own = self.rank.owned(len(train.labels))
        if task.learn is not None:
            train, val = train.some(task.learn), None
            self.own = task.learn[self.rank.owned(len(task.learn))]
        self.loop = fine_tune_steps(
            self.split,
            self.rung.boundary.name,
            task.head,
            train,
            val,
            task.settings,
            val_chooses=task.val_chooses,
            dtype=self.inputs.engines.training_dtype,
            device=training_device(self.inputs.device),
            start=task.start,
            rank=self.rank,
        )
        return len(self.own)

    def prepare(self, number: int) -> None:
        """Computes the activations of a chunk of this rank's images that are not cached yet."""
        assert isinstance(self.source, Activations)
        self.source.prepare(images=self.own[number * CHUNK : (number + 1) * CHUNK].tolist())

    def advance(self, count: int) -> list[TrainingStep]:
        """Makes so many steps, or fewer at the end; those of the first rank are returned."""
        steps = []
        for _ in range(count):
            try:
                step = next(self.loop)
            except StopIteration as end:
                self.result = end.value
                break
            self.step = step
            steps.append(replace(step, checkpoint=None))
        return steps if self.rank.number == 0 else []

    def checkpoint(self) -> FineTuneCheckpoint | None:
        """What is needed to continue from here, on the first rank; the others take part in it."""
        assert self.step.checkpoint is not None
        kept = self.step.checkpoint()
        return kept if self.rank.number == 0 else None

    def finish(self) -> RankResult:
        """The outcome, after the last step."""
        tuned = self.result
        assert tuned is not None
        state = self.split.module.state_dict()
        names = changed_names(self.split, self.rung.boundary.name, self.task.settings.tuning)
        changed = {name: state[name] for name in names}
        head = {f"head.{name}": tensor for name, tensor in tuned.head.state_dict().items()}
        digests = digests_of(changed | head)
        return RankResult(tuned, changed, digests) if self.rank.number == 0 else RankResult(None, {}, digests)


@final
class ParallelTraining:
    """The ranks of a run, started at first use.

    Args:
        inputs: of the run.
        settings: how many ranks, and where.
        progress: receives the progress of activations and training.
    """

    def __init__(self, inputs: RungInputs, settings: RankSettings, progress: Progress) -> None:
        self.inputs, self.settings, self.progress = inputs, settings, progress
        self._group: RankGroup | None = None

    @property
    def group(self) -> RankGroup:
        """The ranks."""
        if self._group is None:
            on_cpu = copy.deepcopy(self.inputs.backbone.module).cpu()  # a GPU's tensors are not sent
            inputs = replace(self.inputs, backbone=replace(self.inputs.backbone, module=on_cpu))
            with self.progress.task("Starting the workers", 1):
                self._group = start_ranks(partial(RungRank, inputs), self.settings, self.inputs.device)
            self.progress.say(f"Fine-tuning by {self._group.count} workers; each batch is divided among them.")
        return self._group

    def fine_tune(
        self,
        module: nn.Module,
        rung: Rung,
        task: RungTask,
        on_step: Callable[[TrainingStep], None] | None = None,
    ) -> FineTuneResult:
        """Trains a rung on the ranks; afterwards the network has the trained weights.

        Args:
            module: the network.
            rung: of the ladder.
            task: what is trained.
            on_step: called after each step.

        Raises:
            WorkerError: a rank was lost; the last checkpoint is kept.
            TrainingError: a frozen tensor changed, or the ranks' weights differ.
        """
        chunks = -(-max(self.group.call("begin", task)) // CHUNK)
        with self.progress.task(f"Running the backbone up to {rung.boundary.name}", chunks, "steps") as advance:
            for number in range(chunks):
                self.group.call("prepare", number)
                advance(1)
        self._train(task, on_step)
        results: list[RankResult] = self.group.call("finish")
        require_equal(results)
        tuned = results[0].tuned
        assert tuned is not None
        module.load_state_dict(results[0].changed, strict=False)
        return tuned

    def _train(self, task: RungTask, on_step: Callable[[TrainingStep], None] | None) -> None:
        images = len(self.inputs.train.labels) if task.learn is None else len(task.learn)
        count, shown = 1, 0
        with self.progress.task(TRAINING_TASK, task.settings.epochs * images) as advance:
            while True:
                started = time.monotonic()
                steps: list[TrainingStep] = self.group.call("advance", count)[0]
                for place, step in enumerate(steps, start=1):
                    advance(step.images_shown - shown)
                    shown = step.images_shown
                    if on_step is not None:
                        on_step(replace(step, checkpoint=self._checkpoint) if place == len(steps) else step)
                if len(steps) < count:
                    return
                count = max(1, min(2 * count, int(count * CALL_SECONDS / max(1e-6, time.monotonic() - started))))

    def _checkpoint(self) -> FineTuneCheckpoint:
        kept: FineTuneCheckpoint = self.group.call("checkpoint")[0]
        return kept

    def close(self) -> None:
        """Ends the ranks."""
        if self._group is not None:
            self._group.close()
            self._group = None


def require_equal(results: Sequence[RankResult]) -> None:
    """Checks that all ranks ended with the same weights, bit for bit.

    Raises:
        TrainingError: they did not.
    """
    for number, result in enumerate(results[1:], start=1):
        found = [name for name, digest in results[0].digests.items() if result.digests.get(name) != digest]
        if found or result.digests.keys() != results[0].digests.keys():
            raise TrainingError(
                f"data-parallel fine-tuning: the weights of worker {number} differ from those of worker 0 "
                f"({found[0] if found else 'names'}). This is a fault in Headstart or in a machine; train with one "
                "worker, and report it."
            )


def resumable(error: WorkerError, run: Any) -> WorkerError:
    """The error of a lost worker, with what to do."""
    return WorkerError(
        f"{str(error).rstrip('.')}. What was learnt up to the last checkpoint is kept: headstart train --resume {run}"
    )
