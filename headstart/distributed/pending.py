"""Shards that are not finished, and what happens to those of a worker that was lost; shared by all engines."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator
from typing import Final, final

from headstart.distributed.shards import Shard
from headstart.errors import WorkerError

HANDED_OUT: Final = 2
"""Shards that are handed out for each worker: one under way, and one that is there when it is finished."""

MOST_LOSSES: Final = 3
"""Workers that a shard may lose, computed alone, before the work is given up: an image may crash a decoder."""


@final
class PendingShards:
    """Shards that are handed out, were returned because their worker was lost, or were not taken yet.

    Which of several shards ended a worker is not known. They are then computed alone, one at a time, so that the one
    that ends its worker is the one that is named, and not another one that was under way at the same time.

    Args:
        source: gives each shard once; taken as workers become free.
    """

    def __init__(self, source: Iterator[Shard]) -> None:
        self._source, self._returned = source, deque[Shard]()
        self._losses: Counter[str] = Counter()
        self._suspects: set[str] = set()

    def next(self, under_way: Collection[str]) -> Shard | None:
        """The next shard to hand out; None if there is none, or none beside those under way.

        Args:
            under_way: names of the shards that would be lost together with this one.
        """
        if not self._suspects.isdisjoint(under_way):
            return None
        if not self._returned:
            return next(self._source, None)
        return None if under_way and self._returned[0].name in self._suspects else self._returned.popleft()

    def give_back(self, shards: Iterable[Shard]) -> None:
        """Takes back the shards that were lost together with a worker.

        Raises:
            WorkerError: one of them, alone, lost its worker several times.
        """
        lost = list(shards)
        self._returned.extendleft(reversed(lost))
        self._suspects.update(shard.name for shard in lost)
        if len(lost) != 1:
            return
        (shard,) = lost
        self._losses[shard.name] += 1
        if self._losses[shard.name] >= MOST_LOSSES:
            raise WorkerError(
                f"{MOST_LOSSES} workers were lost while they computed the {len(shard.rows):,} images from "
                f"{shard.rows[0].path} on. Use fewer workers, which need less memory, or look for the image that "
                "crashes: headstart check. The same command continues with what is finished."
            )
