"""Jitter, mixup and CutMix on activations: what is mixed with what, where, and how much."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from headstart.backbone.layers import Layout
from headstart.backbone.weights import random_backbone
from headstart.training.feature_augment import StepAugmentation, draw_augmentation

MAPS, LAST, TOKENS = Layout(), Layout(channels_last=True), Layout(prefix_tokens=2)
CASES = [(MAPS, (6, 5, 7, 4)), (LAST, (6, 7, 4, 5)), (TOKENS, (6, 2 + 16, 5))]


def drawn(x: Tensor, layout: Layout, seed: int, **how: float) -> StepAugmentation:
    rng = np.random.default_rng(seed)
    return drawn_for([x], [layout], rng, **how)


def drawn_for(parts: list[Tensor], layouts: list[Layout], rng: np.random.Generator, **how: float) -> StepAugmentation:
    options = {"jitter": 0.0, "cutmix_share": 0.0, "mixup_alpha": 0.0} | how
    return draw_augmentation([part.shape for part in parts], layouts, rng, **options)


def numbered(shape: tuple[int, ...]) -> Tensor:
    """Activation i has the value i everywhere."""
    return torch.arange(shape[0]).float().view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()


def places(x: Tensor, layout: Layout) -> Tensor:
    """(N, rows, columns, channels)."""
    if x.ndim == 3:
        return x[:, layout.prefix_tokens :].view(len(x), 4, 4, -1)
    return x if layout.channels_last else x.permute(0, 2, 3, 1)


@pytest.mark.parametrize(("layout", "shape"), CASES)
def test_a_rectangle_is_pasted_and_its_area_is_the_share(layout: Layout, shape: tuple[int, ...]) -> None:
    x, shares = numbered(shape), set()
    for seed in range(30):
        augmentation = drawn(x, layout, seed, cutmix_share=1.0)
        mixed, other, share = augmentation.apply((x,)), augmentation.partner, augmentation.share
        assert torch.equal(x, numbered(shape))  # the original is left alone
        taken = places(mixed, layout) != places(x, layout)
        assert torch.equal(taken.all(-1), taken.any(-1))  # every channel of a place, or none
        for i in range(len(x)):
            if other[i] != i:
                where = taken[i, ..., 0]
                rows, columns = where.any(1), where.any(0)
                assert torch.equal(where, rows[:, None] & columns)
                for line in (rows, columns):  # without a gap
                    at = torch.nonzero(line).flatten()
                    assert len(at) == 0 or len(at) == at[-1] - at[0] + 1
                assert share == pytest.approx(1 - float(where.float().mean()))
                assert torch.all(places(mixed, layout)[i][where] == other[i])
        shares.add(round(share, 3))
        if x.ndim == 3:
            assert torch.equal(mixed[:, :2], x[:, :2])  # tokens of no place stay
    assert min(shares) < 0.3
    assert max(shares) > 0.7


def test_activations_without_positions_are_not_mixed() -> None:
    for shape in [(6, 9), (6, 11, 5)]:
        x = torch.randn(shape)
        augmentation = drawn(x, MAPS, 0, cutmix_share=1.0)
        assert torch.equal(augmentation.apply((x,)), x)
        assert augmentation.share == 1.0


def test_a_blend_is_the_weighted_mean() -> None:
    x = torch.randn(8, 3, 4, 4)
    augmentation = drawn(x, MAPS, 1, mixup_alpha=0.5)
    share, other = augmentation.share, augmentation.partner
    assert 0.5 <= share <= 1
    assert torch.allclose(augmentation.apply((x,)), share * x + (1 - share) * x[other])


@pytest.mark.parametrize(("layout", "shape"), CASES)
def test_jitter_has_one_factor_for_each_channel(layout: Layout, shape: tuple[int, ...]) -> None:
    ones = torch.ones(shape)
    factors = places(drawn(ones, layout, 0, jitter=0.1).apply((ones,)), layout)
    assert torch.equal(factors, factors[:, :1, :1].expand_as(factors))
    assert len(factors[:, 0, 0].unique()) == factors[:, 0, 0].numel()
    assert 0.05 < float(factors.std()) < 0.15


@pytest.mark.parametrize("how", [{}, {"jitter": 0.1}, {"cutmix_share": 1.0}, {"jitter": 0.1, "mixup_alpha": 0.5}])
@pytest.mark.parametrize("beside", [0, 3])
@pytest.mark.parametrize(("layout", "shape"), CASES)
def test_a_part_of_a_batch_is_augmented_as_in_the_whole(
    layout: Layout, shape: tuple[int, ...], beside: int, how: dict[str, float]
) -> None:
    parts = [torch.randn(shape), *([torch.randn(6, 5, 3, 3), torch.randn(6, beside)] if beside else [])]
    augmentation = drawn_for(parts, [layout, MAPS][: len(parts)], np.random.default_rng(3), **how)
    chosen = [4, 1, 5]
    partners = augmentation.partner[chosen]

    def some(images: Any) -> tuple[Tensor, ...]:
        return tuple(part[images] for part in parts)

    found = augmentation.apply(some(chosen), chosen, some(partners))
    assert torch.equal(found, augmentation.apply(tuple(parts))[chosen])


def test_networks_side_by_side_lose_the_same_rectangle() -> None:
    """Each in the grid of its network; features without positions are mixed in the shares of the first one's areas."""
    first, other, means = numbered((6, 5, 8, 8)), numbered((6, 3, 4, 4)), numbered((6, 2))
    for seed in range(20):
        augmentation = drawn_for([first, other, means], [MAPS, MAPS], np.random.default_rng(seed), cutmix_share=1.0)
        rows = augmentation.apply((first, other, means))
        parts = rows.split([5 * 64, 3 * 16, 2], 1)
        i = next((i for i in range(6) if augmentation.partner[i] != i), 0)
        large = parts[0][i].view(5, 8, 8)[0] != i
        small = parts[1][i].view(3, 4, 4)[0] != i
        top, left = (int(large.any(axis).float().argmax()) for axis in (1, 0))
        for axis, start in ((1, top), (0, left)):
            assert abs(2 * int(small.any(axis).sum()) - int(large.any(axis).sum())) <= 2
            if small.any():
                assert abs(2 * int(small.any(axis).float().argmax()) - start) <= 2
        share, partner = augmentation.share, float(augmentation.partner[i])
        assert torch.allclose(parts[2][i], torch.full((2,), share * i + (1 - share) * partner))


@pytest.mark.slow
def test_layouts_are_what_the_networks_state() -> None:
    assert Layout.of(random_backbone("resnet18", image_size=32).module) == MAPS
    assert Layout.of(random_backbone("swin_tiny_patch4_window7_224").module) == LAST
    assert Layout.of(random_backbone("vit_small_patch16_224").module) == Layout(prefix_tokens=1)
