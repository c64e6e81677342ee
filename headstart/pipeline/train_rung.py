"""Training one rung of the ladder: with cross-validation where val is small, and with checkpoints to resume from."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from headstart.backbone.layers import Layout
from headstart.pipeline.data_parallel import RungTask
from headstart.pipeline.evaluate import mistakes_on_val
from headstart.pipeline.ladder_state import CURRENT, JudgedRung, Ladder, judge_images
from headstart.runs.events import (
    CheckpointSaved,
    EpochEnded,
    EventStream,
    MistakesFound,
    StepDone,
    Validated,
)
from headstart.runs.log import log_size
from headstart.training.checkpoint import load_checkpoint, save_checkpoint
from headstart.training.finetune import FineTuneResult, FineTuneSettings, fine_tune
from headstart.training.frozen_proof import Digests, digests_of, require_unchanged, tensors_of
from headstart.training.heads import logits_on, vectors_of
from headstart.training.ladder import (
    Rung,
    fold_settings,
)
from headstart.training.losses import evaluated_images
from headstart.training.out_of_fold import OutOfFold, in_order
from headstart.training.sampling import Samples
from headstart.training.suffix_evaluation import features_of, logits_of
from headstart.training.trained_weights import TensorDict
from headstart.training.training_step import FineTuneCheckpoint, TrainingStep
from headstart.trust.ood import MAX_REFERENCES_FINE_TUNED, choose_references, held_out_distances

SAVE_AT_MOST = 0.05
"""Share of the time that checkpoints may take."""

SAVE_EVERY = 5.0
"""Seconds between two checkpoints, at least."""


def run_rung(ladder: Ladder, number: int, rung: Rung, head: nn.Module, fold_ends: dict[int, TensorDict]) -> JudgedRung:
    """Trains and evaluates one rung, or restores it if it was finished before the run was stopped."""
    file = ladder.folder / f"rung-{number}.safetensors"
    before = digests_of(tensors_of(ladder.splittable.module))
    done = load_checkpoint(file)
    if done is not None:
        return _restore_rung(ladder, rung, before, *done)
    started = time.monotonic()
    ladder.timetable.begin(rung.name)
    train, val = ladder.activations.train_and_val(rung)
    more = ladder.activations.describe(rung)
    ladder.layers.report_rung(rung, ladder.splittable, head, ladder.events, more=more)
    below = {name: tensor.clone() for name, tensor in ladder.splittable.module.state_dict().items()}
    outside = None
    if ladder.folds:
        outside, fold_ends = _cross_validate(ladder, rung, train, fold_ends)
    ladder.splittable.module.load_state_dict(below)
    tuned = _train_rung(ladder, number, rung, head, train, val)
    val_logits = _val_logits(ladder, rung, tuned, val)
    correct, losses = judge_images(ladder, val_logits, outside)
    require_frozen(ladder, rung, before, tuned)
    judged = JudgedRung(tuned, correct, losses, outside, time.monotonic() - started, fold_ends, before)
    _save_rung(ladder, rung, judged, file, keeps_folds=number < len(ladder.prepared.planned.rungs))
    return judged


def _train_rung(
    ladder: Ladder, number: int, rung: Rung, head: nn.Module, train: Samples, val: Samples | None
) -> FineTuneResult:
    begun = _begun(ladder, number)
    save = _saver(ladder, number, rung, len(begun.history) if begun else 0)
    chooses = not ladder.folds
    return _fine_tune(ladder, rung, rung.settings, head, train, val, val_chooses=chooses, start=begun, on_step=save)


def _fine_tune(
    ladder: Ladder,
    rung: Rung,
    settings: FineTuneSettings,
    head: nn.Module,
    train: Samples,
    val: Samples | None,
    *,
    learn: npt.NDArray[np.int64] | None = None,
    val_chooses: bool = False,
    start: FineTuneCheckpoint | None = None,
    on_step: Callable[[TrainingStep], None] | None = None,
) -> FineTuneResult:
    """Trains from the current weights of the ladder's network, in this process or by several.

    Args:
        ladder: of the run.
        rung: whose layers are trained.
        settings: how.
        head: to start from.
        train: the training images.
        val: the validation images; None with ``learn``.
        learn: the training images to learn from; None for all.
        val_chooses: see ``finetune.FineTuneOptions``.
        start: likewise.
        on_step: called after each step.
    """
    module, progress = ladder.splittable.module, ladder.prepared.job.progress
    if ladder.parallel is not None:
        place = ladder.prepared.planned.rungs.index(rung)
        weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        task = RungTask(place, settings, head, weights, learn, val_chooses, start)
        return ladder.parallel.fine_tune(module, rung, task, on_step)
    return fine_tune(
        ladder.splittable,
        rung.boundary.name,
        head,
        train if learn is None else train.some(learn),
        val,
        settings,
        val_chooses=val_chooses,
        dtype=ladder.dtype,
        device=ladder.device,
        start=start,
        on_step=on_step,
        progress=progress,
    )


def _val_logits(
    ladder: Ladder, rung: Rung, tuned: FineTuneResult, val: Samples | None
) -> npt.NDArray[np.float64] | None:
    if val is None:
        return None
    progress = ladder.prepared.job.progress
    logits = logits_of(ladder.splittable, rung.boundary.name, val, tuned.head, device=ladder.device, progress=progress)
    ladder.events.emit(MistakesFound(rung.name, mistakes_on_val(ladder.prepared, logits)))
    return logits


def _cross_validate(
    ladder: Ladder, rung: Rung, train: Samples, fold_ends: dict[int, TensorDict]
) -> tuple[OutOfFold, dict[int, TensorDict]]:
    """Predictions for each held-out training image of the folds, by a network that was fine-tuned without it."""
    plain = ladder.activations.plain(rung)
    logits, distances, ends = [], [], dict[int, TensorDict]()
    for place, (learn, judge) in enumerate(ladder.folds):
        head = _begin_fold(ladder, learn, fold_ends.get(place))
        tuned = _fine_tune(ladder, rung, fold_settings(rung.settings), head, train, None, learn=learn)
        if ladder.prepared.job.recipe.gradual_unfreezing:
            ends[place] = _state_of(ladder, rung, tuned.head)
        features = _features(ladder, rung, plain, judge)
        logits.append(logits_on(tuned.head, features))
        distances.append(_fold_distances(ladder, rung, plain, features, learn))
    outside = OutOfFold(
        evaluated_images(ladder.folds),
        in_order(ladder.folds, logits),
        len(ladder.folds),
        in_order(ladder.folds, distances),
    )
    return outside, ends


def _features(ladder: Ladder, rung: Rung, samples: Samples, images: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Features of some images by the network with its current weights."""
    progress = ladder.prepared.job.progress
    boundary = rung.boundary.name
    return features_of(ladder.splittable, boundary, samples, images=images, device=ladder.device, progress=progress)


def _fold_distances(
    ladder: Ladder,
    rung: Rung,
    samples: Samples,
    judged: npt.NDArray[np.float32],
    learn: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """Distances of a fold's held-out images to its training images, for out-of-distribution detection.

    Args:
        ladder: with the network that was fine-tuned in the fold.
        rung: of the ladder.
        samples: the unaugmented training images.
        judged: features of the held-out images of the fold.
        learn: the images that it learnt from; features are computed of the references among them only.
    """
    layout = Layout.of(ladder.splittable.module)
    vectors = vectors_of(judged, layout)
    length = vectors.shape[1]
    kept = choose_references([samples.keys[i] for i in learn], length, MAX_REFERENCES_FINE_TUNED)
    references = vectors_of(_features(ladder, rung, samples, learn[kept]), layout)
    num_references = len(choose_references(samples.keys, length, MAX_REFERENCES_FINE_TUNED))
    return held_out_distances(references, vectors, references=num_references)


def _begin_fold(ladder: Ladder, learn: npt.NDArray[np.int64], below: TensorDict | None) -> nn.Module:
    """The head that a fold begins with; the network's weights are set: pretrained, or those of the rung below."""
    ladder.splittable.module.load_state_dict(ladder.pretrained)
    if not ladder.prepared.job.recipe.gradual_unfreezing or below is None:
        return ladder.prepared.fitted.refit(learn)
    return _restored(ladder, below)


def _begun(ladder: Ladder, number: int) -> FineTuneCheckpoint | None:
    """Where the training of a rung was stopped; None where it was not begun."""
    found = load_checkpoint(ladder.folder / CURRENT)
    if found is None or found[0]["rung"] != number:
        return None
    document, tensors = found
    return FineTuneCheckpoint.of(document["progressed"], tensors)


def _saver(ladder: Ladder, number: int, rung: Rung, reported: int) -> Callable[[TrainingStep], None]:
    """A function that emits each step and epoch, and writes a checkpoint now and then."""
    saved, cost = time.monotonic(), 0.0
    val = ladder.prepared.featurised.val

    def save(done: TrainingStep) -> None:
        nonlocal saved, cost, reported
        ladder.events.emit(StepDone(rung.name, done.figures()))
        for entry in done.history[reported:]:
            emit_epoch(ladder.events, rung.name, entry, 0 if val is None else len(val.labels))
        ended, reported = len(done.history) > reported, len(done.history)
        now = time.monotonic()
        if done.checkpoint is None:
            return
        if now - saved < max(SAVE_EVERY, cost / SAVE_AT_MOST) and not (ended and now - saved > cost / SAVE_AT_MOST):
            return
        file = ladder.folder / CURRENT
        kept = done.checkpoint()
        document = {"rung": number, "progressed": kept.as_json(), "log": log_size(ladder.folder.parent)}
        save_checkpoint(file, document, kept.tensors)
        ladder.events.emit(CheckpointSaved(rung.name, done.step, str(file)))
        saved = time.monotonic()
        cost = saved - now

    return save


def emit_epoch(events: EventStream, stage: str, entry: dict[str, float], num_val: int) -> None:
    """Emits the figures of a finished epoch.

    Args:
        events: of the run.
        stage: its name.
        entry: see ``training.training_step.EpochFigures``.
        num_val: validation images.
    """
    epoch = int(entry["epoch"])
    events.emit(EpochEnded(stage, epoch, entry["loss"], entry["accuracy"]))
    if "correct" in entry:
        correct = int(entry["correct"])
        events.emit(Validated(stage, epoch, correct / max(1, num_val), correct, entry["log_loss"]))


def _save_rung(ladder: Ladder, rung: Rung, judged: JudgedRung, file: Path, *, keeps_folds: bool) -> None:
    """Writes the checkpoint of a finished rung."""
    tensors = _state_of(ladder, rung, judged.tuned.head)
    if keeps_folds:
        folds = judged.fold_ends.items()
        tensors |= {f"fold{place}.{name}": tensor for place, ends in folds for name, tensor in ends.items()}
    tensors |= {"right": torch.from_numpy(judged.correct), "losses": torch.from_numpy(judged.losses)}
    outside = judged.out_of_fold
    if outside is not None and outside.distances is not None:
        tensors["outside.logits"] = torch.from_numpy(outside.logits)
        tensors["outside.distances"] = torch.from_numpy(outside.distances)
    tuned = judged.tuned
    document = {
        "history": tuned.history,
        "best": tuned.best,
        "seconds": judged.seconds,
        "log": log_size(ladder.folder.parent),
        "frozen": tuned.frozen,
    }
    save_checkpoint(file, document, tensors)
    (ladder.folder / CURRENT).unlink(missing_ok=True)


def _restore_rung(
    ladder: Ladder, rung: Rung, before: Digests, document: dict[str, Any], tensors: TensorDict
) -> JudgedRung:
    """A rung that finished before the run was stopped; the network has its weights afterwards."""
    tuned = FineTuneResult(_restored(ladder, tensors), document["history"], document["best"], document["frozen"])
    require_frozen(ladder, rung, before, tuned)
    fold_ends = {place: _under(f"fold{place}.", tensors) for place in range(len(ladder.folds))}
    outside = None
    if ladder.folds:
        logits, distances = tensors["outside.logits"].numpy(), tensors["outside.distances"].numpy()
        outside = OutOfFold(evaluated_images(ladder.folds), logits, len(ladder.folds), distances)
    return JudgedRung(
        tuned,
        tensors["right"].numpy(),
        tensors["losses"].numpy(),
        outside,
        document["seconds"],
        {place: ends for place, ends in fold_ends.items() if ends},
        before,
    )


def require_frozen(ladder: Ladder, rung: Rung, before: Digests, tuned: FineTuneResult) -> None:
    """Checks the trained module's frozen tensors against those that the rung began with.

    Args:
        ladder: of the run.
        rung: that was trained.
        before: digests of the backbone's tensors when the rung began.
        tuned: the outcome.

    Raises:
        TrainingError: one changed.
    """
    trained = set(ladder.trained_names(rung))
    expected = {name: digest for name, digest in before.items() if name not in trained}
    found = {name: digest for name, digest in tuned.frozen.items() if name in before}
    require_unchanged(expected, found, where=rung.name)


def _state_of(ladder: Ladder, rung: Rung, head: nn.Module) -> TensorDict:
    """What a rung changed, by names that ``_restored`` understands."""
    state = ladder.splittable.module.state_dict()
    tensors = {f"backbone.{name}": state[name].clone() for name in ladder.changed_names(rung)}
    return tensors | {f"head.{name}": tensor.clone() for name, tensor in head.state_dict().items()}


def _restored(ladder: Ladder, tensors: TensorDict) -> nn.Module:
    """Sets the network's weights to those of ``_state_of``, and returns the head."""
    ladder.splittable.module.load_state_dict(_under("backbone.", tensors), strict=False)
    head = copy.deepcopy(ladder.prepared.fitted.head)
    head.load_state_dict(_under("head.", tensors))
    return head


def _under(prefix: str, tensors: TensorDict) -> TensorDict:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
