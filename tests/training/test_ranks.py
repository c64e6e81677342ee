"""Data-parallel training: what each rank takes of a batch, and that ranks learn what one process learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_fine_tuning import SETTINGS, prepared
from thread_ranks import summing
from torch import Tensor

from headstart.training.finetune import FineTuneResult, FineTuneSettings, fine_tune, fine_tune_steps
from headstart.training.ranks import ALONE, Rank
from headstart.training.training_step import FineTuneCheckpoint, TrainingStep


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 4, 32, 33])
def test_a_batch_is_shared_out_evenly_and_whole(count: int, size: int) -> None:
    images = np.random.default_rng(size).permutation(200)[:size]
    shares = [Rank(number, count).places(images) for number in range(count)]
    assert sorted(place for share in shares for place in share) == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_most_images_go_to_the_rank_that_owns_them() -> None:
    rng, own, count = np.random.default_rng(0), 0, 0
    for _ in range(100):
        images = rng.permutation(1000)[:32]
        for number in range(2):
            rank = Rank(number, 2)
            mine = images[rank.places(images)]
            own += int(np.isin(mine, rank.owned(1000)).sum())
            count += len(mine)
    assert own / count > 0.9


def trained(
    count: int, settings: FineTuneSettings, start: FineTuneCheckpoint | None = None
) -> list[tuple[dict[str, Tensor], FineTuneResult, list[TrainingStep]]]:
    """(weights, result, steps) of each rank."""

    def train(rank: Rank) -> tuple[dict[str, Tensor], FineTuneResult, list[TrainingStep]]:
        split, learn, val, head = prepared()
        done: list[TrainingStep] = []
        result = fine_tune(split, "layer3", head, learn, val, settings, rank=rank, start=start, on_step=done.append)
        head_state = {f"head.{name}": tensor for name, tensor in result.head.state_dict().items()}
        return dict(split.module.state_dict()) | head_state, result, done

    if count == 1:
        return [train(ALONE)]
    with summing(count) as call:
        return call([lambda i=i: train(Rank(i, count)) for i in range(count)])  # type: ignore[misc]


MIXED = replace(SETTINGS, epochs=2, cutmix=0.5, mixup=0.2, feature_jitter=0.1, label_smoothing=0.1)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_learn_what_one_process_learns_and_have_equal_bits(count: int) -> None:
    ((expected, alone, alone_steps),) = trained(1, MIXED)
    found = trained(count, MIXED)
    for state, result, steps in found:
        for name, tensor in state.items():
            assert torch.equal(tensor, found[0][0][name]), name
            assert torch.allclose(tensor.float(), expected[name].float(), rtol=1e-3, atol=1e-4), name
        assert result.best == found[0][1].best
        assert result.best["log_loss"] == pytest.approx(alone.best["log_loss"], rel=1e-3)
        assert [done.loss for done in steps] == pytest.approx([done.loss for done in alone_steps], rel=1e-3)
        for entry, other in zip(result.history, alone.history, strict=True):
            assert entry == pytest.approx(other, rel=1e-3)


@pytest.mark.slow
def test_more_ranks_than_images_of_a_batch_learn_the_same() -> None:
    settings = replace(MIXED, epochs=1, batch_size=4)
    ((expected, _, _),) = trained(1, settings)
    state, result, _ = trained(5, settings)[4]
    assert all(torch.allclose(state[name].float(), t.float(), rtol=1e-3, atol=1e-4) for name, t in expected.items())
    assert np.isfinite(result.best["log_loss"])


def test_ranks_that_go_on_from_a_checkpoint_end_with_the_same_bits() -> None:
    whole = trained(2, MIXED)
    kept: list[FineTuneCheckpoint] = []
    with summing(2) as call:

        def until_the_third(rank: Rank) -> None:
            split, learn, val, head = prepared()
            loop = fine_tune_steps(split, "layer3", head, learn, val, MIXED, rank=rank)
            step = [next(loop) for _ in range(3)][-1]
            assert step.checkpoint is not None
            kept.append(step.checkpoint())

        call([lambda i=i: until_the_third(Rank(i, 2)) for i in range(2)])  # type: ignore[misc]
    again = trained(2, MIXED, kept[0])
    for (expected, _, _), (state, _, _) in zip(whole, again, strict=True):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
