"""Activations at a freeze boundary: computed once per view and image, cached in half precision.

If reading a row takes longer than computing it (an early boundary, a slow disk), or if the rows do not fit on the disk,
rows are computed on demand instead; the numbers are the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, cast, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headstart.backbone.pixel_net import ActivationNet, FeatureNet
from headstart.cache.keys import content_key
from headstart.cache.row_store import DamagedRows, RowStore, warn_damaged
from headstart.concurrency import map_images
from headstart.data.augment import Augmentation, view_key, views
from headstart.data.pixel_cache import PixelReader
from headstart.data.sources.read import read_image
from headstart.engine.device import exact_float32
from headstart.engine.interface import Engine, Identity, Pixels, engine_identity
from headstart.engine.streaming import run_stream
from headstart.engine.torch_engine import TorchEngine, is_asynchronous
from headstart.errors import CacheError, DataError, UnreadableImage
from headstart.features.extract import half_precision, should_write
from headstart.progress import Progress, SilentProgress

ACTIVATIONS_VERSION = 2
"""Incremented whenever the same images and weights give other rows; part of the cache key."""

TRIAL = 64
"""Rows after which reading is compared with computing."""

BLOCK = 32
"""Images whose views are computed together."""

CONTINUED = 32
"""Rows that are computed together from an earlier boundary: the batch size of fine-tuning."""

AHEAD = 256
"""Images whose views are prefetched for an engine on another device."""

Half = npt.NDArray[np.float16]
Row = tuple[int, int]
"""(image, view); view 0 is the unaugmented image."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files, addressed by position.

    Attributes:
        files: N paths.
        keys: N content hashes.
    """

    files: Sequence[str]
    keys: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True)
class Views:
    """The views of each image.

    Attributes:
        count: views per image, numbered from 0; view 0 is the unaugmented image.
        seed: of the augmented views.
        augmentation: their parameters.
    """

    count: int
    seed: int
    augmentation: Augmentation


@dataclass(frozen=True)
class Continuation:
    """The layers between an earlier boundary and this one, which compute activations from cached ones.

    Attributes:
        boundary: the earlier boundary.
        part: the layers between, run by PyTorch.
        dtype: precision of the computation.
    """

    boundary: str
    part: nn.Module
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """Device of the layers."""
        return next((tensor.device for tensor in self.part.parameters()), torch.device("cpu"))

    def describe(self) -> dict[str, Any]:
        """What determines the output, besides network and input; for the cache key."""
        return {"boundary": self.boundary} | engine_identity("torch", str(self.dtype), self.device)


def activation_store(
    net: ActivationNet | FeatureNet,
    shape: tuple[int, ...],
    *,
    identity: Identity,
    views: Views | None = None,
    through: Continuation | None = None,
    cache: Path | None = None,
) -> RowStore:
    """The cache of activations: rows of ``shape``, float16.

    Args:
        net: pixels -> activation.
        shape: of one activation.
        identity: of the engine that computes them, or that computed the activations at the earlier boundary.
        views: seed and augmentation; None for unaugmented images.
        through: the layers from an earlier boundary; None to compute from pixels.
        cache: cache folder; default: ``cache_root()``.
    """
    description = (
        net.describe()
        | identity
        | {
            "pixels": net.backbone.preprocessing.pixel_key(),
            "views": None if views is None else {"seed": views.seed, "augmentation": views.augmentation.describe()},
            "through": None if through is None else through.describe(),
            "dtype": "float16",
            "version": ACTIVATIONS_VERSION,
        }
    )
    return RowStore("activations", description, dtype=np.float16, shape=shape, root=cache)


@final
class Activations:
    """Activations of images at one boundary, cached or computed on demand.

    Args:
        net: pixels -> activation.
        images: the image files; their pixels are in ``pixel_store(net.backbone.preprocessing)``.
        shape: of one activation.
        engine: runs ``net``; with ``source``, the engine that computed the source's activations.
        views: views of each image; None: only the unaugmented images.
        keep: whether rows are cached on disk if that is faster.
        cache: cache folder; default: ``cache_root()``.
        source: activations of the same images and views at an earlier boundary, and the layers from there; rows are
            then computed from these instead of from pixels.
        progress: receives reports of damaged rows.

    Attributes:
        reason: why rows are cached or not, known after ``prepare``.
    """

    def __init__(
        self,
        net: ActivationNet | FeatureNet,
        images: ImageFiles,
        *,
        shape: tuple[int, ...],
        engine: Engine,
        views: Views | None,
        keep: bool = True,
        cache: Path | None = None,
        source: tuple[Activations, Continuation] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.net = net
        self.images = images
        self.shape = shape
        self.views = views
        self.keep = keep
        self.reason = "kept on disk" if keep else "recomputed each time, as requested"
        self.engine = engine
        if is_asynchronous(engine):
            cast(TorchEngine, engine).output_dtype = torch.float16
        self._source = source
        sources = dict(zip(images.keys, images.files, strict=True))
        self._pixels = PixelReader(net.backbone.preprocessing, sources, cache=cache, progress=progress)
        self._progress = progress or SilentProgress()
        through = None if source is None else source[1]
        self.plain = activation_store(net, shape, identity=engine.identity, through=through, cache=cache)
        self.store = self.plain
        if views is not None and views.count > 1:
            self.store = activation_store(
                net, shape, identity=engine.identity, views=views, through=through, cache=cache
            )

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.store.row_bytes

    def prepare(self, progress: Progress | None = None, images: Sequence[int] | None = None) -> None:
        """Computes the rows that are not cached, unless computing on demand is faster than reading.

        Args:
            progress: receives a step per row.
            images: whose rows are computed; all by default. Others are computed, and cached, when they are read.

        Raises:
            DataError: an image is missing or has changed since it was read.
            CacheError: the cache cannot be written.
        """
        progress = progress or SilentProgress()
        if not self.keep:
            return
        missing = self._missing(range(len(self.images)) if images is None else images)
        if not missing:
            return
        try:
            self.store.require_space(len(missing))
        except CacheError as error:
            self.keep, self.reason = False, f"recomputed each time: {error}"
            progress.say(f"Activations at {self.net.boundary}: {self.reason}")
            return
        what = f"Running the backbone up to {self.net.boundary}"
        waiting: list[tuple[Row, Half]] = []
        trial, started = len(missing) >= 4 * TRIAL, time.monotonic()
        with progress.task(what, len(missing), unit="views" if self.views else "images") as advance:
            for computed in self._make(missing):
                waiting += computed
                advance(len(computed))
                if trial and len(waiting) >= TRIAL:
                    trial = False
                    if not self._reading_pays(waiting, time.monotonic() - started, progress):
                        return
                if should_write(len(waiting), self.row_bytes):
                    self._append(waiting)
                    waiting = []
            if waiting:
                self._append(waiting)

    def read(self, rows: Sequence[Row]) -> Tensor:
        """Activations in the order of ``rows``.

        Returns:
            (len(rows), *shape) float32, rounded to half precision; in channels-last memory format if 4-d.

        Raises:
            DataError: an image is missing or has changed (if rows are computed on demand).
            CacheError: the cache cannot be read.
        """
        tensor = torch.from_numpy(self.read_half(rows)).float()
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    def read_half(self, rows: Sequence[Row]) -> Half:
        """As ``read``, but (len(rows), *shape) float16."""
        if self.keep:
            return self._read(rows)
        distinct = sorted(set(rows))
        computed = {row: value for part in self._make(distinct) for row, value in part}
        return np.stack([computed[row] for row in rows])

    def _missing(self, images: Sequence[int]) -> list[Row]:
        """Rows that are not cached: unaugmented images first, then the views, image by image."""
        plain = [(image, 0) for image in images]
        seen = [(image, number) for image, _ in plain for number in range(1, self.views.count if self.views else 1)]
        return [rows[place] for rows in (plain, seen) for place in self._store_of(rows).missing(self._names(rows))]

    def _store_of(self, rows: Sequence[Row]) -> RowStore:
        return self.store if rows and rows[0][1] else self.plain

    def _names(self, rows: Sequence[Row]) -> list[bytes]:
        keys = self.images.keys
        return [view_key(keys[image], number) if number else keys[image] for image, number in rows]

    def _read(self, rows: Sequence[Row]) -> Half:
        out = np.empty((len(rows), *self.shape), dtype=np.float16)
        for places in _by_kind(rows):
            chosen = [rows[place] for place in places]
            store, names = self._store_of(chosen), self._names(chosen)
            if store.missing(names):
                store.refresh()
                for computed in self._make(sorted({chosen[place] for place in store.missing(names)})):
                    self._append(computed)
            try:
                out[places] = store.read(names)
            except DamagedRows as damaged:
                self._make_again(chosen, names, set(damaged.keys), store)
                out[places] = store.read(names)
        return out

    def _make_again(self, rows: Sequence[Row], names: Sequence[bytes], damaged: set[bytes], store: RowStore) -> None:
        warn_damaged("activations", store.folder, self._progress)
        again = sorted({row for row, name in zip(rows, names, strict=True) if name in damaged})
        for computed in self._make(again):
            self._append(computed)

    def _append(self, computed: Sequence[tuple[Row, Half]]) -> None:
        rows = [row for row, _ in computed]
        for places in _by_kind(rows):
            chosen = [rows[place] for place in places]
            self._store_of(chosen).append(self._names(chosen), np.stack([computed[place][1] for place in places]))

    def _make(self, rows: Sequence[Row]) -> Iterator[list[tuple[Row, Half]]]:
        """Computes rows in batches; unaugmented images first, otherwise in order."""
        if self._source is not None:
            yield from self._continue(rows)
            return
        size = self.engine.batch_size
        plain, seen = ([row for row in rows if bool(row[1]) == views] for views in (False, True))
        shown = chain(self._as_they_are(plain, size), _regrouped(self._see(seen), size))
        places = chain(plain, seen)
        try:
            for out in run_stream(self.engine, shown):
                yield list(zip(islice(places, len(out)), self._half(out), strict=True))
        except OverflowError:
            raise self._too_large() from None

    def _half(self, out: npt.NDArray[Any]) -> Half:
        half: Half | None = out if out.dtype == np.float16 else half_precision(out)
        if half is None:
            raise self._too_large()
        return half

    def _too_large(self) -> CacheError:
        return CacheError(
            f"activations at {self.net.boundary} exceed the range of half precision. Fine-tune from another "
            "layer group (option unfreeze)."
        )

    def _as_they_are(self, rows: Sequence[Row], size: int) -> Iterator[Pixels]:
        for start in range(0, len(rows), size):
            yield self._pixels.read([self.images.keys[image] for image, _ in rows[start : start + size]])

    def _see(self, rows: Sequence[Row]) -> Iterator[Pixels]:
        """Pixels of the views, image by image."""
        jobs = [(image, [number for _, number in group]) for image, group in groupby(rows, key=lambda row: row[0])]
        plan = self.views

        def see(job: tuple[int, list[int]]) -> Pixels:
            image, numbers = job
            assert plan is not None
            path, key = self.images.files[image], self.images.keys[image]
            try:
                data = read_image(path)
                if content_key(data) != key:
                    raise DataError(f"{path}: has changed since this command first read it. Run the command again.")
                return views(
                    data,
                    key,
                    numbers,
                    seed=plan.seed,
                    augmentation=plan.augmentation,
                    preprocessing=self.net.backbone.preprocessing,
                )
            except UnreadableImage as error:
                raise DataError(
                    f"{path}: {error.reason}. It was readable earlier in this run; check the file and run the command "
                    "again."
                ) from error

        if is_asynchronous(self.engine):
            yield from map_images(see, jobs, ahead=AHEAD)
            return
        for start in range(0, len(jobs), BLOCK):  # not while the engine runs: both would compete for the cores
            yield from list(map_images(see, jobs[start : start + BLOCK]))

    def _continue(self, rows: Sequence[Row]) -> Iterator[list[tuple[Row, Half]]]:
        assert self._source is not None
        earlier, through = self._source
        device = through.device
        for start in range(0, len(rows), CONTINUED):
            batch = rows[start : start + CONTINUED]
            x = earlier.read(batch)
            if len(batch) < CONTINUED:  # kernels may differ with the batch size
                x = torch.cat([x, x.new_zeros((CONTINUED - len(batch), *x.shape[1:]))])
                x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
            with torch.inference_mode(), exact_float32(device):
                out = through.part(x.to(device))[: len(batch)].float().cpu().numpy()
            yield list(zip(batch, self._half(out), strict=True))

    def _reading_pays(self, computed: Sequence[tuple[Row, Half]], seconds: float, progress: Progress) -> bool:
        """Writes some rows, reads them in another order, and compares with the time to compute them.

        Rows are read more than once, so writing counts only if a GPU computes them.
        """
        started = time.monotonic()
        self._append(computed)
        written = time.monotonic()
        order = np.random.default_rng(0).permutation(len(computed))
        self._read([computed[i][0] for i in order])
        reading, writing = (1e3 * span / len(computed) for span in (time.monotonic() - written, written - started))
        making = 1e3 * seconds / len(computed)
        figures = (
            f"a row of {self.row_bytes / 1e3:.0f} kB takes {making:.2f} ms to compute, {writing:.2f} ms to write, "
            f"{reading:.2f} ms to read"
        )
        self.keep = reading + (writing if is_asynchronous(self.engine) else 0) < making
        self.reason = f"{'kept on disk' if self.keep else 'recomputed each time'}: {figures}"
        if not self.keep:
            progress.say(f"Activations at {self.net.boundary} are {self.reason}.")
        return self.keep

    def describe(self) -> dict[str, Any]:
        """A summary for the run's log."""
        return {
            "boundary": self.net.boundary,
            "images": len(self.images),
            "views": self.views.count if self.views else 0,
            "kept": self.keep,
            "reason": self.reason,
            "precision": self.engine.precision,
        }


def _by_kind(rows: Sequence[Row]) -> list[npt.NDArray[np.intp]]:
    """Places of unaugmented images and places of other views, without empty ones."""
    views = np.array([number > 0 for _, number in rows], dtype=bool)
    return [places for places in (np.flatnonzero(~views), np.flatnonzero(views)) if len(places)]


def _regrouped(parts: Iterator[Pixels], size: int) -> Iterator[Pixels]:
    """Batches of ``size`` from parts of any length; the last may be shorter."""
    held: list[Pixels] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part)
        while count >= size:
            joined = np.concatenate(held)
            yield joined[:size]
            held, count = [joined[size:]], count - size
    if count:
        yield np.concatenate(held)
