"""Local worker processes; ``test_compute`` kills them."""

from __future__ import annotations

import pytest

from headstart.distributed.processes import device_of_worker


@pytest.mark.parametrize(
    ("device", "num_gpus", "expected"),
    [
        ("auto", 0, ["auto"] * 3),
        ("auto", 1, ["auto"] * 3),
        ("cuda", 2, ["cuda:0", "cuda:1", "cuda:0"]),
        ("auto", 2, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cpu", 2, ["cpu"] * 3),
    ],
)
def test_workers_use_the_gpus_in_turn(device: str, num_gpus: int, expected: list[str]) -> None:
    assert [device_of_worker(device, number, num_gpus) for number in range(3)] == expected
