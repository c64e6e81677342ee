"""Step 6 of a run: the ladder. Rungs are fine-tuned and evaluated one after the other; the best one is kept."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.backbone.split import HEAD
from headstart.errors import Diverged, WorkerError
from headstart.evaluation.metrics import wilson
from headstart.figures import share_text
from headstart.import_effects import import_quietly
from headstart.pipeline.data_parallel import resumable
from headstart.pipeline.evaluate import TrainedClassifier
from headstart.pipeline.ladder_state import BestRung, Correct, FineTuned, JudgedRung, Ladder, Losses, judge_images
from headstart.pipeline.train_rung import run_rung
from headstart.runs.events import RungJudged
from headstart.training.frozen_proof import digests_of, require_unchanged, tensors_of
from headstart.training.heads import logits_on
from headstart.training.ladder import (
    ALPHA,
    DEEPER_FROM,
    KNN,
    Rung,
    RungResult,
    can_improve,
    paired_p,
)
from headstart.training.out_of_fold import in_order, of_frozen_features
from headstart.training.trained_weights import TensorDict

NUM_NEIGHBOURS = 10
"""Of the reference classifier."""


def climb_ladder(ladder: Ladder, probe_seconds: float) -> FineTuned:
    """Trains and evaluates rungs while the gain is significant, and keeps the best one.

    Args:
        ladder: see ``begin_ladder``.
        probe_seconds: time that the probe took.

    Raises:
        TrainingError: a frozen tensor changed, or training of a rung that has to be kept diverged.
        WorkerError: one of several processes that train together was lost; the run can be resumed.
    """
    try:
        return _climb(ladder, probe_seconds)
    except WorkerError as error:
        raise resumable(error, ladder.folder.parent) from error
    finally:
        if ladder.parallel is not None:
            ladder.parallel.close()


def _climb(ladder: Ladder, probe_seconds: float) -> FineTuned:
    reference, best = _neighbour_reference(ladder), _probe_as_best(ladder, probe_seconds)
    results = [reference, best.result]
    for result in results:
        ladder.events.say(f"{result.name}: {_accuracy_text(result)}.")
        ladder.events.emit(RungJudged(asdict(result)))
    probe, head, fold_ends = best.result, ladder.prepared.fitted.head, dict[int, TensorDict]()
    for number, rung in enumerate(ladder.prepared.planned.rungs, start=1):
        if not ladder.keeps_last and not can_improve(best.correct):
            results[-1] = _without_room(ladder, results[-1], best)
            break
        if not ladder.prepared.job.recipe.gradual_unfreezing:
            ladder.splittable.module.load_state_dict(ladder.pretrained)
            head, fold_ends = ladder.prepared.fitted.head, {}
        try:
            judged = run_rung(ladder, number, rung, head, fold_ends)
        except Diverged as error:
            if ladder.keeps_last:
                raise
            ladder.events.say(f"Warning: {rung.name} is not kept. {error}")
            break
        result, is_kept, goes_on = _decide(ladder, number, rung, judged, best, probe)
        results.append(result)
        ladder.events.say(_rung_text(result, best.result))
        ladder.events.emit(RungJudged(asdict(result)))
        head, fold_ends = judged.tuned.head, judged.fold_ends
        if is_kept:
            best = _as_best(ladder, rung, judged, result)
        if not goes_on:
            break
    return _finish(ladder, results, best)


def _probe_as_best(ladder: Ladder, seconds: float) -> BestRung:
    """The head on frozen features as the lowest rung."""
    fitted, featurised = ladder.probe.fitted, ladder.probe.featurised
    outside = None
    if ladder.folds:
        progress = ladder.prepared.job.progress
        outside = of_frozen_features(fitted, featurised.train.features, ladder.folds, progress=progress)
    val_logits = None if featurised.val is None else logits_on(fitted.head, featurised.val.features)
    correct, losses = judge_images(ladder, val_logits, outside)
    result = rung_result(fitted.name, HEAD, correct, losses, seconds)
    return BestRung(result, correct, losses, fitted.head, {}, "", 0, ladder.digests, ladder.digests)


def _as_best(ladder: Ladder, rung: Rung, judged: JudgedRung, result: RungResult) -> BestRung:
    tensors = ladder.splittable.module.state_dict()
    state = {name: tensors[name].clone() for name in ladder.changed_names(rung)}
    return BestRung(
        result,
        judged.correct,
        judged.losses,
        judged.tuned.head,
        state,
        rung.boundary.name,
        rung.num_trained,
        judged.tuned.frozen,
        judged.before,
        judged.out_of_fold,
    )


def _neighbour_reference(ladder: Ladder) -> RungResult:
    """A reference that learns nothing: the nearest training images by cosine similarity of their features."""
    started = time.monotonic()
    train, val = ladder.prepared.featurised.train, ladder.prepared.featurised.val
    features = _flat(train.features)
    most = min(NUM_NEIGHBOURS, len(train.labels) - 1)

    def predict(learn: npt.NDArray[np.int64], judged: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        classifier = import_quietly("sklearn.neighbors").KNeighborsClassifier(
            min(most, len(learn)), metric="cosine", weights="distance"
        )
        return np.asarray(classifier.fit(features[learn], train.labels[learn]).predict(judged))

    parts = [] if val is None else [predict(np.arange(len(train.labels)), _flat(val.features))]
    if ladder.folds:
        answers = [predict(learn, features[judge]) for learn, judge in ladder.folds]
        parts.append(in_order(ladder.folds, answers))
    labels = ladder.labels
    correct = (np.concatenate(parts).reshape(labels.shape) == labels).reshape(len(labels), -1).all(axis=1)
    result = rung_result(KNN, HEAD, correct, np.zeros(len(correct)), time.monotonic() - started)
    return replace(result, decision="reference only, never kept")


def _without_room(ladder: Ladder, result: RungResult, best: BestRung) -> RungResult:
    wrong = int((~best.correct).sum())
    text = f"no rung tried: correcting every remaining mistake ({wrong:,}) would not be a significant gain"
    ladder.events.say(f"{result.name}: {text}.")
    return replace(result, decision=text)


def _decide(
    ladder: Ladder, number: int, rung: Rung, judged: JudgedRung, best: BestRung, probe: RungResult
) -> tuple[RungResult, bool, bool]:
    """(the rung's figures with the decision, whether it is kept, whether the next one is tried)."""
    p = paired_p(best.losses, judged.losses)
    result = rung_result(rung.name, rung.boundary.name, judged.correct, judged.losses, judged.seconds)
    gained, is_last = p < ALPHA, number == len(ladder.prepared.planned.rungs)
    is_better = (result.correct, -result.log_loss) > (best.result.correct, -best.result.log_loss)
    is_kept = ladder.keeps_last or is_better
    leaves_little = not ladder.keeps_last and probe.log_loss < DEEPER_FROM
    decision = "kept; " if is_kept else "not kept; "
    if ladder.keeps_last:
        decision = f"kept as requested; {probe.name}: {probe.correct:,} of {probe.count:,}; "
    decision += "the gain is significant" if gained else "no significant gain"
    if not is_last and gained and leaves_little:
        decision += (
            f"; stopping, because the log loss of the probe is {probe.log_loss:.3f} nats; below {DEEPER_FROM}, no "
            "deeper rung is tried"
        )
    elif not is_last:
        decision += "; trying the next rung" if gained else "; stopping"
    why = f"log loss {best.result.log_loss:.3f} to {result.log_loss:.3f}, p = {p:.2g}"
    epochs = len(judged.tuned.history)
    goes_on = (gained or ladder.keeps_last) and not leaves_little
    return replace(result, epochs=epochs, p=p, decision=f"{decision} ({why})"), is_kept, goes_on


def _finish(ladder: Ladder, results: list[RungResult], best: BestRung) -> FineTuned:
    """Restores the best rung, once the proof of what was frozen has been checked."""
    module, backbone = ladder.splittable.module, ladder.prepared.loaded.backbone
    module.load_state_dict(ladder.pretrained)
    module.load_state_dict(best.state, strict=False)
    module.eval().requires_grad_(False)
    kept = digests_of(tensors_of(module), without=best.state)
    pretrained = {name: digest for name, digest in ladder.digests.items() if name not in best.state}
    require_unchanged(pretrained, kept, where=best.result.name)
    if best.state:
        backbone = backbone.fine_tuned(module, best.boundary)
    return FineTuned(
        TrainedClassifier(backbone, best.head, best.out_of_fold),
        tuple(results),
        best.result.name,
        {name: digest for name, digest in best.frozen.items() if name in best.before},
        {name: digest for name, digest in best.before.items() if name in best.frozen},
        best.num_trained,
        sum(parameter.numel() for name, parameter in module.named_parameters() if name in best.state),
    )


def rung_result(name: str, boundary: str, correct: Correct, losses: Losses, seconds: float) -> RungResult:
    """A rung's figures."""
    num_correct, count = int(correct.sum()), len(correct)
    low, high = wilson(num_correct, count)
    return RungResult(name, boundary, num_correct, count, low, high, float(losses.mean()), round(seconds, 2))


def _accuracy_text(result: RungResult) -> str:
    return f"accuracy {share_text(result.correct, result.count, result.low, result.high)}"


def _rung_text(result: RungResult, before: RungResult) -> str:
    return (
        f"{result.name}: {_accuracy_text(result)}; {before.name} {100 * before.correct / before.count:.1f} %; "
        f"{result.seconds:.0f} s; {result.decision}."
    )


def _flat(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return features.reshape(len(features), -1)
