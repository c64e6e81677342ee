"""Search: which candidate classifies the training images best, by cross-validated probes and successive halving.

Every candidate is evaluated on a part of the training images; those that are worse than the best by more than noise are
dropped, as is the worse half, and the others are evaluated on three times as many. Features are cached, so each image
passes through a backbone once, and the run that follows finds the features of the one that was chosen.

Source: successive halving, Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization", AISTATS 2016. Cross-validated probes, because estimates of transferability (LogME and others) rank
backbones worse than their size does (arXiv 2510.06448).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headstart.backbone.feature_spec import FeatureSpec
from headstart.backbone.pixel_net import FeatureNet, split_backbone
from headstart.data.pixel_cache import PixelReader, pixel_store
from headstart.data.scan import scan
from headstart.engine.interface import Pixels
from headstart.engine.measure import measure_engines
from headstart.engine.plan import EnginePlan
from headstart.evaluation.metrics import wilson
from headstart.features.extract import compute_features, pick_sample
from headstart.progress import Progress
from headstart.selection.candidates import Candidate, load_candidate
from headstart.selection.results import CandidateResult, Selection
from headstart.training.ladder import ALPHA, considered_layers, paired_p
from headstart.training.losses import Labels, Parts
from headstart.training.penalty import CHOOSE_ON, cross_validate
from headstart.training.probe import standardised

FIRST, FACTOR = 400, 3
"""Training images of the first round, and how many times as many each later round has."""


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
    """A candidate in the search, with what its last round showed."""

    candidate: Candidate
    net: FeatureNet
    engines: EnginePlan
    sample: Pixels
    losses: npt.NDArray[np.float64]
    correct: int = 0
    seconds: float = 0.0
    decision: str = ""

    @property
    def log_loss(self) -> float:
        """Mean over the images of the last round, in nats."""
        return float(self.losses.mean())

    def result(self) -> CandidateResult:
        """Its figures."""
        one, count = self.candidate, len(self.losses)
        low, high = wilson(self.correct, count)
        about = (one.architecture, one.image_size, one.parameters, one.gmacs, one.license)
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
    seconds: float | None = None,
    drops: bool = True,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress,
) -> Selection:
    """Compares candidates on training images and chooses one.

    Args:
        candidates: at least one; with one, nothing is compared.
        images: the training images.
        seed: of the subsamples and the folds.
        seconds: time that the search may take, approximately; None for no limit. The first round is always finished.
        drops: drop candidates between rounds; otherwise all are evaluated on all images.
        device: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder.
        progress: receives messages and the progress of each task.

    Raises:
        WeightsError, OptionError: see ``load_candidate``.
    """
    began, order = time.monotonic(), _nested_order(images, seed)
    pending = [_contender(one, images, device=device, cache=cache, progress=progress) for one in candidates]
    out: list[_Contender] = []
    sizes = _sizes(len(order)) if drops else [min(len(order), CHOOSE_ON)]
    stopped = ""
    for number, size in enumerate(sizes):
        expected = sum(_seconds_for(one, size) for one in pending)
        if number and seconds is not None and time.monotonic() - began + expected > seconds:
            stopped = (
                f"the next round, with {size:,} images, would take about {expected:.0f} s more than the time allows"
            )
            break
        for one in pending:
            _evaluate(one, images, order[:size], seed=seed, device=device, cache=cache, progress=progress)
        pending.sort(key=lambda one: one.log_loss)
        if size != sizes[-1]:
            kept, dropped = _halved(pending)
            out, pending = dropped + out, kept
        progress.say(_round_text(size, pending, out))
        if len(pending) == 1 and drops:
            break
    _decide(pending, stopped)
    chosen = next(place for place, one in enumerate(candidates) if one is pending[0].candidate)
    return Selection(chosen, tuple(one.result() for one in (*pending, *out)), stopped)


def _nested_order(images: SearchImages, seed: int) -> list[int]:
    """Positions of all images; every beginning of the list is a stratified sample."""
    salted = [bytes(a ^ b for a, b in zip(key, seed.to_bytes(len(key), "little"), strict=True)) for key in images.keys]
    return pick_sample(salted, images.labels, len(salted))


def _sizes(count: int) -> list[int]:
    """Numbers of images of the rounds; the last is that of all, at most ``CHOOSE_ON``."""
    most, sizes = min(count, CHOOSE_ON), []
    size = FIRST
    while size * FACTOR <= most * 1.5:
        sizes.append(size)
        size *= FACTOR
    return [*sizes, most]


def _contender(
    candidate: Candidate, images: SearchImages, *, device: str, cache: Path | None, progress: Progress
) -> _Contender:
    """Loads a candidate and measures its speed."""
    started = time.monotonic()
    backbone = load_candidate(candidate, progress=progress)
    plain = split_backbone(backbone)
    net = FeatureNet(backbone, FeatureSpec(layers=considered_layers(plain)))
    keys = [images.keys[i] for i in pick_sample(images.keys, images.labels)]
    sample = _preprocess(net, keys, images, cache, progress).read(keys)
    engines = measure_engines(net, sample, count=len(images.keys), device=device, cache=cache, progress=progress)
    return _Contender(candidate, net, engines, sample, np.empty(0), seconds=time.monotonic() - started)


def _preprocess(
    net: FeatureNet, keys: Sequence[bytes], images: SearchImages, cache: Path | None, progress: Progress
) -> PixelReader:
    """Reads the images whose pixels are not cached in the size of a network."""
    preprocessing = net.backbone.preprocessing
    if missing := pixel_store(preprocessing, cache).missing(keys):
        scan([images.files[keys[i]] for i in missing], preprocessing=preprocessing, cache=cache, progress=progress)
    return PixelReader(preprocessing, images.files, cache=cache, progress=progress)


def _seconds_for(one: _Contender, size: int) -> float:
    """Expected time of a round, from the measured speed and the time of the earlier rounds."""
    new, done = size - len(one.losses), max(1, len(one.losses))
    return new / one.engines.rate + 0.1 * one.seconds * size / done


def _evaluate(
    one: _Contender,
    images: SearchImages,
    places: Sequence[int],
    *,
    seed: int,
    device: str,
    cache: Path | None,
    progress: Progress,
) -> None:
    """Cross-validates the probe on some images; the losses are in the order of ``places``."""
    started = time.monotonic()
    keys = [images.keys[i] for i in places]
    _preprocess(one.net, keys, images, cache, progress)
    store = compute_features(  # without its messages, one for each candidate and round
        one.net,
        keys,
        sources=images.files,
        engines=one.engines,
        sample=one.sample,
        exact=False,
        device=device,
        cache=cache,
        progress=_TasksOnly(progress),
    )
    labels, parts = images.labels[list(places)], images.parts[list(places)]
    found = cross_validate(standardised(store.read(keys))[2], labels, seed=seed, together=parts, progress=progress)
    if found is None:  # too few images to compare anything on
        one.losses, one.correct = np.zeros(len(places)), 0
    else:
        judged = np.isfinite(found.losses)
        one.losses, one.correct = found.losses[judged], int(found.correct[judged].sum())
    one.seconds += time.monotonic() - started


def _halved(ranked: list[_Contender]) -> tuple[list[_Contender], list[_Contender]]:
    """Those that go on and those that are dropped, best first in each."""
    best, kept, dropped = ranked[0], [ranked[0]], []
    for place, one in enumerate(ranked[1:], start=1):
        p = paired_p(one.losses, best.losses)
        if p < ALPHA:
            one.decision = (
                f"dropped after {len(one.losses):,} images: worse than {best.candidate.architecture} (p = {p:.2g})"
            )
            dropped.append(one)
        elif place >= (len(ranked) + 1) // 2:
            one.decision = f"dropped after {len(one.losses):,} images: in the worse half, within noise (p = {p:.2g})"
            dropped.append(one)
        else:
            kept.append(one)
    return kept, dropped


def _decide(ranked: list[_Contender], stopped: str) -> None:
    """Writes the decision about those that reached the last round."""
    best = ranked[0]
    for one in ranked[1:]:
        p = paired_p(one.losses, best.losses)
        noise = "within noise of the best" if p >= ALPHA else "worse than the best"
        one.decision = f"not chosen: log loss {noise} (p = {p:.2g})"
    best.decision = f"chosen: the smallest log loss on {len(best.losses):,} images" + (
        f"; {stopped}" if stopped else ""
    )


def _round_text(size: int, pending: Sequence[_Contender], out: Sequence[_Contender]) -> str:
    found = ", ".join(f"{one.candidate.architecture} {one.log_loss:.3f}" for one in pending)
    dropped = [one.candidate.architecture for one in out if len(one.losses) == size]
    text = f"Backbones on {size:,} training images, cross-validated log loss: {found}"
    return f"{text}; dropped: {', '.join(dropped)}." if dropped else f"{text}."
