"""Shards that are not finished, and what happens to those of a worker that was lost; shared by all engines."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Final, final

from headstart.distributed.shards import Shard
from headstart.errors import WorkerError

HANDED_OUT: Final = 2
"""Shards that are handed out for each worker: one under way, and one that is there when it is finished."""

MOST_LOSSES: Final = 3
"""Workers that a shard may lose before the work is given up: an image may crash a decoder."""


@final
class PendingShards:
    """Shards that are handed out, were returned because their worker was lost, or were not taken yet.

    Args:
        source: gives each shard once; taken as workers become free.
    """

    def __init__(self, source: Iterator[Shard]) -> None:
        self._source, self._returned = source, deque[Shard]()
        self._losses: Counter[str] = Counter()

    def next(self) -> Shard | None:
        """The next shard to hand out; None if there is none."""
        return self._returned.popleft() if self._returned else next(self._source, None)

    def give_back(self, shards: Iterable[Shard]) -> None:
        """Takes back the shards of a worker that was lost.

        Raises:
            WorkerError: one of them lost its worker several times.
        """
        lost = list(shards)
        self._losses.update(shard.name for shard in lost)
        self._returned.extendleft(reversed(lost))
        for shard in lost:
            if self._losses[shard.name] >= MOST_LOSSES:
                raise WorkerError(
                    f"{MOST_LOSSES} workers were lost while they computed the {len(shard.rows):,} images from "
                    f"{shard.rows[0].path} on. Use fewer workers, which need less memory, or look for the image that "
                    "crashes: headstart check. The same command continues with what is finished."
                )
