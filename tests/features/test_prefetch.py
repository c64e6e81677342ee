from __future__ import annotations

import numpy as np
import pytest
import torch

from headstart.features.prefetch import DirectReader, PrefetchingReader, Row, activation_reader

CPU = torch.device("cpu")


class Counted:
    """Maps of 3 x 2 x 2, and what was asked of them."""

    def __init__(self) -> None:
        self.asked: list[Row] = []

    def read_half(self, rows: list[Row]) -> np.ndarray:
        self.asked += rows
        return np.stack([np.arange(12, dtype=np.float16).reshape(3, 2, 2) + 100 * i + 10 * view for i, view in rows])

    def read(self, rows: list[Row]) -> torch.Tensor:
        return torch.from_numpy(self.read_half(rows)).float().contiguous(memory_format=torch.channels_last)


BATCHES = [[(0, 0), (1, 1)], [(2, 0), (3, 1)], [(4, 0)]]
ROW = 12 * 2


@pytest.mark.parametrize("room", [0, 3 * ROW, 1 << 20])
def test_a_feed_gives_what_its_source_gives_whatever_it_keeps(room: int) -> None:
    feed = PrefetchingReader(source := Counted(), CPU, rows=5, max_bytes=room)
    for epoch in range(3):
        feed.expect(BATCHES)
        for batch in BATCHES:
            given, expected = feed.read(batch), Counted().read(batch)
            assert torch.equal(given, expected)
            assert given.dtype == torch.float32
            assert given.is_contiguous(memory_format=torch.channels_last)
        assert len(source.asked) == 5 if epoch == 0 else len(source.asked) >= 5


def test_what_is_kept_is_read_once() -> None:
    feed = PrefetchingReader(source := Counted(), CPU, rows=5, max_bytes=1 << 20)
    for _ in range(3):
        feed.expect(BATCHES)
        for batch in BATCHES:
            feed.read(batch)
    assert sorted(source.asked) == sorted(row for batch in BATCHES for row in batch)


def test_without_room_everything_is_read_again_and_only_what_is_asked_for() -> None:
    feed = PrefetchingReader(source := Counted(), CPU, rows=5, max_bytes=0)
    for _ in range(2):
        feed.expect(BATCHES)
        for batch in BATCHES:
            feed.read(batch)
    assert len(source.asked) == 10


def test_what_was_not_announced_is_read_as_well() -> None:
    feed = PrefetchingReader(Counted(), CPU, rows=5, max_bytes=2 * ROW)
    feed.expect(BATCHES)
    for rows in ([(3, 1), (0, 0)], [(0, 0)], [(0, 0), (0, 0), (4, 1)]):
        assert torch.equal(feed.read(rows), Counted().read(rows))


def test_an_error_of_the_source_reaches_who_reads() -> None:
    class Broken(Counted):
        def read_half(self, rows: list[Row]) -> np.ndarray:
            raise OSError("gone")

    feed = PrefetchingReader(Broken(), CPU, rows=5, max_bytes=0)
    feed.expect(BATCHES)
    with pytest.raises(OSError, match="gone"):
        feed.read(BATCHES[0])


def test_a_cpu_reads_when_it_is_asked() -> None:
    feed = activation_reader(source := Counted(), CPU, rows=5)
    assert isinstance(feed, DirectReader)
    feed.expect(BATCHES)
    assert source.asked == []
    assert torch.equal(feed.read(BATCHES[0]), Counted().read(BATCHES[0]))
