"""Climbing the ladder: making activations, fine-tuning rung after rung, judging each, keeping the best."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from headstart.backbone.layers import Layout
from headstart.backbone.split import HEAD
from headstart.backbone.weights import Backbone, fingerprint
from headstart.errors import Diverged
from headstart.evaluation.metrics import wilson
from headstart.pipeline.prepare import Preparation, RungSamples
from headstart.pipeline.trained_layers import Stages
from headstart.runs.log import RunLog
from headstart.training.checkpoint import load_checkpoint, save_checkpoint
from headstart.training.finetune import (
    Progressed,
    Samples,
    State,
    Tuned,
    features_of,
    fine_tune,
    logits_of,
    trained_names,
)
from headstart.training.frozen_proof import Digests, digests_of, require_unchanged, tensors_of
from headstart.training.heads import logits_on, vectors_of
from headstart.training.ladder import (
    ALPHA,
    DEEPER_FROM,
    FOLDS,
    KNN,
    Rung,
    RungResult,
    fold_settings,
    paired_p,
    room_for_gain,
)
from headstart.training.losses import Labels, judged_places, right_of
from headstart.training.out_of_fold import OutOfFold, in_order, of_frozen_features
from headstart.trust.ood import MAX_REFERENCES_FINE_TUNED, choose_references, held_out_distances
from headstart.trust.temperature import calibrated_losses

CHECKPOINTS = "checkpoints"
SAVE_AT_MOST = 0.05
"""Share of the time that checkpoints may take."""

NEIGHBOURS = 10
"""Of the reference classifier."""

SAVE_EVERY = 5.0
"""Seconds between two checkpoints, at least."""

Right = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Climbed:
    """The best rung.

    Attributes:
        backbone: with the weights of the best rung.
        head: of it.
        results: of every rung, the reference kNN first.
        best: the name of the one that was kept.
        frozen: of every tensor that the best rung did not train, as it was in the trained module after the last step.
        pretrained: of every tensor before anything was trained.
        trained: number of the backbone's weights that it trained.
        outside: out-of-fold predictions of the best rung; None where val decided, or where nothing was trained.
    """

    backbone: Backbone
    head: nn.Module
    results: tuple[RungResult, ...]
    best: str
    frozen: Digests
    pretrained: Digests
    trained: int
    outside: OutOfFold | None


@final
class Climb:
    """One climb.

    Args:
        prepared: all that comes before; its backbone is not touched, a copy of it is trained.
        folder: of the run.
        stages: tells what each rung trains.
        insist: try every rung and keep the last, whatever those below gave, as where its depth was named.
        log: of the run.
    """

    def __init__(
        self, prepared: Preparation, *, folder: Path, stages: Stages, insist: bool = False, log: RunLog
    ) -> None:
        assert prepared.frozen is not None
        self.backbone, self.rungs, self.recipe = prepared.backbone, prepared.rungs, prepared.recipe
        self.split = prepared.frozen.copied()
        self.train, self.val, self.fitted = prepared.train, prepared.val, prepared.fitted
        self.samples = RungSamples(prepared)
        self.mistakes = prepared.mistakes
        self.few, self.dtype, self.device = self.samples.few, self.samples.dtype, self.samples.device
        self.log, self.progress, self.stages = log, prepared.progress, stages
        self.timetable = prepared.timetable
        self.folder = folder / CHECKPOINTS
        self.insist = insist or prepared.recipe.is_named_depth
        self.pretrained = {name: tensor.clone() for name, tensor in self.split.module.state_dict().items()}
        self.digests = digests_of(tensors_of(self.split.module))
        self.folds = prepared.folds(FOLDS) if self.few else []
        self.fold_ends: dict[int, State] = {}  # what the last rung gave in each fold, where the next goes on from it

    def run(self, probe_seconds: float) -> Climbed:
        """Tries the rungs.

        Args:
            probe_seconds: that the probe took.
        """
        outside = None
        if self.few:
            outside = of_frozen_features(self.fitted, self.train.features, self.folds, progress=self.progress)
        val_logits = None if self.val is None else logits_on(self.fitted.head, self.val.features)
        right, losses = self._judged(val_logits, outside)
        results = [self._neighbours(), judged(self.fitted.name, HEAD, right, losses, probe_seconds)]
        for result in results:
            self.progress.say(f"{result.name}: {result.correct} of {result.count} right.")
            self.log.event("rung", **asdict(result))
        probe = best = results[-1]
        best_right, best_losses = right, losses
        best_outside: OutOfFold | None = None  # of the probe, more folds are affordable: see Preparation.finish
        best_head, best_state, best_boundary = self.fitted.head, dict[str, Tensor](), ""
        best_frozen = self.digests
        head = self.fitted.head
        for number, rung in enumerate(self.rungs, start=1):
            if not self.insist and not room_for_gain(best_right):
                wrong = int((~best_right).sum())
                text = f"not climbed further: mending all {wrong} mistakes that are left would not be more than noise"
                results[-1] = replace(results[-1], decision=text)
                self.progress.say(f"{results[-1].name}: {text}.")
                break
            if not self.recipe.gradual_unfreezing:
                self.split.module.load_state_dict(self.pretrained)
                head = self.fitted.head
            try:
                tuned, now, losses, outside, seconds = self._rung(number, rung, head)
            except Diverged as error:
                if self.insist:
                    raise
                self.progress.say(f"Warning: {rung.name} is not kept. {error}")
                break
            p = paired_p(best_losses, losses)
            result = judged(rung.name, rung.boundary.name, now, losses, seconds)
            gained, last = p < ALPHA, number == len(self.rungs)
            kept = self.insist or (result.correct, -result.log_loss) > (best.correct, -best.log_loss)
            decision = "kept; " if kept else "not kept; "
            if self.insist:
                decision = f"kept as asked; the {probe.name} gave {probe.correct:,} of {probe.count:,}; "
            decision += "the gain is more than noise" if gained else "no gain beyond noise"
            little = not self.insist and probe.log_loss < DEEPER_FROM
            if not last and gained and little:
                decision += (
                    f"; stopping: the probe left {probe.log_loss:.3f} nats, and below {DEEPER_FROM} it ends here"
                )
            else:
                decision += "" if last else "; climbing on" if gained else "; stopping"
            why = f"log loss {best.log_loss:.3f} to {result.log_loss:.3f}, p = {p:.2g}"
            result = replace(result, epochs=len(tuned.history), p=p, decision=f"{decision} ({why})")
            results.append(result)
            self._say(result, best)
            self.log.event("rung", **asdict(result))
            head = tuned.head
            if kept:
                best, best_right, best_losses, best_outside = result, now, losses, outside
                best_head, best_boundary = head, rung.boundary.name
                own = self._changed(rung)
                best_state = {name: self.split.module.state_dict()[name].clone() for name in own}
                best_frozen = tuned.frozen
            if (not gained and not self.insist) or little:
                break
        return self._finished(results, best, best_head, best_state, best_boundary, best_frozen, best_outside)

    def compared_on(self) -> Labels:
        """Labels of what rungs are compared on: val; where it is small, the training images that folds judge too."""
        parts = [self.val.labels] if self.val is not None else []
        return np.concatenate([*parts, self.train.labels[judged_places(self.folds)]]) if self.few else parts[0]

    def _judged(
        self, val_logits: npt.NDArray[np.float64] | None, outside: OutOfFold | None
    ) -> tuple[Right, npt.NDArray[np.float64]]:
        """(whether each image of ``compared_on`` is right, its loss), by logits of these images."""
        parts = [] if val_logits is None else [val_logits]
        logits = np.concatenate([*parts, outside.logits] if outside is not None else parts)
        labels = self.compared_on()
        return right_of(logits, labels), calibrated_losses(logits, labels)

    def _neighbours(self) -> RungResult:
        """A reference that learns nothing: the nearest training images, by the cosine of their features."""
        started = time.monotonic()
        neighbours = min(NEIGHBOURS, len(self.train.labels) - 1)
        found = KNeighborsClassifier(neighbours, metric="cosine", weights="distance")
        parts = []
        if self.val is not None:
            found.fit(_flat(self.train.features), self.train.labels)
            parts.append(found.predict(_flat(self.val.features)))
        if self.few:
            answers = []
            for learn, judge in self.folds:
                fewer = found.set_params(n_neighbors=min(neighbours, len(learn)))
                known = fewer.fit(_flat(self.train.features[learn]), self.train.labels[learn])
                answers.append(known.predict(_flat(self.train.features[judge])))
            parts.append(in_order(self.folds, answers))
        labels = self.compared_on()
        right = (np.concatenate(parts).reshape(labels.shape) == labels).reshape(len(labels), -1).all(axis=1)
        result = judged(KNN, HEAD, right, np.zeros(len(right)), time.monotonic() - started)
        return replace(result, decision="a reference, never kept")

    def _rung(
        self, number: int, rung: Rung, head: nn.Module
    ) -> tuple[Tuned, Right, npt.NDArray[np.float64], OutOfFold | None, float]:
        """(outcome, whether each compared image is right, its loss, out-of-fold predictions, seconds)."""
        boundary = rung.boundary.name
        file = self.folder / f"rung-{number}.safetensors"
        done = load_checkpoint(file)
        if done is not None:
            return self._finished_before(rung, *done)
        started = time.monotonic()
        self.timetable.begin(rung.name)
        train, val = self.samples.of(rung)
        self._begin(rung)
        below = {name: tensor.clone() for name, tensor in self.split.module.state_dict().items()}
        outside = self._cross_validated(rung, train) if self.few else None
        self.split.module.load_state_dict(below)
        begun = self._started(number)
        tuned = fine_tune(
            self.split,
            boundary,
            head,
            train,
            val,
            rung.settings,
            val_chooses=not self.few,
            dtype=self.dtype,
            device=self.device,
            start=begun,
            checkpoint=self._saver(number, rung, len(begun.history) if begun else 0),
            progress=self.progress,
        )
        val_logits = None
        if val is not None:
            val_logits = logits_of(self.split, boundary, val, tuned.head, device=self.device, progress=self.progress)
            self.log.event("mistakes", stage=rung.name, **self.mistakes(val_logits))
        right, losses = self._judged(val_logits, outside)
        seconds = time.monotonic() - started
        tensors = self._state_of(rung, tuned.head)
        if self.recipe.gradual_unfreezing and number < len(self.rungs):
            folds = self.fold_ends.items()
            tensors |= {f"fold{place}.{name}": tensor for place, ends in folds for name, tensor in ends.items()}
        tensors |= {"right": torch.from_numpy(right), "losses": torch.from_numpy(losses)}
        if outside is not None:
            assert outside.distances is not None
            tensors["outside.logits"] = torch.from_numpy(outside.logits)
            tensors["outside.distances"] = torch.from_numpy(outside.distances)
        self._require_frozen(rung, tuned)
        document = {"history": tuned.history, "best": tuned.best, "seconds": seconds, "log": self.log.size}
        document["frozen"] = tuned.frozen
        save_checkpoint(file, document, tensors)
        (self.folder / "current.safetensors").unlink(missing_ok=True)
        return tuned, right, losses, outside, seconds

    def _begin(self, rung: Rung) -> None:
        """Says what is trained from here on."""
        trained = self._changed(rung)
        made = self.samples.describe(rung)
        self.stages.tell(rung.name, trained, self.fitted.head, self.log, self.progress, **made)

    def _changed(self, rung: Rung) -> list[str]:
        return trained_names(self.split, rung.boundary.name, live_norms=rung.settings.live_norms)

    def _require_frozen(self, rung: Rung, tuned: Tuned) -> None:
        """Checks the trained module's frozen tensors against the pretrained ones.

        Raises:
            TrainingError: one changed.
        """
        expected = {name: own for name, own in self.digests.items() if name not in set(self._changed(rung))}
        found = {name: own for name, own in tuned.frozen.items() if name in self.digests}
        require_unchanged(expected, found, where=rung.name)

    def _finished_before(
        self, rung: Rung, document: dict[str, Any], tensors: State
    ) -> tuple[Tuned, Right, npt.NDArray[np.float64], OutOfFold | None, float]:
        head = self._restored(tensors)
        for place in range(len(self.folds)):
            start = f"fold{place}."
            if kept := {n.removeprefix(start): tensor for n, tensor in tensors.items() if n.startswith(start)}:
                self.fold_ends[place] = kept
        tuned = Tuned(head, document["history"], document["best"], document["frozen"])
        self._require_frozen(rung, tuned)
        outside = None
        if self.few:
            logits, distances = tensors["outside.logits"].numpy(), tensors["outside.distances"].numpy()
            outside = OutOfFold(judged_places(self.folds), logits, len(self.folds), distances)
        return tuned, tensors["right"].numpy(), tensors["losses"].numpy(), outside, document["seconds"]

    def _started(self, number: int) -> Progressed | None:
        found = load_checkpoint(self.folder / "current.safetensors")
        if found is None or found[0]["rung"] != number:
            return None
        document, tensors = found
        progressed = document["progressed"]
        return Progressed(
            progressed["step"], progressed["history"], progressed["best"], tuple(progressed["sums"]), tensors
        )

    def _saver(self, number: int, rung: Rung, told: int) -> Callable[[Progressed, Callable[[], State]], None]:
        saved, cost = time.monotonic(), 0.0
        count = 0 if self.val is None else len(self.val.labels)

        def save(done: Progressed, snapshot: Callable[[], State]) -> None:
            nonlocal saved, cost, told
            self.log.tell("step", stage=rung.name, **done.last)
            for entry in done.history[told:]:
                self.log.epoch(rung.name, entry, count)
            ended, told = len(done.history) > told, len(done.history)
            now = time.monotonic()
            if now - saved < max(SAVE_EVERY, cost / SAVE_AT_MOST) and not (ended and now - saved > cost / SAVE_AT_MOST):
                return
            tensors = snapshot()
            document = {"rung": number, "progressed": done.as_json(), "log": self.log.size}
            file = self.folder / "current.safetensors"
            save_checkpoint(file, document, tensors)
            self.log.event("checkpoint", stage=rung.name, step=done.step, file=str(file))
            saved = time.monotonic()
            cost = saved - now

        return save

    def _cross_validated(self, rung: Rung, train: Samples) -> OutOfFold:
        """Of each training image that folds judge, what a network says that was fine-tuned without it."""
        plain, layout = self.samples.plain(rung), Layout.of(self.split.module)
        logits, distances = [], []
        for place, (learn, judge) in enumerate(self.folds):
            tuned = fine_tune(
                self.split,
                rung.boundary.name,
                self._begin_fold(place, learn),
                train.some(learn),
                None,
                fold_settings(rung.settings),
                dtype=self.dtype,
                device=self.device,
                progress=self.progress,
            )
            if self.recipe.gradual_unfreezing:
                self.fold_ends[place] = self._state_of(rung, tuned.head)
            features = features_of(self.split, rung.boundary.name, plain, device=self.device, progress=self.progress)
            logits.append(logits_on(tuned.head, features[judge]))
            vectors = vectors_of(features, layout)
            length = vectors.shape[1]
            kept = choose_references([train.keys[i] for i in learn], length, MAX_REFERENCES_FINE_TUNED)
            references = len(choose_references(train.keys, length, MAX_REFERENCES_FINE_TUNED))
            distances.append(held_out_distances(vectors[learn[kept]], vectors[judge], references=references))
        return OutOfFold(
            judged_places(self.folds),
            in_order(self.folds, logits),
            len(self.folds),
            in_order(self.folds, distances),
        )

    def _begin_fold(self, place: int, learn: npt.NDArray[np.int64]) -> nn.Module:
        """The head that a fold begins with; the network's weights are set: pretrained, or those of the rung below."""
        self.split.module.load_state_dict(self.pretrained)
        if not self.recipe.gradual_unfreezing or place not in self.fold_ends:
            return self.fitted.refit(learn)
        return self._restored(self.fold_ends[place])

    def _state_of(self, rung: Rung, head: nn.Module) -> State:
        """What a rung trained, by names that ``_restored`` understands."""
        state = self.split.module.state_dict()
        tensors = {f"backbone.{name}": state[name].clone() for name in self._changed(rung)}
        return tensors | {f"head.{name}": tensor.clone() for name, tensor in head.state_dict().items()}

    def _restored(self, tensors: State) -> nn.Module:
        """Sets the network's weights to those of ``_state_of``, and gives the head."""
        own = {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}
        self.split.module.load_state_dict(own, strict=False)
        head = copy.deepcopy(self.fitted.head)
        head.load_state_dict({n.removeprefix("head."): t for n, t in tensors.items() if n.startswith("head.")})
        return head

    def _say(self, result: RungResult, best: RungResult) -> None:
        self.progress.say(
            f"{result.name}: {result.correct} of {result.count} right, {100 * result.correct / result.count:.1f} % "
            f"({best.name}: {100 * best.correct / best.count:.1f} %), {result.seconds:.0f} s; {result.decision}."
        )

    def _finished(
        self,
        results: list[RungResult],
        best: RungResult,
        head: nn.Module,
        state: dict[str, Tensor],
        boundary: str,
        frozen: Digests,
        outside: OutOfFold | None,
    ) -> Climbed:
        module = self.split.module
        module.load_state_dict(self.pretrained)
        module.load_state_dict(state, strict=False)
        module.eval().requires_grad_(False)
        kept = digests_of(tensors_of(module), without=state)
        require_unchanged({name: own for name, own in self.digests.items() if name not in state}, kept, where=best.name)
        backbone = self.backbone
        if state:
            backbone = replace(
                self.backbone,
                module=module,
                fingerprint=fingerprint(module.state_dict()),
                source=f"{self.backbone.source}, fine-tuned behind {boundary}",
            )
        return Climbed(
            backbone=backbone,
            head=head,
            results=tuple(results),
            best=best.name,
            frozen={name: own for name, own in frozen.items() if name in kept},
            pretrained={name: own for name, own in self.digests.items() if name in kept},
            trained=sum(t.numel() for t in state.values()),
            outside=outside,
        )


def _flat(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return features.reshape(len(features), -1)


def judged(name: str, boundary: str, right: Right, losses: npt.NDArray[np.float64], seconds: float) -> RungResult:
    """A rung's figures."""
    correct, count = int(right.sum()), len(right)
    low, high = wilson(correct, count)
    return RungResult(name, boundary, correct, count, low, high, float(losses.mean()), round(seconds, 2))
