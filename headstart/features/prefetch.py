"""Activations where the training is: on a GPU they are read ahead, and stay there as far as there is room."""

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
"""Batches that are read at once: an engine that makes them anew runs many pictures at a time."""

AHEAD = 3
"""Groups that are read while others are trained on."""

READERS = 3
"""Threads that read; one alone gives some 2 GB a second from memory that the system keeps of the disk."""

SHARE = 0.5
"""Of the GPU's free memory that activations may take."""


class ActivationSource(Protocol):
    """Activations by (image, view)."""

    def read(self, rows: Sequence[Row]) -> Tensor:
        """(len(rows), *shape) float32, on the CPU; channels last in memory where it has four axes."""

    def read_half(self, rows: Sequence[Row]) -> npt.NDArray[np.float16 | np.float32]:
        """The same numbers as they are kept: (len(rows), *shape)."""


class ActivationReader(Protocol):
    """Activations on the device that trains."""

    def expect(self, batches: Iterable[Sequence[Row]]) -> None:
        """Says what will be read next, in this order."""

    def read(self, rows: Sequence[Row]) -> Tensor:
        """(len(rows), *shape) float32 on the device; channels last in memory where it has four axes."""


def activation_reader(source: ActivationSource, device: torch.device, *, rows: int) -> ActivationReader:
    """What training reads from.

    Args:
        source: where activations are kept.
        device: where they are wanted.
        rows: how many different ones will be asked for.
    """
    return PrefetchingReader(source, device, rows=rows) if device.type == "cuda" else DirectReader(source)


@final
class DirectReader:
    """Reads when it is asked: on a CPU there is nobody else to do it meanwhile."""

    def __init__(self, source: ActivationSource) -> None:
        self.source = source

    def expect(self, batches: Iterable[Sequence[Row]]) -> None:
        """See ``ActivationReader``."""

    def read(self, rows: Sequence[Row]) -> Tensor:
        """See ``ActivationReader``."""
        return self.source.read(rows)


@final
class PrefetchingReader:
    """Reads ahead in threads, and keeps on the device what it has read.

    Args:
        source: where activations are kept.
        device: where they are wanted.
        rows: how many different ones will be asked for.
        room: bytes that may be kept there; ``SHARE`` of what is free where it is not given.
    """

    def __init__(self, source: ActivationSource, device: torch.device, *, rows: int, room: int | None = None) -> None:
        self.source, self.device, self.rows = source, device, rows
        self.room = int(SHARE * torch.cuda.mem_get_info(device)[0]) if room is None else room
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
        """As they are kept, in memory from which a GPU copies by itself; None where all are on the device already."""
        rows = [row for batch in batches for row in batch]
        if all(row in self._place for row in rows):
            return None
        read = torch.from_numpy(self.source.read_half(rows))
        return read.pin_memory() if self.device.type == "cuda" else read

    def _to_device(self, rows: Sequence[Row], read: Tensor) -> Tensor:
        """Channels in the last of four axes; the rows that there is room for are kept."""
        x = read.to(self.device, non_blocking=True)
        x = x.permute(0, 2, 3, 1).contiguous() if x.ndim == 4 else x
        if self._kept is None:
            count = min(self.rows, self.room // max(1, x[0].numel() * x.element_size()))
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
