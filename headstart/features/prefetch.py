"""Prefetches activations to the training device, and keeps them there as far as memory allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Protocol, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Row = tuple[int, int]
"""(image, view)."""

GROUP = 4
"""Batches that are read together: an engine that computes them on demand is faster with many images."""

AHEAD = 3
"""Groups that are read ahead."""

READERS = 3
"""Reader threads; one reads about 2 GB/s from the page cache."""

SHARE = 0.5
"""Share of the GPU's free memory for activations."""


class ActivationSource(Protocol):
    """Activations by (image, view)."""

    def read(self, rows: Sequence[Row]) -> Tensor:
        """(len(rows), *shape) float32 on the CPU; in channels-last memory format if 4-d."""

    def read_half(self, rows: Sequence[Row]) -> npt.NDArray[np.float16 | np.float32]:
        """As ``read``, in the precision of the cache: (len(rows), *shape)."""


class ActivationReader(Protocol):
    """Reads activations to the training device."""

    def expect(self, batches: Iterable[Sequence[Row]]) -> None:
        """Announces the batches that will be read, in order."""

    def read(self, rows: Sequence[Row]) -> Tensor:
        """(len(rows), *shape) float32 on the device; in channels-last memory format if 4-d."""


def activation_reader(source: ActivationSource, device: torch.device, *, rows: int) -> ActivationReader:
    """A reader for a device: prefetching on CUDA, direct elsewhere.

    Args:
        source: the activations.
        device: training device.
        rows: number of different rows that will be read.
    """
    return PrefetchingReader(source, device, rows=rows) if device.type == "cuda" else DirectReader(source)


@final
class DirectReader:
    """Reads on demand: on a CPU, reading ahead would take cores from training."""

    def __init__(self, source: ActivationSource) -> None:
        self.source = source

    def expect(self, batches: Iterable[Sequence[Row]]) -> None:
        """See ``ActivationReader``."""

    def read(self, rows: Sequence[Row]) -> Tensor:
        """See ``ActivationReader``."""
        return self.source.read(rows)


@final
class PrefetchingReader:
    """Reads ahead in threads, and keeps rows on the device.

    Args:
        source: the activations.
        device: training device.
        rows: number of different rows that will be read.
        max_bytes: memory for rows on the device; default: ``SHARE`` of its free memory.
    """

    def __init__(
        self, source: ActivationSource, device: torch.device, *, rows: int, max_bytes: int | None = None
    ) -> None:
        self.source, self.device, self.rows = source, device, rows
        self.max_bytes = int(SHARE * torch.cuda.mem_get_info(device)[0]) if max_bytes is None else max_bytes
        self._place: dict[Row, int] = {}
        self._kept: Tensor | None = None
        self._readers = ThreadPoolExecutor(READERS)
        self._awaited: deque[Sequence[Row]] = deque()
        self._reading: deque[tuple[list[Sequence[Row]], Future[Tensor | None]]] = deque()
        self._ready: deque[tuple[Sequence[Row], Tensor | None]] = deque()

    def expect(self, batches: Iterable[Sequence[Row]]) -> None:
        """See ``ActivationReader``."""
        for _, reading in self._reading:
            reading.cancel()
        self._reading.clear()
        self._ready.clear()
        self._awaited = deque(batches)
        self._go_on()

    def read(self, rows: Sequence[Row]) -> Tensor:
        """See ``ActivationReader``."""
        if not self._ready and self._reading and self._reading[0][0][0] == rows:
            self._take_group()
        expected = bool(self._ready) and self._ready[0][0] == rows
        read = self._ready.popleft()[1] if expected else self._read_missing([rows])
        x = self._from_kept(rows) if read is None else self._to_device(rows, read)
        if x.ndim == 4:
            return x.permute(0, 3, 1, 2).float()
        return x.float()

    def _take_group(self) -> None:
        batches, reading = self._reading.popleft()
        read = reading.result()
        parts = [None] * len(batches) if read is None else torch.split(read, [len(rows) for rows in batches])
        self._ready.extend(zip(batches, parts, strict=True))
        self._go_on()

    def _go_on(self) -> None:
        while self._awaited and len(self._reading) < AHEAD:
            batches = [self._awaited.popleft() for _ in range(min(GROUP, len(self._awaited)))]
            self._reading.append((batches, self._readers.submit(self._read_missing, batches)))

    def _read_missing(self, batches: Sequence[Sequence[Row]]) -> Tensor | None:
        """Rows in the precision of the cache, in pinned memory; None if all are on the device already."""
        rows = [row for batch in batches for row in batch]
        if all(row in self._place for row in rows):
            return None
        read = torch.from_numpy(self.source.read_half(rows))
        return read.pin_memory() if self.device.type == "cuda" else read

    def _to_device(self, rows: Sequence[Row], read: Tensor) -> Tensor:
        """Moves rows to the device, channels last if 4-d, and keeps those that fit."""
        x = read.to(self.device, non_blocking=True)
        x = x.permute(0, 2, 3, 1).contiguous() if x.ndim == 4 else x
        if self._kept is None:
            count = min(self.rows, self.max_bytes // max(1, x[0].numel() * x.element_size()))
            self._kept = torch.empty((count, *x.shape[1:]), dtype=x.dtype, device=self.device)
        first = len(self._place)
        new = {row: place for place, row in enumerate(rows) if row not in self._place}
        new = dict(islice(new.items(), len(self._kept) - first))
        if new:
            self._kept[first : first + len(new)] = x[list(new.values())]
            self._place |= {row: first + number for number, row in enumerate(new)}
        return x

    def _from_kept(self, rows: Sequence[Row]) -> Tensor:
        assert self._kept is not None
        places = torch.tensor([self._place[row] for row in rows])
        return self._kept.index_select(0, places.to(self.device))
