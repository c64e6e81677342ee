"""Shards of lost workers are handed out again, a bounded number of times."""

from __future__ import annotations

import pytest

from headstart.distributed.pending import MOST_LOSSES, PendingShards
from headstart.distributed.shards import ImageRow, Shard
from headstart.errors import WorkerError

SHARDS = [Shard(i, f"s{i}", (ImageRow(f"{i}.jpg"),)) for i in range(3)]


def names(pending: PendingShards, under_way: list[str]) -> list[str]:
    """What is handed out beside those under way, until nothing is."""
    taken: list[str] = []
    while (shard := pending.next([*under_way, *taken])) is not None:
        taken.append(shard.name)
    return taken


def test_returned_shards_come_before_new_ones_in_order_and_one_at_a_time() -> None:
    pending = PendingShards(iter(SHARDS))
    assert names(pending, []) == ["s0", "s1", "s2"]
    pending.give_back(SHARDS[:2])
    assert names(pending, ["s2"]) == []
    assert names(pending, []) == ["s0"]
    assert names(pending, ["s0"]) == []
    assert names(pending, []) == ["s1"]
    assert names(pending, []) == []


def test_new_shards_wait_for_the_suspect() -> None:
    pending = PendingShards(iter(SHARDS))
    first = [shard for shard in (pending.next([]), pending.next(["s0"])) if shard]
    pending.give_back(first)
    assert (names(pending, []), names(pending, ["s0"]), names(pending, [])) == (["s0"], [], ["s1"])
    assert names(pending, []) == ["s2"]


def test_a_shard_that_loses_every_worker_is_named() -> None:
    pending = PendingShards(iter(SHARDS))
    for _ in range(MOST_LOSSES - 1):
        pending.give_back([shard for shard in [pending.next([])] if shard])
    with pytest.raises(
        WorkerError, match=f"{MOST_LOSSES} workers were lost while they computed the 1 images from 0.jpg"
    ):
        pending.give_back([shard for shard in [pending.next([])] if shard])


def test_a_shard_that_was_lost_beside_another_one_is_not_blamed() -> None:
    pending = PendingShards(iter(SHARDS))
    for _ in range(5 * MOST_LOSSES):
        pending.give_back(SHARDS[:2])
        assert names(pending, []) == ["s0"]
        assert names(pending, []) == ["s1"]
