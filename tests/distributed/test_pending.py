"""Shards of lost workers are handed out again, a bounded number of times."""

from __future__ import annotations

import pytest

from headstart.distributed.pending import MOST_LOSSES, PendingShards
from headstart.distributed.shards import ImageRow, Shard
from headstart.errors import WorkerError

SHARDS = [Shard(i, f"s{i}", (ImageRow(f"{i}.jpg"),)) for i in range(3)]


def test_returned_shards_come_before_new_ones_and_in_order() -> None:
    pending = PendingShards(iter(SHARDS))
    first, second = pending.next(), pending.next()
    assert first is not None
    assert second is not None
    pending.give_back([first, second])
    assert [pending.next() for _ in range(4)] == [*SHARDS, None]


def test_a_shard_that_loses_every_worker_is_named() -> None:
    pending = PendingShards(iter(SHARDS))
    for _ in range(MOST_LOSSES - 1):
        pending.give_back([shard for shard in [pending.next()] if shard])
    with pytest.raises(
        WorkerError, match=f"{MOST_LOSSES} workers were lost while they computed the 1 images from 0.jpg"
    ):
        pending.give_back([shard for shard in [pending.next()] if shard])
