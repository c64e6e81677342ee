"""Rows of tables in memory: batches of image bytes, the least recently used dropped beyond a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final, final

from headstart.concurrency import ProcessLock

CACHE_BYTES: Final = 256 << 20
"""Limit of all kept batches together; a batch that is larger is kept alone."""


@final
class RowCache:
    """Batches by key. Threads may share it."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit, self._bytes = limit, 0
        self._batches: OrderedDict[tuple[object, ...], Any] = OrderedDict()
        self._lock = ProcessLock()

    def get(self, key: tuple[object, ...]) -> Any:
        """A batch, which becomes the most recently used; None if it is not kept."""
        with self._lock:
            if key in self._batches:
                self._batches.move_to_end(key)
            return self._batches.get(key)

    def put(self, key: tuple[object, ...], batch: Any) -> None:
        """Keeps a batch, an Arrow array, and drops others beyond the limit."""
        with self._lock:
            if key in self._batches:
                return
            self._batches[key] = batch
            self._bytes += batch.nbytes
            while self._bytes > self._limit and len(self._batches) > 1:
                _, dropped = self._batches.popitem(last=False)
                self._bytes -= dropped.nbytes

    def drop(self, owner: object) -> None:
        """Drops the batches whose key starts with ``owner``."""
        with self._lock:
            for key in [key for key in self._batches if key[0] == owner]:
                self._bytes -= self._batches.pop(key).nbytes
