"""Seeds of a training step."""

from __future__ import annotations

import pytest
import torch

from headstart.training.sampling import seeded


def test_a_seeded_context_draws_as_after_manual_seed_and_restores_the_generator() -> None:
    before = torch.get_rng_state()
    with seeded(1, 5, 7):
        state, drawn = torch.initial_seed(), torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(state)
        assert torch.equal(torch.rand(4), drawn)
    with seeded(1, 5, 8):
        assert not torch.equal(torch.rand(4), drawn)


@pytest.mark.parametrize("in_use", [False, True])
def test_generators_of_accelerators_are_seeded_once_one_is_in_use(
    in_use: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: in_use)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    with seeded(3, 5, 0):
        pass
    assert len(seeds) == in_use
