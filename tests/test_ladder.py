"""The ladder: which rungs, and when a gain is more than noise."""

from __future__ import annotations

import numpy as np
import pytest

from headstart.backbone.split import SplittableBackbone
from headstart.backbone.weights import build_architecture
from headstart.errors import OptionError
from headstart.training.ladder import paired_p, plan_rungs, plan_text, room_for_gain
from headstart.training.recipe import Recipe


@pytest.fixture(scope="module")
def split() -> SplittableBackbone:
    return SplittableBackbone(build_architecture("tf_efficientnet_lite0"), height=224, width=224)


def boundaries(split: SplittableBackbone, **choices: object) -> list[str]:
    rungs = plan_rungs(Recipe(**choices), split, train=3000, rate=200.0)  # type: ignore[arg-type]
    return [rung.boundary.name for rung in rungs]


def test_each_effort_goes_deeper_from_the_last_groups_on(split: SplittableBackbone) -> None:
    quick, standard, thorough = (boundaries(split, effort=e) for e in ("quick", "standard", "thorough"))
    assert boundaries(split, effort="probe") == []
    assert quick == ["blocks.5"]
    order = [b.name for b in split.boundaries]
    for rungs in (standard, thorough):
        depths = [order.index(name) for name in rungs]
        assert depths == sorted(depths, reverse=True)
        assert len(set(depths)) == len(depths)
    assert len(thorough) > len(standard) > len(quick)


def test_unfreeze_names_the_first_part_that_is_trained(split: SplittableBackbone) -> None:
    assert boundaries(split, effort="standard", unfreeze="blocks.6") == ["blocks.5"]
    assert boundaries(split, effort="standard", unfreeze="blocks.5") == ["blocks.4"]
    assert boundaries(split, effort="standard", unfreeze="blocks.5.2") == ["blocks.5.1"]
    assert boundaries(split, effort="standard", unfreeze="all") == ["input"]
    with pytest.raises(OptionError, match=r"no part.*all, .*blocks\.6"):
        boundaries(split, effort="standard", unfreeze="layer4")


def test_choices_override_the_effort(split: SplittableBackbone) -> None:
    recipe = Recipe(effort="standard", epochs=7, views=5, lr=0.01, smoothing=0.2, cutmix=0.0, balance=True)
    for rung in plan_rungs(recipe, split, train=3000, rate=200.0):
        assert (rung.settings.epochs, rung.views, rung.settings.lr) == (7, 5, 0.01)
        assert (rung.settings.smoothing, rung.settings.cutmix) == (0.2, 0.0)
        assert rung.settings.balance
    (quick,), (last, _) = (plan_rungs(Recipe(effort=e), split, train=3000, rate=200.0) for e in ("quick", "standard"))
    assert (quick.settings.cutmix, last.settings.cutmix) == (0.3, 0.5)
    fresh = plan_rungs(Recipe(effort="standard", epochs=7, fresh_views=True), split, train=3000, rate=200.0)
    assert {rung.views for rung in fresh} == {14}
    assert [rung.settings.first_view for rung in fresh] == [0, 7]


def test_small_sets_get_more_epochs_but_no_more_than_a_bound(split: SplittableBackbone) -> None:
    few, many = (plan_rungs(Recipe(effort="quick"), split, train=n, rate=200.0)[0].settings for n in (100, 10_000))
    assert many.epochs < few.epochs <= 30


def test_the_plan_says_what_how_long_and_why(split: SplittableBackbone) -> None:
    rungs = plan_rungs(Recipe(effort="standard"), split, train=3000, rate=200.0)
    text = plan_text(rungs, train=3000, val=500, rate=200.0)
    assert len(text) == 3
    assert "features of 3,500 images" in text[0]
    assert "behind blocks.5 (" in text[1]
    assert f"about {rungs[0].seconds:.0f} s" in text[1]
    assert "only if the rung below gained" in text[2]


def test_a_gain_is_more_than_noise_by_an_exact_paired_test() -> None:
    before = np.array([True] * 90 + [False] * 10)
    after = before.copy()
    after[90:95] = True
    assert paired_p(before, after) == pytest.approx(0.5**5)
    after[0] = False  # five mended, one spoilt: 7 of 64 ways of six coins
    assert paired_p(before, after) == pytest.approx(7 / 64)
    assert paired_p(before, before) == 1.0
    assert paired_p(after, before) > 0.9


def test_with_four_mistakes_left_no_gain_could_be_shown() -> None:
    assert not room_for_gain(np.array([True] * 96 + [False] * 4))
    assert room_for_gain(np.array([True] * 95 + [False] * 5))
