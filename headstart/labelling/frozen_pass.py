"""The background pass of a session: lists, reads and hashes all images, and computes their features once.

The features are those of ``headstart train`` with the same backbone, in the same cache. Images that are added later
join the result by a pass over them alone.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, final

import numpy as np
import numpy.typing as npt

from headstart.backbone.feature_spec import FeatureSpec
from headstart.backbone.pixel_net import FeatureNet
from headstart.backbone.weights import DEFAULT_BACKBONE, Backbone, load_backbone
from headstart.data.duplicates import find_duplicates
from headstart.data.scan import Scan, scan
from headstart.engine.select import default_plan
from headstart.errors import HeadstartError, first_line
from headstart.features.extract import compute_features
from headstart.labelling.image_list import ImageList, ImageSources, addresses_of
from headstart.labelling.stacks import Stacks
from headstart.training.recipe import Recipe

Stage = Literal["listing", "reading", "features", "ready", "failed"]
"""What the pass does."""

LISTED_EVERY: Final = 500
"""Images listed between two reports."""


@dataclass(frozen=True)
class PassResult:
    """What the pass found out about N images.

    Attributes:
        keys: N content hashes; b"" for a file that could not be read.
        faults: number of each image that cannot be used -> the reason.
        stacks: near-duplicates.
        features: (N, D) float32; zeros for images that cannot be used.
        usable: (N,) bool.
        sizes: (N, 2) width and height in pixels; zeros for images that cannot be used.
        scan: what near-duplicates are found by; None if no image is added later.
    """

    keys: list[bytes]
    faults: dict[int, str]
    stacks: Stacks
    features: npt.NDArray[np.float32]
    usable: npt.NDArray[np.bool_]
    sizes: npt.NDArray[np.int64]
    scan: Scan | None = None

    def size(self, image: int) -> tuple[int, int] | None:
        """Width and height of an image in pixels; None if it cannot be used, or was added just now."""
        width, height = self.sizes[image].tolist() if image < len(self.sizes) else (0, 0)
        return (width, height) if width else None


class PassStopped(Exception):
    """The session was closed before the pass was ready."""


@final
class PassProgress:
    """Takes the progress of the pass; ``as_json`` is the part ``work`` of the state document.

    Args:
        changed: called after each step.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self.stage: Stage = "listing"
        self.done = self.total = 0
        self.message = ""
        self._started = time.monotonic()
        self._is_stopped = False

    def stop(self) -> None:
        """Ends the pass with its next image."""
        self._is_stopped = True

    def begin(self, stage: Stage, total: int = 0) -> None:
        """Starts a stage."""
        self.stage, self.done, self.total, self._started = stage, 0, total, time.monotonic()
        self._changed()

    def advance(self, count: int) -> None:
        """Counts images that are done.

        Raises:
            PassStopped: ``stop`` was called.
        """
        if self._is_stopped:
            raise PassStopped
        self.done += count
        self._changed()

    def say(self, text: str) -> None:
        """Keeps the latest message."""
        self.message = text
        self._changed()

    @contextmanager
    def task(self, name: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """Counts a task over images; ignores others."""
        if unit != "images":
            self.say(name)
            yield lambda _count: None
            return
        self.done, self.total, self._started = 0, total, time.monotonic()
        yield self.advance

    def seconds_left(self) -> float | None:
        """Estimated seconds of the stage that are left; None before anything is done."""
        if not self.done or self.stage not in ("reading", "features"):
            return None
        return round((time.monotonic() - self._started) * (self.total - self.done) / self.done, 1)

    def as_json(self) -> dict[str, Any]:
        """Stage, number of images done and in all, seconds left, latest message."""
        return {
            "stage": self.stage,
            "done": self.done,
            "total": self.total,
            "seconds_left": self.seconds_left(),
            "message": self.message,
        }


@dataclass(frozen=True)
class PassOptions:
    """What is computed, and where.

    Attributes:
        source: of the images.
        backbone: name of an architecture; "auto" for the default.
        device: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder; None for the default.
    """

    source: ImageSources
    backbone: str = "auto"
    device: str = "auto"
    cache: Path | None = None


@final
class FrozenPass:
    """Runs once, in a thread.

    Args:
        options: see ``PassOptions``.
        images: is filled.
        changed: called whenever there is progress, from the thread.
        finished: called with the result, from the thread, before the stage is "ready".
        added: files outside the source, which are listed last if they exist.
    """

    def __init__(
        self,
        options: PassOptions,
        images: ImageList,
        *,
        changed: Callable[[], None],
        finished: Callable[[PassResult], None],
        added: Sequence[str] = (),
    ) -> None:
        self._added = tuple(dict.fromkeys(added))
        self.options, self.images, self.progress = options, images, PassProgress(changed)
        self.faults: dict[int, str] = {}
        self._finished = finished
        self._backbone: Backbone | None = None
        self._thread = threading.Thread(target=self._run, name="headstart-label-pass", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def failures(self) -> list[dict[str, str]]:
        """``path`` and ``reason`` of each image that cannot be used."""
        return [{"path": self.images.paths[image], "reason": reason} for image, reason in sorted(self.faults.items())]

    def stop(self) -> None:
        """Ends the pass; what it computed is in the cache."""
        self.progress.stop()

    def wait(self, timeout: float | None = None) -> None:
        """Waits for the end; returns at once if the pass was not started."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self._list()
            self._finished(self._computed())
            self.progress.begin("ready")
        except PassStopped:
            return
        except (HeadstartError, OSError, MemoryError, RuntimeError) as error:
            self.progress.message = str(error) if isinstance(error, HeadstartError) else first_line(error)
            self.progress.begin("failed")

    def _list(self) -> None:
        self.progress.begin("listing")
        for count in self.images.extend(addresses_of(self.options.source)):
            if count % LISTED_EVERY == 1:
                self.progress.done = self.progress.total = count
                self.progress.advance(0)
        listed = set(self.images.addresses)
        deque(self.images.extend(a for a in self._added if a not in listed and os.path.isfile(a)), maxlen=0)

    def _computed(self) -> PassResult:
        addresses = list(self.images.addresses)
        self.progress.begin("reading", len(addresses))
        scanned = self._scanned(addresses, self.progress)
        self.faults = scanned.faults
        stacks = Stacks.of_pairs(len(addresses), find_duplicates(scanned, self.progress).pairs)
        self.progress.begin("features", len(addresses))
        if not scanned.usable.any():
            raise HeadstartError("No image can be read.")
        return _result(scanned, stacks, self._features(scanned, addresses, len(addresses), self.progress))

    def joined(self, before: PassResult, addresses: Sequence[str], progress: PassProgress) -> PassResult:
        """The result with further images, read and computed now; the pass must be ready.

        Args:
            before: of all other images.
            addresses: of the images that follow them.
            progress: ends the work if it is stopped.
        """
        assert before.scan is not None
        added = self._scanned(addresses, progress)
        scanned = _joined_scans(before.scan, added)
        self.faults = scanned.faults
        stacks = Stacks.of_pairs(len(scanned.keys), find_duplicates(scanned, progress).pairs)
        features = np.zeros((len(addresses), before.features.shape[1]), np.float32)
        if added.usable.any():
            features = self._features(added, addresses, len(scanned.keys), progress)
        return _result(scanned, stacks, np.concatenate([before.features, features]))

    def _loaded(self) -> Backbone:
        if self._backbone is None:
            name = self.options.backbone
            self._backbone = load_backbone(DEFAULT_BACKBONE if name == "auto" else name)
        return self._backbone

    def _scanned(self, addresses: Sequence[str], progress: PassProgress) -> Scan:
        return scan(addresses, preprocessing=self._loaded().preprocessing, cache=self.options.cache, progress=progress)

    def _features(
        self, scanned: Scan, addresses: Sequence[str], count: int, progress: PassProgress
    ) -> npt.NDArray[np.float32]:
        """(N, D) of scanned images, at least one of which is usable; zeros for the others.

        ``count``: images of the whole session, which the engine follows from.
        """
        recipe = Recipe()
        net = FeatureNet(self._loaded(), FeatureSpec(recipe.pooling, recipe.cut or "", recipe.named_layers))
        places = np.flatnonzero(scanned.usable)
        keys = [scanned.keys[place] for place in places]
        store = compute_features(
            net,
            keys,
            sources={scanned.keys[place]: addresses[place] for place in places.tolist()},
            engines=default_plan(net, count, device=self.options.device),
            device=self.options.device,
            cache=self.options.cache,
            progress=progress,
        )
        rows = store.read(keys).reshape(len(keys), -1)
        features = np.zeros((len(addresses), rows.shape[1]), np.float32)
        features[places] = rows
        return features


def _joined_scans(one: Scan, other: Scan) -> Scan:
    """The scan of the files of both."""
    faults = one.faults | {len(one.keys) + place: reason for place, reason in other.faults.items()}
    return Scan(one.keys + other.keys, faults, np.concatenate([one.facts, other.facts]))


def _result(scanned: Scan, stacks: Stacks, features: npt.NDArray[np.float32]) -> PassResult:
    sizes = np.stack([scanned.facts["width"], scanned.facts["height"]], axis=1).astype(np.int64)
    return PassResult(scanned.keys, scanned.faults, stacks, features, scanned.usable, sizes, scanned)
