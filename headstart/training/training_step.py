"""One step of fine-tuning that is done, and the checkpoint that it can be continued from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from headstart.training.trained_weights import TensorDict

EpochFigures = dict[str, float]
"""{"epoch", "loss", "accuracy"} of the images as they were shown, and {"correct", "log_loss"} on val."""


@dataclass(frozen=True)
class FineTuneCheckpoint:
    """State needed to resume fine-tuning.

    Attributes:
        step: steps done.
        history: figures of each finished epoch.
        best: the entry of ``history`` whose weights are kept so far.
        sums: sums of loss and accuracy over the steps of the current epoch, and the number of its steps.
        tensors: weights, their average, AdamW's moments, the best average, by name.
    """

    step: int
    history: list[EpochFigures]
    best: EpochFigures | None
    sums: tuple[float, float, int]
    tensors: TensorDict = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """Everything but the tensors."""
        return {"step": self.step, "history": self.history, "best": self.best, "sums": list(self.sums)}

    @classmethod
    def of(cls, document: dict[str, Any], tensors: TensorDict) -> FineTuneCheckpoint:
        """A checkpoint from ``as_json`` and its tensors."""
        return cls(document["step"], document["history"], document["best"], tuple(document["sums"]), tensors)


@dataclass(frozen=True)
class TrainingStep:
    """One step of fine-tuning that is done.

    Attributes:
        step: number of steps done.
        steps: number of steps in all.
        epoch: of the step, from 0.
        images_shown: in all steps so far.
        lr: learning rate of the head.
        loss: on a GPU of up to ``UNREAD_LOSSES`` steps before; None if none has been read yet.
        history: figures of the epochs that have ended.
        checkpoint: copies everything that is needed to continue from here; None where several steps are reported
            together, but for the last one.
    """

    step: int
    steps: int
    epoch: int
    images_shown: int
    lr: float
    loss: float | None
    history: tuple[EpochFigures, ...]
    checkpoint: Callable[[], FineTuneCheckpoint] | None = field(repr=False)

    def figures(self) -> dict[str, float]:
        """{"step", "steps", "epoch", "lr"} and, if known, {"loss"}."""
        found: dict[str, float] = {"step": self.step, "steps": self.steps, "epoch": self.epoch, "lr": self.lr}
        return found if self.loss is None else found | {"loss": self.loss}
