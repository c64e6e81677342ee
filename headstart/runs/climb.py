"""Climbing the ladder: making activations, fine-tuning rung after rung, judging each, keeping the best."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, fx, nn

from headstart.backbone.engine import SAMPLE, Engine, EnginePlan, choose_engine
from headstart.backbone.fold import fold_for_training
from headstart.backbone.forward import ActivationNet, TappedNet
from headstart.backbone.split import HEAD, INPUT, Boundary, SplittableBackbone
from headstart.backbone.weights import Backbone, fingerprint
from headstart.data.augment import Augmentation
from headstart.data.scan import pixel_store
from headstart.evaluation.metrics import wilson
from headstart.features.activations import Activations, Pictures, Views, activation_store
from headstart.features.extract import Tap
from headstart.progress import Progress
from headstart.runs.log import RunLog
from headstart.runs.stages import Stages
from headstart.training.checkpoint import load_checkpoint, save_checkpoint
from headstart.training.classifiers import Fitted
from headstart.training.finetune import Progressed, Samples, State, Tuned, fine_tune, logits_of, trained_names
from headstart.training.heads import logits_on
from headstart.training.ladder import (
    ALPHA,
    CROSS_VALIDATE_BELOW,
    FOLDS,
    Rung,
    RungResult,
    paired_p,
    room_for_gain,
)
from headstart.training.recipe import Recipe
from headstart.training.temperature import losses_of

CHECKPOINTS = "checkpoints"
SAVE_AT_MOST = 0.05
"""Share of the time that checkpoints may take."""

NEIGHBOURS = 10
"""Of the reference classifier."""

SAVE_EVERY = 5.0
"""Seconds between two checkpoints, at least."""

Right = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Labelled:
    """Images with labels, and the features that the probe saw of them.

    Attributes:
        pictures: the images.
        labels: (N,) int64.
        features: (N, D) float32.
    """

    pictures: Pictures
    labels: Labels
    features: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Climbed:
    """The best rung.

    Attributes:
        backbone: with the weights of the best rung.
        head: of it.
        results: of every rung, the reference kNN first.
        best: the name of the one that was kept.
        frozen: fingerprints of all that the best rung did not train, "before" and "after".
        trained: number of the backbone's weights that it trained.
    """

    backbone: Backbone
    head: nn.Module
    results: tuple[RungResult, ...]
    best: str
    frozen: dict[str, str]
    trained: int


@final
class Climb:
    """One climb.

    Args:
        backbone: pretrained; not touched.
        frozen: the same, cut; a copy of it is trained.
        rungs: to try, shallowest first.
        train: what to learn from.
        val: what to judge by; None where there are no such images.
        fitted: the classifier on frozen features, that every rung begins from.
        recipe: every choice.
        engines: what was measured.
        folder: of the run.
        stages: tells what each trains.
        insist: try every rung and keep the last, whatever those below gave.
        log: of the run.
        cache: the cache folder.
        progress: told of each step.
    """

    def __init__(
        self,
        backbone: Backbone,
        frozen: SplittableBackbone,
        rungs: Sequence[Rung],
        train: Labelled,
        val: Labelled | None,
        fitted: Fitted,
        recipe: Recipe,
        *,
        engines: EnginePlan,
        folder: Path,
        stages: Stages,
        insist: bool = False,
        log: RunLog,
        cache: Path | None,
        progress: Progress,
    ) -> None:
        self.backbone, self.frozen, self.rungs = backbone, frozen, list(rungs)
        self.split = frozen.copied()
        self.train, self.val, self.recipe = train, val, recipe
        self.fitted = fitted
        self.engines, self.cache, self.log, self.progress = engines.in_torch(), cache, log, progress
        self.folder = folder / CHECKPOINTS
        self.stages = stages
        self.insist = insist
        self.pretrained = {name: tensor.clone() for name, tensor in self.split.module.state_dict().items()}
        self.classes = logits_on(fitted.head, train.features[:1]).shape[1]
        self.few = val is None or len(val.labels) < CROSS_VALIDATE_BELOW
        self.dtype = self.engines.training_dtype
        self._made: dict[tuple[str, str], Activations] = {}

    def run(self, probe_seconds: float) -> Climbed:
        """Tries the rungs.

        Args:
            probe_seconds: that the probe took.
        """
        right, losses = self._judged(self.probe_logits())
        results = [self._neighbours(), judged(self.fitted.name, HEAD, right, losses, probe_seconds)]
        for result in results:
            self.progress.say(f"{result.name}: {result.correct} of {result.count} right.")
            self.log.event("rung", **asdict(result))
        best, best_right, best_losses = results[-1], right, losses
        best_head, best_state, best_boundary = self.fitted.head, dict[str, Tensor](), ""
        head = self.fitted.head
        for number, rung in enumerate(self.rungs, start=1):
            if not self.insist and not room_for_gain(best_right):
                wrong = int((~best_right).sum())
                text = f"not climbed further: mending all {wrong} mistakes that are left would not be more than noise"
                results[-1] = replace(results[-1], decision=text)
                self.progress.say(f"{results[-1].name}: {text}.")
                break
            if not self.recipe.gradual:
                self.split.module.load_state_dict(self.pretrained)
                head = self.fitted.head
            tuned, now, losses, seconds = self._rung(number, rung, head)
            p = paired_p(best_losses, losses)
            result = judged(rung.name, rung.boundary.name, now, losses, seconds)
            gained, last = p < ALPHA, number == len(self.rungs)
            kept = self.insist or (result.correct, -result.log_loss) > (best.correct, -best.log_loss)
            decision = "kept; " if kept else "not kept; "
            decision += "the gain is more than noise" if gained else "no gain beyond noise"
            decision += "" if last else "; climbing on" if gained else "; stopping"
            why = f"log loss {best.log_loss:.3f} to {result.log_loss:.3f}, p = {p:.2g}"
            result = replace(result, epochs=len(tuned.history), p=p, decision=f"{decision} ({why})")
            results.append(result)
            self._say(result, best)
            self.log.event("rung", **asdict(result))
            head = tuned.head
            if kept:
                best, best_right, best_losses = result, now, losses
                best_head, best_boundary = head, rung.boundary.name
                own = self._changed(rung)
                best_state = {name: self.split.module.state_dict()[name].clone() for name in own}
            if not gained and not self.insist:
                break
        return self._finished(results, best, best_head, best_state, best_boundary)

    def compared_on(self) -> Labels:
        """Labels of what rungs are compared on: val; with few of them, the training images too."""
        parts = [self.val.labels] if self.val is not None else []
        return np.concatenate([*parts, self.train.labels]) if self.few else parts[0]

    def _judged(self, logits: npt.NDArray[np.floating[Any]]) -> tuple[Right, npt.NDArray[np.float64]]:
        """(whether each image of ``compared_on`` is right, its loss)."""
        labels = self.compared_on()
        return logits.argmax(axis=1) == labels, losses_of(logits, labels)

    def probe_logits(self) -> npt.NDArray[np.float64]:
        """The probe's, for ``compared_on``; of training images from folds that left them out."""
        parts = [logits_on(self.fitted.head, self.val.features)] if self.val is not None else []
        if self.few:
            out = np.empty((len(self.train.labels), self.classes))
            for learn, judge in self._folds():
                out[judge] = logits_on(self.fitted.refit(learn), self.train.features[judge])
            parts.append(out)
        return np.concatenate(parts)

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
            out = np.empty_like(self.train.labels)
            for learn, judge in self._folds():
                fewer = found.set_params(n_neighbors=min(neighbours, len(learn)))
                known = fewer.fit(_flat(self.train.features[learn]), self.train.labels[learn])
                out[judge] = known.predict(_flat(self.train.features[judge]))
            parts.append(out)
        right = np.concatenate(parts) == self.compared_on()
        result = judged("kNN", HEAD, right, np.zeros(len(right)), time.monotonic() - started)
        return replace(result, decision="a reference, never kept")

    def _folds(self) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        labels = self.train.labels
        smallest = int(np.bincount(labels)[np.unique(labels)].min())
        folds = StratifiedKFold(max(2, min(FOLDS, smallest)), shuffle=True, random_state=self.recipe.seed)
        return list(folds.split(labels, labels))

    def _rung(self, number: int, rung: Rung, head: nn.Module) -> tuple[Tuned, Right, npt.NDArray[np.float64], float]:
        """(outcome, whether each compared image is right, its loss, seconds)."""
        boundary = rung.boundary.name
        file = self.folder / f"rung-{number}.safetensors"
        done = load_checkpoint(file)
        if done is not None:
            return self._finished_before(*done)
        started = time.monotonic()
        train, val = self._samples(rung)
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
            None if self.few else val,
            rung.settings,
            dtype=self.dtype,
            start=begun,
            checkpoint=self._saver(number, rung, len(begun.history) if begun else 0),
            progress=self.progress,
        )
        parts = []
        if val is not None:
            parts.append(logits_of(self.split, boundary, val, tuned.head))
        if outside is not None:
            parts.append(outside)
        right, losses = self._judged(np.concatenate(parts))
        seconds = time.monotonic() - started
        own = self._changed(rung)
        state = self.split.module.state_dict()
        tensors = {f"backbone.{name}": state[name] for name in own}
        tensors |= {f"head.{name}": tensor for name, tensor in tuned.head.state_dict().items()}
        tensors |= {"right": torch.from_numpy(right), "losses": torch.from_numpy(losses)}
        document = {"history": tuned.history, "best": tuned.best, "seconds": seconds, "log": self.log.size}
        save_checkpoint(file, document, tensors)
        (self.folder / "current.safetensors").unlink(missing_ok=True)
        return tuned, right, losses, seconds

    def _begin(self, rung: Rung) -> None:
        """Says what is trained from here on."""
        trained = self._changed(rung)
        made = self._made[rung.boundary.name, "train"].describe()
        self.stages.tell(rung.name, trained, self.fitted.head, self.log, self.progress, **made)

    def _changed(self, rung: Rung) -> list[str]:
        return trained_names(self.split, rung.boundary.name, live_norms=rung.settings.live_norms)

    def _finished_before(
        self, document: dict[str, Any], tensors: State
    ) -> tuple[Tuned, Right, npt.NDArray[np.float64], float]:
        own = {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}
        self.split.module.load_state_dict(own, strict=False)
        head = copy.deepcopy(self.fitted.head)
        head.load_state_dict({n.removeprefix("head."): t for n, t in tensors.items() if n.startswith("head.")})
        tuned = Tuned(head, document["history"], document["best"])
        return tuned, tensors["right"].numpy(), tensors["losses"].numpy(), document["seconds"]

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
            document = {"rung": number, "progressed": done.as_json(), "log": self.log.size}
            file = self.folder / "current.safetensors"
            save_checkpoint(file, document, snapshot())
            self.log.event("checkpoint", stage=rung.name, step=done.step, file=str(file))
            saved = time.monotonic()
            cost = saved - now

        return save

    def _samples(self, rung: Rung) -> tuple[Samples, Samples | None]:
        train = self._activations(rung, "train", rung.views)
        train.prepare(self.progress)
        own = Samples(train, self.train.labels, self.train.pictures.keys, rung.views)
        if self.val is None:
            return own, None
        val = self._activations(rung, "val", 0)
        val.prepare(self.progress)
        return own, Samples(val, self.val.labels, self.val.pictures.keys, 0)

    def _activations(self, rung: Rung, what: str, views: int) -> Activations:
        """Those of the deepest rung come from pixels, those of the others from them."""
        boundary = rung.boundary.name
        if (boundary, what) in self._made:
            return self._made[boundary, what]
        deepest = self.rungs[-1]
        pictures = self.val.pictures if what == "val" and self.val is not None else self.train.pictures
        shown = Views(views, self.recipe.seed, Augmentation(flip=self.recipe.flip)) if views else None
        net = ActivationNet(self.backbone, boundary, self.frozen.prefix(boundary))
        if rung is deepest:
            engine = self._engine(net, pictures, exact=what != "train")
            made = Activations(net, pictures, shape=rung.boundary.shape, engine=engine, views=shown, cache=self.cache)
        else:
            earlier = self._activations(deepest, what, views)
            earlier.prepare(self.progress)
            part = self.frozen.segment(deepest.boundary.name, boundary)
            assert isinstance(part, fx.GraphModule)
            passes = rung.settings.epochs * (1 + FOLDS if self.few else 1) if what == "train" else 2
            made = Activations(
                net,
                pictures,
                shape=rung.boundary.shape,
                engine=earlier.engine,
                views=shown,
                keep=passes > max(1, views),
                cache=self.cache,
                source=(earlier, fold_for_training(part, torch.float32 if what != "train" else self.dtype)),
            )
            if not made.keep:
                made.reason = "made anew each time: each row is needed once"
        self._made[boundary, what] = made
        return made

    def _engine(self, net: ActivationNet, pictures: Pictures, *, exact: bool) -> Engine:
        pixels = pixel_store(self.backbone.preprocessing, self.cache).read(list(pictures.keys[:SAMPLE]))
        engines = self.engines
        if net.boundary == INPUT:
            engines = replace(engines, exact="torch", fast="torch")
        return choose_engine(
            net, count=10**6, sample=pixels, plan=engines, exact=exact, cache=self.cache, progress=self.progress
        )

    def _cross_validated(self, rung: Rung, train: Samples) -> npt.NDArray[np.float64]:
        """Logits of each training image from a network that was fine-tuned without it."""
        plain = self._activations(rung, "plain", 0)
        plain.prepare(self.progress)
        out = np.empty((len(train.labels), self.classes))
        for learn, judge in self._folds():
            self.split.module.load_state_dict(self.pretrained)
            tuned = fine_tune(
                self.split,
                rung.boundary.name,
                self.fitted.refit(learn),
                train.some(learn),
                None,
                rung.settings,
                dtype=self.dtype,
                progress=self.progress,
            )
            seen = Samples(plain, train.labels, train.keys, 0).some(judge)
            out[judge] = logits_of(self.split, rung.boundary.name, seen, tuned.head)
        return out

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
    ) -> Climbed:
        module = self.split.module
        module.load_state_dict(self.pretrained)
        frozen = {name: t for name, t in module.state_dict().items() if name not in state}
        before = fingerprint({name: t for name, t in self.pretrained.items() if name not in state})
        module.load_state_dict(state, strict=False)
        module.eval().requires_grad_(False)
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
            frozen={"before": before, "after": fingerprint(frozen)},
            trained=sum(t.numel() for t in state.values()),
        )


def _flat(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return features.reshape(len(features), -1)


def tap_at(
    boundary: Boundary, frozen: SplittableBackbone, backbone: Backbone, *, precision: str, cache: Path | None
) -> Tap | None:
    """What keeps the images' activations at a boundary while their features are computed; None at the input."""
    if boundary.name == INPUT:
        return None
    net = ActivationNet(backbone, boundary.name, frozen.prefix(boundary.name))
    store = activation_store(net, boundary.shape, precision=precision, cache=cache)
    return Tap(TappedNet(backbone, boundary.name, frozen.tapped(boundary.name)), store)


def judged(name: str, boundary: str, right: Right, losses: npt.NDArray[np.float64], seconds: float) -> RungResult:
    """A rung's figures."""
    correct, count = int(right.sum()), len(right)
    low, high = wilson(correct, count)
    return RungResult(name, boundary, correct, count, low, high, float(losses.mean()), round(seconds, 2))
