"""Search: which candidate classifies the training images best, by cross-validated probes and successive halving.

Every candidate is evaluated on a part of the training images; those that are worse than the best by more than noise are
dropped, and the others are evaluated on three times as many; only the better half of them if there is no time for all.
Then combinations of those that are equally good are tried, side by side, and variants of the best one (larger images,
other ways to fit an image into the input). Features are cached, so each image passes through a backbone once, and the
run that follows finds the features of the one that was chosen.

Source: successive halving, Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization", AISTATS 2016. Cross-validated probes, because estimates of transferability (LogME and others) rank
backbones worse than their size does (arXiv 2510.06448).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headstart.backbone.feature_spec import FeatureSpec
from headstart.backbone.pixel_net import FeatureNet, split_backbone
from headstart.backbone.side_by_side import MOST_MEMBERS
from headstart.data.pixel_cache import PixelReader, pixel_store
from headstart.data.scan import scan
from headstart.engine.interface import Pixels
from headstart.engine.measure import ENGINE_SECONDS, MEASURE_FROM, measure_engines
from headstart.engine.plan import DEFAULT_RATE
from headstart.engine.select import SAMPLE_SIZE, default_plan
from headstart.evaluation.metrics import wilson
from headstart.features.extract import FeatureStore, compute_features, feature_store, pick_sample
from headstart.progress import Progress
from headstart.selection.candidates import Candidate, combined, load_candidate, variants
from headstart.selection.results import CandidateResult, Near, Selection, Speed
from headstart.selection.time_limit import TimeLimit
from headstart.training.ladder import ALPHA, considered_layers, paired_p
from headstart.training.losses import Labels, Parts
from headstart.training.penalty import CHOOSE_FROM, CHOOSE_ON, cross_validate, num_judged
from headstart.training.probe import standardised

FIRST, FACTOR = 400, 3
"""Training images of the first round, and how many times as many each later round has."""


UNKNOWN_SPEED = Speed(0.0, 1 / DEFAULT_RATE)


@dataclass(frozen=True)
class SearchImages:
    """The training images that candidates are compared on.

    Attributes:
        keys: N content hashes.
        files: content hash -> file.
        labels: see ``training.losses``.
        parts: (N,) part of each image; no fold divides a part.
    """

    keys: Sequence[bytes]
    files: Mapping[bytes, str]
    labels: Labels
    parts: Parts


@dataclass
class _Contender:
    """A candidate in the search, with what its rounds showed.

    ``rounds`` has the losses of the images that were judged, for each number of images.
    """

    candidate: Candidate
    net: FeatureNet
    sample: Pixels
    rounds: dict[int, npt.NDArray[np.float64]] = field(default_factory=dict)
    correct: int = 0
    seconds: float = 0.0
    speed: Speed = UNKNOWN_SPEED
    decision: str = ""

    @property
    def losses(self) -> npt.NDArray[np.float64]:
        """Those of the last round."""
        return self.rounds[max(self.rounds)]

    @property
    def log_loss(self) -> float:
        """Mean over the images of the last round, in nats."""
        return float(self.losses.mean())

    def result(self) -> CandidateResult:
        """Its figures."""
        one, count = self.candidate, len(self.losses)
        low, high = wilson(self.correct, count)
        about = (one.architecture, one.image_size, one.fit, one.source, one.parameters, one.gmacs, one.license)
        return CandidateResult(
            *about, count, self.correct, low, high, self.log_loss, round(self.seconds, 1), self.decision
        )


class _TasksOnly:
    """Passes tasks on and no messages."""

    def __init__(self, progress: Progress) -> None:
        self.task = progress.task

    def say(self, text: str) -> None:
        """Nothing."""


def search(
    candidates: Sequence[Candidate],
    images: SearchImages,
    *,
    seed: int = 0,
    time_limit: TimeLimit | None = None,
    drops: bool = True,
    max_cost: float = 1.0,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress,
) -> Selection:
    """Compares candidates on training images, then variants of the best one and combinations of it with others.

    Args:
        candidates: at least one.
        images: the training images.
        seed: of the subsamples and the folds.
        time_limit: when the search has to end; None for no limit. The first candidate is evaluated in any case.
        drops: drop candidates between rounds, and try variants and combinations; otherwise the candidates alone are
            evaluated on all images.
        max_cost: of a variant for one image, in multiples of the cost of the best candidate; of a combination, in
            multiples of the cost of its first network.
        device: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder.
        progress: receives messages and the progress of each task.

    Raises:
        WeightsError, OptionError: see ``load_candidate``.
    """
    if num_judged(images.labels) < CHOOSE_FROM:
        return _first_of(candidates, progress)
    order = _nested_order(images, seed)
    sizes = _sizes(images.labels[order]) if drops else [min(len(order), CHOOSE_ON)]
    one = _Search(images, order, seed, time_limit, device, cache, progress)
    pending, out = one.rounds(candidates, sizes, drops=drops)
    _decide(pending)
    if drops:
        limit = max_cost * pending[0].candidate.gmacs
        one.measure_gain(pending)
        pending = one.improved(pending, _combinations(pending, max_cost))
        limit = max(limit, pending[0].candidate.gmacs)
        pending = one.improved(pending, [c for c in variants(pending[0].candidate) if c.gmacs <= limit])
    if one.stopped:
        pending[0].decision += f"; {one.stopped}"
    return Selection(
        tuple(found.result() for found in (*pending, *out)),
        _usable(pending),
        one.stopped,
        tuple(one.skipped),
    )


def _first_of(candidates: Sequence[Candidate], progress: Progress) -> Selection:
    """Without a comparison, the first candidate."""
    why = f"too few training images to compare backbones by cross-validation, which needs {CHOOSE_FROM}"
    progress.say(f"{candidates[0].label}: {why}.")
    return Selection((), (Near(candidates[0], UNKNOWN_SPEED),), why)


@dataclass
class _Search:
    """What a search has: images, time, and where it computes."""

    images: SearchImages
    order: list[int]
    seed: int
    limit: TimeLimit | None
    device: str
    cache: Path | None
    progress: Progress
    stopped: str = ""
    skipped: list[str] = field(default_factory=list)
    measured: _Contender | None = None

    def rounds(
        self, candidates: Sequence[Candidate], sizes: Sequence[int], *, drops: bool
    ) -> tuple[list[_Contender], list[_Contender]]:
        """Those that reached the last round, and those that were dropped; best first in each."""
        pending, out = self.first_round(candidates, sizes[0]), list[_Contender]()
        pending.sort(key=lambda one: one.log_loss)
        self.measure_gain(pending)
        for size in sizes:
            if size != sizes[0]:
                going = self.going_on(pending, size)
                if not going:
                    break
                out = [one for one in pending if one not in going] + out
                for one in going:
                    self.evaluate(one, size)
                pending = going
            pending.sort(key=lambda one: one.log_loss)
            if size != sizes[-1]:
                pending, dropped = _divided(pending)
                out = dropped + out
            self.progress.say(_round_text(size, pending, out))
            if len(pending) == 1 and drops:
                break
        return pending, out

    def going_on(self, ranked: list[_Contender], size: int) -> list[_Contender]:
        """Those for which there is time in the next round: all, the better half, or none.

        Time is kept for the largest network within noise of the best that can still be fine-tuned.
        """
        expected, kept = 0.0, self.kept_for(ranked)
        for going in (ranked, ranked[: (len(ranked) + 1) // 2]):
            expected = sum((size - len(one.losses)) * one.speed.whole for one in going)
            if self.limit is None or self.limit.allows(expected, kept, share=1.0):
                for one in ranked[len(going) :]:
                    p = paired_p(one.losses, ranked[0].losses)
                    where = f"dropped after {len(one.losses):,} images for lack of time"
                    one.decision = f"{where}: in the worse half, within noise (p = {p:.2g})"
                return going
        self.stopped = f"no time for the next round, with {size:,} images, of about {expected:.0f} s"
        return []

    def kept_for(self, ranked: Sequence[_Contender]) -> Speed:
        """Speed of the largest network within noise of the best that can still be fine-tuned."""
        near = [one.speed for one in ranked if _is_near(one, ranked[0])]
        usable = [speed for speed in near if self.limit is None or self.limit.allows(0.0, speed)]
        return max(usable, key=lambda speed: speed.forward, default=ranked[0].speed)

    def first_round(self, candidates: Sequence[Candidate], size: int) -> list[_Contender]:
        """Loads and evaluates the candidates, the first one in any case and the others if there is time."""
        found: list[_Contender] = []
        for candidate in candidates:
            if found and self.is_too_slow(candidate, found[0], size):
                continue
            found.append(self.contender(candidate))
            self.evaluate(found[-1], size)
            if self.limit is not None and len(found) == 1:
                self.measure_gain(found)
                self.limit.begin(found[0].speed)
        return found

    def measure_gain(self, ranked: Sequence[_Contender]) -> None:
        """Measures ``TimeLimit.gain`` with the largest of those within noise of the best."""
        if self.limit is None:
            return
        one = max((one for one in ranked if _is_near(one, ranked[0])), key=lambda one: one.candidate.gmacs)
        if one is self.measured:
            return
        self.measured = one
        found = measure_engines(
            one.net,
            one.sample,
            count=len(self.order),
            device=self.device,
            cache=self.cache,
            progress=_TasksOnly(self.progress),
        )
        self.limit.gain = max(1.0, found.rate * one.speed.forward)

    def is_too_slow(self, candidate: Candidate, known: _Contender, size: int, kept: Speed | None = None) -> bool:
        """Whether there is no time to evaluate a candidate, by its cost and the speed of another one; says so.

        Args:
            candidate: to evaluate.
            known: the other one.
            size: number of images.
            kept: of what is used otherwise, for which there has to be time too.
        """
        ratio = candidate.gmacs / max(known.candidate.gmacs, 1e-9)
        speed = Speed(known.speed.reading, known.speed.forward * ratio)
        expected = size * speed.whole
        limit = self.limit
        if limit is None:
            return False
        if limit.allows(expected, speed) and (kept is None or limit.allows(expected, kept, share=1.0)):
            return False
        after = limit.needed_after(speed)
        then = "fine-tune it" if limit.fine_tunes else "use it"
        self.skipped.append(f"{candidate.label} (about {expected:.0f} s, and {after:.0f} s kept to {then})")
        self.progress.say(f"Not tried for lack of time: {self.skipped[-1]}.")
        return True

    def improved(self, ranked: list[_Contender], tried: Sequence[Candidate]) -> list[_Contender]:
        """Evaluates candidates against the best one, on the same images; the chosen one first.

        A candidate is chosen instead of the best one if it is better by more than noise.
        """
        best = ranked[0]
        found = [one for candidate in tried if (one := self.compared(candidate, ranked)) is not None]
        found.sort(key=lambda one: (-max(one.rounds), one.log_loss))
        wins = bool(found) and _is_as_far(found[0], best) and paired_p(best.losses, found[0].losses) < ALPHA
        for place, one in enumerate(found):
            before = best.rounds[max(one.rounds)]
            p, verdict = paired_p(before, one.losses), "chosen" if wins and place == 0 else "not chosen"
            one.decision = f"{verdict}: log loss {one.log_loss:.3f} against {before.mean():.3f} (p = {p:.2g})"
            if not _is_as_far(one, best):
                one.decision += f" on {len(one.losses):,} images"
            self.progress.say(f"{one.candidate.label}: {one.decision}.")
            if verdict == "chosen":
                best.decision = f"not chosen: worse than {one.candidate.label} (p = {p:.2g})"
        return [found[0], *ranked, *found[1:]] if wins else [*ranked, *found]

    def compared(self, candidate: Candidate, ranked: Sequence[_Contender]) -> _Contender | None:
        """Evaluates a candidate in the best one's last two rounds; only in the first of them if it is worse there.

        Returns:
            None if there is no time for the first of the two.
        """
        best, one, kept = ranked[0], None, self.kept_for(ranked)
        for size in sorted(best.rounds)[-2:]:
            if self.is_too_slow(candidate, best, size - (0 if one is None else max(one.rounds)), kept):
                break
            one = one or self.contender(candidate)
            self.evaluate(one, size)
            if one.log_loss >= best.rounds[size].mean():
                break
        return one

    def contender(self, candidate: Candidate) -> _Contender:
        """Loads a candidate, with the features of all layers that are considered."""
        started = time.monotonic()
        backbone = load_candidate(candidate, progress=self.progress)
        net = FeatureNet(backbone, FeatureSpec(layers=considered_layers(split_backbone(backbone))))
        keys = [self.images.keys[i] for i in self.order[:SAMPLE_SIZE]]
        sample = self.preprocess(net, keys).read(keys)
        return _Contender(candidate, net, sample, seconds=time.monotonic() - started)

    def preprocess(self, net: FeatureNet, keys: Sequence[bytes]) -> PixelReader:
        """Reads the images whose pixels are not cached in the size of a network."""
        preprocessing, files = net.backbone.preprocessing, self.images.files
        if missing := pixel_store(preprocessing, self.cache).missing(keys):
            scan(
                [files[keys[i]] for i in missing], preprocessing=preprocessing, cache=self.cache, progress=self.progress
            )
        return PixelReader(preprocessing, files, cache=self.cache, progress=self.progress)

    def evaluate(self, one: _Contender, size: int) -> None:
        """Cross-validates the probe on the first images of the order; the losses are in this order."""
        started, places = time.monotonic(), self.order[:size]
        keys = [self.images.keys[i] for i in places]
        store = self.features(one, keys)
        labels, parts = self.images.labels[places], self.images.parts[places]
        found = cross_validate(
            standardised(store.read(keys))[2], labels, seed=self.seed, together=parts, progress=self.progress
        )
        assert found is not None  # because of ``num_judged`` and stratified parts of the images
        judged = np.isfinite(found.losses)
        one.rounds[size], one.correct = found.losses[judged], int(found.correct[judged].sum())
        one.seconds += time.monotonic() - started

    def features(self, one: _Contender, keys: Sequence[bytes]) -> FeatureStore:
        """Computes the features of some images, and measures how long one takes."""
        engines = default_plan(one.net, len(set(keys)), device=self.device)
        store = feature_store(one.net, engines.identity(exact=True, device=self.device), self.cache)
        unread = len(pixel_store(one.net.backbone.preprocessing, self.cache).missing(keys))
        new, started = len(store.missing(keys)), time.monotonic()
        self.preprocess(one.net, keys)
        read = time.monotonic()
        store = compute_features(  # without its messages, one for each candidate and round
            one.net,
            keys,
            sources=self.images.files,
            engines=engines,
            sample=one.sample,
            device=self.device,
            cache=self.cache,
            progress=_TasksOnly(self.progress),
        )
        elapsed = time.monotonic() - read
        reading, forward = one.speed.reading, one.speed.forward
        if unread >= MEASURE_FROM:
            reading = (read - started) / unread
        if new >= MEASURE_FROM:
            forward = max(elapsed - ENGINE_SECONDS, elapsed / 2) / new
        elif one.speed is UNKNOWN_SPEED:  # everything was cached
            found = measure_engines(
                one.net,
                one.sample,
                count=len(keys),
                device=self.device,
                cache=self.cache,
                progress=_TasksOnly(self.progress),
            )
            forward = 1 / found.rate
        one.speed = Speed(reading, forward)
        return store


def _nested_order(images: SearchImages, seed: int) -> list[int]:
    """Positions of all images; every beginning of the list is a stratified sample."""
    salted = [bytes(a ^ b for a, b in zip(key, seed.to_bytes(len(key), "little"), strict=True)) for key in images.keys]
    return pick_sample(salted, images.labels, len(salted))


def _sizes(labels: Labels) -> list[int]:
    """Numbers of images of the rounds; the last is that of all, at most ``CHOOSE_ON``.

    Args:
        labels: in the order in which images are added. Rounds with too few images of each class are left out.
    """
    most, sizes = min(len(labels), CHOOSE_ON), []
    size = FIRST
    while size * FACTOR <= most * 1.5:
        if num_judged(labels[:size]) >= size / 2:
            sizes.append(size)
        size *= FACTOR
    return [*sizes, most]


def _combinations(ranked: Sequence[_Contender], max_cost: float) -> list[Candidate]:
    """Combinations of a network with each of the next two architectures, and with both.

    The first network is the largest that is as good as the best one within noise, because that one would be fine-tuned
    alone, see ``choose_depth.by_preference``. The most expensive combination within ``max_cost`` comes first.
    """
    usable: dict[str, Candidate] = {}
    for one in ranked:
        if one.candidate.weights is None and _is_near(one, ranked[0]):
            usable.setdefault(one.candidate.architecture, one.candidate)
    if not usable:
        return []
    first = max(usable.values(), key=lambda candidate: candidate.gmacs)
    others = [candidate for candidate in usable.values() if candidate is not first][: MOST_MEMBERS - 1]
    found = [combined([first, other]) for other in others]
    if len(others) > 1:
        found.append(combined([first, *others]))
    found = [candidate for candidate in found if candidate.gmacs <= max_cost * first.gmacs]
    return sorted(found, key=lambda candidate: -candidate.gmacs)


def _usable(ranked: Sequence[_Contender]) -> tuple[Near, ...]:
    """Those within noise of the best, and those within noise of the best single network, which is fine-tuned faster."""
    best = ranked[0]
    single = next((one for one in ranked if not one.candidate.is_combination), best)
    return tuple(
        Near(one.candidate, one.speed, _is_near(one, best))
        for one in ranked
        if _is_near(one, best) or _is_near(one, single)
    )


def _is_as_far(one: _Contender, best: _Contender) -> bool:
    """Whether a candidate was evaluated on the images of the best one's last round."""
    return max(one.rounds) == max(best.rounds)


def _is_near(one: _Contender, best: _Contender) -> bool:
    """Whether a candidate is within noise of the best one; both were evaluated on the same images."""
    return one is best or (_is_as_far(one, best) and paired_p(one.losses, best.losses) >= ALPHA)


def _divided(ranked: list[_Contender]) -> tuple[list[_Contender], list[_Contender]]:
    """Those that go on and those that are worse than the best by more than noise, best first in each."""
    best, kept, dropped = ranked[0], [ranked[0]], list[_Contender]()
    for one in ranked[1:]:
        p = paired_p(one.losses, best.losses)
        if p < ALPHA:
            one.decision = (
                f"dropped after {len(one.losses):,} images: worse than {best.candidate.architecture} (p = {p:.2g})"
            )
        (dropped if p < ALPHA else kept).append(one)
    return kept, dropped


def _decide(ranked: list[_Contender]) -> None:
    """Writes the decision about those that reached the last round."""
    best = ranked[0]
    for one in ranked[1:]:
        p = paired_p(one.losses, best.losses)
        noise = "within noise of the best" if p >= ALPHA else "worse than the best"
        one.decision = f"not chosen: log loss {noise} (p = {p:.2g})"
    best.decision = f"chosen: no other was better by more than noise on {len(best.losses):,} images"


def _round_text(size: int, pending: Sequence[_Contender], out: Sequence[_Contender]) -> str:
    found = ", ".join(
        f"{one.candidate.architecture} {one.log_loss:.3f} ({1e3 * one.speed.whole:.0f} ms an image)" for one in pending
    )
    dropped = [one.candidate.architecture for one in out if len(one.losses) == size]
    text = f"Backbones on {size:,} training images, cross-validated log loss: {found}"
    return f"{text}; dropped: {', '.join(dropped)}." if dropped else f"{text}."
