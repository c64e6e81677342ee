"""The ladder of a run: what all its rungs share, and what each of them gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from headstart.backbone.split import SplittableBackbone
from headstart.engine.device import training_device
from headstart.pipeline.data_parallel import ParallelTraining
from headstart.pipeline.evaluate import TrainedClassifier, training_folds
from headstart.pipeline.fit import Prepared
from headstart.pipeline.rung_activations import EVERY, RungActivations, RungInputs
from headstart.pipeline.trained_layers import TrainedLayers
from headstart.runs.events import (
    EventStream,
)
from headstart.runs.time_estimate import Timetable
from headstart.training.finetune import FineTuneResult
from headstart.training.frozen_proof import Digests, digests_of, tensors_of
from headstart.training.ladder import (
    FOLDS,
    Rung,
    RungResult,
)
from headstart.training.losses import Folds, Labels, are_correct, evaluated_images
from headstart.training.out_of_fold import OutOfFold
from headstart.training.trained_weights import TensorDict
from headstart.training.tuning import changed_names, trained_names
from headstart.trust.temperature import calibrated_losses

Correct = npt.NDArray[np.bool_]
Losses = npt.NDArray[np.float64]

CHECKPOINTS = "checkpoints"
CURRENT = "current.safetensors"
"""Checkpoint of the rung under way."""


@dataclass(frozen=True)
class FineTuned:
    """Result of fine-tuning: the best rung of the ladder.

    Attributes:
        classifier: backbone and head of the best rung.
        results: results of all rungs, the kNN reference first.
        best: name of the best rung.
        frozen: digests of all tensors that the best rung did not train, in the trained module after the last step and
            before low-rank updates were merged.
        before: digests of the same tensors before the rung was trained.
        num_trained: number of weights that the best rung trained, without those of the head.
        num_changed: number of backbone weights that this changed: the same, or those that updates were merged into.
    """

    classifier: TrainedClassifier
    results: tuple[RungResult, ...]
    best: str
    frozen: Digests
    before: Digests
    num_trained: int
    num_changed: int

    @property
    def is_probe(self) -> bool:
        """Whether the head on frozen features is the best."""
        return not self.num_changed


@dataclass(frozen=True)
class Ladder:
    """What all rungs of a run share.

    Attributes:
        probe: the run up to the head on frozen features, the lowest rung.
        prepared: what the other rungs start from, see ``Prepared.for_rungs``; its backbone is not touched.
        splittable: a copy of its backbone, which is trained.
        activations: what rungs are trained on.
        layers: reports what each rung trains.
        folder: of checkpoints.
        events: of the run.
        timetable: of the run.
        folds: folds of the cross-validation that evaluates rungs if val is small; otherwise empty.
        pretrained: the copy's weights before anything was trained.
        digests: digests of ``pretrained``.
        keeps_last: whether every rung is tried and the last one kept, even if an earlier one is better.
        parallel: the processes that train rungs; None: this one.
    """

    probe: Prepared
    prepared: Prepared
    splittable: SplittableBackbone
    activations: RungActivations
    layers: TrainedLayers
    folder: Path
    events: EventStream
    timetable: Timetable
    folds: Folds
    pretrained: TensorDict
    digests: Digests
    keeps_last: bool
    parallel: ParallelTraining | None = None

    @property
    def device(self) -> torch.device:
        """Where rungs are trained."""
        return training_device(self.prepared.job.device)

    @property
    def dtype(self) -> torch.dtype:
        """In which rungs are trained."""
        return self.prepared.planned.engines.training_dtype

    @property
    def labels(self) -> Labels:
        """Labels of the images that rungs are compared on: val and, if it is small, held-out images of the folds."""
        train, val = self.prepared.featurised.train, self.prepared.featurised.val
        parts = [] if val is None else [val.labels]
        return np.concatenate([*parts, train.labels[evaluated_images(self.folds)]]) if self.folds else parts[0]

    def trained_names(self, rung: Rung) -> list[str]:
        """Names of the backbone's tensors that a rung trains; all others are frozen meanwhile."""
        return trained_names(self.splittable, rung.boundary.name, rung.settings.tuning)

    def changed_names(self, rung: Rung) -> list[str]:
        """Names of the backbone's tensors that differ after a rung: trained, or merged with what was trained."""
        return changed_names(self.splittable, rung.boundary.name, rung.settings.tuning)


@dataclass(frozen=True)
class JudgedRung:
    """A rung that was trained and evaluated.

    Attributes:
        tuned: the outcome of training.
        correct: (N,) whether each compared image is correct.
        losses: (N,) their losses.
        out_of_fold: predictions by cross-validation; None where val suffices.
        seconds: that it took.
        fold_ends: fold -> weights trained in it, if the next rung continues from them.
        before: digests of the backbone's tensors before it was trained.
    """

    tuned: FineTuneResult
    correct: Correct
    losses: Losses
    out_of_fold: OutOfFold | None
    seconds: float
    fold_ends: dict[int, TensorDict]
    before: Digests


@dataclass(frozen=True)
class BestRung:
    """The best rung so far.

    Attributes:
        result: its figures.
        correct: see ``JudgedRung``.
        losses: likewise.
        head: its head.
        state: tensors of the backbone that it changed; none for the probe.
        boundary: its name; "" for the probe.
        num_trained: number of weights that it trained, without those of the head.
        frozen: digests of the tensors that it did not train, see ``FineTuned``.
        before: digests of the backbone's tensors before it was trained.
        out_of_fold: see ``JudgedRung``; None for the probe, for which ``evaluate`` affords more folds.
    """

    result: RungResult
    correct: Correct
    losses: Losses
    head: nn.Module
    state: TensorDict
    boundary: str
    num_trained: int
    frozen: Digests
    before: Digests
    out_of_fold: OutOfFold | None = None


def begin_ladder(
    prepared: Prepared,
    splittable: SplittableBackbone,
    run: Path,
    events: EventStream,
    timetable: Timetable,
    *,
    keeps_last: bool = False,
) -> Ladder:
    """Copies the backbone and determines how rungs are evaluated.

    Args:
        prepared: the run up to the head.
        splittable: its backbone.
        run: the run folder.
        events: of the run.
        timetable: of the run.
        keeps_last: see ``Ladder``; also where the recipe names a depth.
    """
    probe, prepared = prepared, prepared.for_rungs
    copied = splittable.copied()
    recipe, inputs, ranks = prepared.job.recipe, RungInputs.of(prepared), prepared.job.ranks
    parallel = ParallelTraining(inputs, ranks, prepared.job.progress) if ranks.is_parallel else None
    prepares = [what for what in EVERY if parallel is None or what != "train"]
    return Ladder(
        probe,
        prepared,
        copied,
        RungActivations(inputs, splittable, prepared.job.progress, prepares=prepares),
        TrainedLayers(prepared.loaded.net),
        run / CHECKPOINTS,
        events,
        timetable,
        training_folds(prepared.inspected, FOLDS, recipe.seed) if prepared.planned.cross_validates else [],
        {name: tensor.clone() for name, tensor in copied.module.state_dict().items()},
        digests_of(tensors_of(copied.module)),
        keeps_last or recipe.is_named_depth,
        parallel,
    )


def judge_images(
    ladder: Ladder, val_logits: npt.NDArray[np.float64] | None, outside: OutOfFold | None
) -> tuple[Correct, Losses]:
    """(whether each compared image is correct, its loss), from the logits of val and of cross-validation."""
    parts = [] if val_logits is None else [val_logits]
    logits = np.concatenate([*parts, outside.logits] if outside is not None else parts)
    return are_correct(logits, ladder.labels), calibrated_losses(logits, ladder.labels)
