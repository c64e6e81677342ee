"""The ladder: which rungs, and when a gain is more than noise."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headstart.backbone.layers import group_names
from headstart.backbone.split import SplittableBackbone
from headstart.backbone.weights import build_architecture
from headstart.errors import OptionError
from headstart.training.finetune import FineTuneSettings
from headstart.training.ladder import (
    LAST_LR,
    Rung,
    boundary_before,
    can_improve,
    check_depths,
    fold_settings,
    paired_p,
    plan_rungs,
    plan_text,
    trained_images,
)
from headstart.training.recipe import Recipe
from headstart.trust.temperature import calibrated_losses


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
    assert len(standard) > len(quick)
    most = {
        e: plan_rungs(Recipe(effort=e), split, train=3000, rate=200.0)[-1] for e in ("quick", "standard", "thorough")
    }  # type: ignore[arg-type]
    assert most["quick"].seconds < most["standard"].seconds < most["thorough"].seconds
    assert most["thorough"].views > most["standard"].views


def test_unfreeze_names_the_first_part_that_is_trained(split: SplittableBackbone) -> None:
    assert boundaries(split, effort="standard", unfreeze="blocks.6") == ["blocks.5"]
    assert boundaries(split, effort="standard", unfreeze="blocks.5") == ["blocks.4"]
    assert boundaries(split, effort="standard", unfreeze="blocks.5.2") == ["blocks.5.1"]
    assert boundaries(split, effort="standard", unfreeze="all") == ["input"]
    with pytest.raises(OptionError, match=r"no such layer group.*all, .*blocks\.6"):
        boundaries(split, effort="standard", unfreeze="layer4")


def test_an_unknown_part_is_answered_with_every_name_that_works(split: SplittableBackbone) -> None:
    with pytest.raises(OptionError, match=r"Did you mean blocks\.5\?") as error:
        boundaries(split, effort="quick", unfreeze="block.5")
    offered = str(error.value).split("There are: ")[1].rstrip(".").split(", ")
    for name in offered:
        assert boundary_before(name, split)
    assert {"all", "blocks", "blocks.5", "blocks.5.2", "blocks.6", "conv_head"} <= set(offered)
    groups = [name for name in group_names(split.module) if list(split.module.get_submodule(name).parameters())]
    works = []
    for name in groups:
        with contextlib.suppress(OptionError):
            works += [name] if boundary_before(name, split) else []
    assert set(works) <= set(offered)


def test_choices_override_the_effort(split: SplittableBackbone) -> None:
    recipe = Recipe(
        effort="standard", epochs=7, views=5, lr=0.01, label_smoothing=0.2, cutmix=0.0, balance_classes=True
    )
    for rung in plan_rungs(recipe, split, train=3000, rate=200.0):
        assert (rung.settings.epochs, rung.views, rung.settings.lr) == (7, 5, 0.01)
        assert (rung.settings.label_smoothing, rung.settings.cutmix) == (0.2, 0.0)
        assert rung.settings.balance_classes
    (quick,), (last, _) = (plan_rungs(Recipe(effort=e), split, train=3000, rate=200.0) for e in ("quick", "standard"))
    assert (quick.settings.cutmix, last.settings.cutmix) == (0.0, 0.5)
    fresh = plan_rungs(Recipe(effort="standard", epochs=7, fresh_views=True), split, train=3000, rate=200.0)
    assert {rung.views for rung in fresh} == {7}
    assert [rung.settings.first_view for rung in fresh] == [0, 0]
    recipe = Recipe(effort="standard", epochs=7, fresh_views=True, gradual_unfreezing=True)
    gradual = plan_rungs(recipe, split, train=3000, rate=200.0)  # never a view that the rung below has shown
    assert {rung.views for rung in gradual} == {14}
    assert [rung.settings.first_view for rung in gradual] == [0, 7]


@pytest.fixture(scope="module")
def transformer() -> SplittableBackbone:
    return SplittableBackbone(build_architecture("test_vit", image_size=32), height=32, width=32)


@pytest.mark.parametrize(
    ("tune", "name", "whole", "lr"),
    [
        ("auto", "fine-tune from blocks.4", "fine-tune all layers", 1e-4),
        ("full", "fine-tune from blocks.4", "fine-tune all layers", 1e-4),
        ("bias-norm", "bias and norm from blocks.4", "bias and norm of all layers", 1e-3),
        ("lora", "LoRA from blocks.4", "LoRA in all layers", 1e-3),
    ],
)
def test_a_rung_says_which_weights_it_trains_and_how_many(
    transformer: SplittableBackbone, tune: str, name: str, whole: str, lr: float
) -> None:
    def rung(unfreeze: str) -> Rung:
        recipe = Recipe(tune=tune, unfreeze=unfreeze)  # type: ignore[arg-type]
        return plan_rungs(recipe, transformer, train=3000, rate=200.0)[0]

    found = rung("blocks.4")
    assert (found.name, found.settings.lr) == (name, pytest.approx(lr))
    assert rung("all").name == whole
    text = plan_text([found], images=3500, train=3000, folds=0, first=25.0, last=12.0)
    matrices, vectors = 64 * (192 + 64 + 192 + 192), 192 + 64 + 192 + 64 + 4 * 64
    factors = 8 * ((64 + 192) + (64 + 64) + (64 + 192) + (192 + 64))
    full, norm = 2 * (matrices + vectors) + 128, 128
    expected = {"auto": full, "full": full, "bias-norm": 2 * vectors + norm, "lora": 2 * factors}[tune]
    assert found.num_trained == expected
    assert f"; {expected:,} weights)" in text[1]


@pytest.mark.parametrize(
    ("tune", "unfreeze", "rank", "words"),
    [
        (
            "lora",
            "blocks.6",
            8,
            r"the backbone has no linear layers\. Choose tune full or bias-norm, or another backbone\.$",
        ),
        ("lora", "all", 1, r"the backbone has no linear layers"),
    ],
)
def test_a_network_without_linear_layers_has_no_low_rank_updates(
    split: SplittableBackbone, tune: str, unfreeze: str, rank: int, words: str
) -> None:
    recipe = Recipe(tune=tune, unfreeze=unfreeze, lora_rank=rank)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=words):
        check_depths(recipe, split)
    (rung,) = plan_rungs(Recipe(tune="bias-norm", unfreeze="blocks.6"), split, train=3000, rate=200.0)
    assert rung.num_trained == 2 * (1152 + 1152 + 320 + 1280)  # scale and shift of each BatchNorm


def test_where_earlier_layers_have_what_is_trained_they_are_suggested(transformer: SplittableBackbone) -> None:
    with pytest.raises(OptionError, match=r"from norm on have no linear layers\. .*or unfreeze an earlier layer group"):
        check_depths(Recipe(tune="lora", unfreeze="norm"), transformer)
    with pytest.raises(OptionError, match=r"more weights than an update of rank 64\. Choose a smaller lora_rank"):
        check_depths(Recipe(tune="lora", unfreeze="blocks.4", lora_rank=64), transformer)


def test_small_sets_get_more_epochs_but_no_more_than_a_bound(split: SplittableBackbone) -> None:
    few, many = (plan_rungs(Recipe(effort="quick"), split, train=n, rate=200.0)[0].settings for n in (100, 10_000))
    assert many.epochs < few.epochs <= 30


def test_the_plan_says_what_how_long_and_why(split: SplittableBackbone) -> None:
    rungs = plan_rungs(Recipe(effort="standard"), split, train=3000, rate=200.0)
    text = plan_text(rungs, images=3500, train=3000, folds=0, first=25.0, last=12.0)
    assert len(text) == 4
    assert "features of 3,500 images" in text[0]
    assert "fine-tune from blocks.6 (" in text[1]
    assert f"about {rungs[0].seconds:.0f} s" in text[1]
    assert "and the previous rung is a significant gain" in text[2]
    assert f"about 12 s; about {37 + rungs[0].seconds:.0f} s in all without later rungs" in text[3]


def test_the_plan_counts_the_folds_of_a_cross_validation(split: SplittableBackbone) -> None:
    """Three folds, each trained on two thirds, and once on all: three times the steps."""
    alone, judged = (plan_rungs(Recipe(effort="quick"), split, train=300, rate=50.0, folds=f)[0] for f in (0, 2))
    more = trained_images(judged, 300, 2) - trained_images(alone, 300, 0)
    assert more == 300 * fold_settings(alone.settings).epochs  # half the images in each of two folds
    assert 1.5 < judged.seconds / alone.seconds < 2.2
    text = plan_text([judged], images=350, train=300, folds=2, first=9.0, last=9.0)
    assert "once in each of 2 folds and once on all images" in text[1]


def test_a_gain_is_more_than_noise_by_a_paired_test_of_the_losses() -> None:
    chance = np.random.default_rng(0)
    before = chance.exponential(size=200)
    by_chance = [paired_p(before, before + chance.normal(0, 0.3, 200)) for _ in range(400)]
    assert np.mean(np.array(by_chance) < 0.05) == pytest.approx(0.05, abs=0.03)  # as often as it says
    assert paired_p(before, before - 0.05 + chance.normal(0, 0.1, 200)) < 0.001
    assert paired_p(before - 0.05, before + chance.normal(0, 0.1, 200)) > 0.99
    assert paired_p(before, before) == 1.0
    assert paired_p(before[:1], before[:1] + 1) == 1.0


def test_losses_do_not_depend_on_how_sure_the_logits_are_in_all() -> None:
    chance = np.random.default_rng(0)
    labels = chance.integers(0, 4, 300)
    logits = chance.normal(size=(300, 4)) + 2.0 * np.eye(4)[labels]
    losses = calibrated_losses(logits, labels)
    assert losses.shape == (300,)
    assert np.allclose(losses, calibrated_losses(5.0 * logits + 7.0, labels), atol=1e-4)
    for scale in (0.3, 0.6, 1.5, 3.0):
        odds = scale * logits - np.log(np.exp(scale * logits).sum(1, keepdims=True))
        assert losses.mean() <= -odds[np.arange(300), labels].mean() + 1e-6


def test_folds_are_trained_for_fewer_epochs_and_otherwise_alike() -> None:
    for epochs, expected in ((1, 1), (2, 2), (6, 4), (22, 16)):
        settings = FineTuneSettings(epochs=epochs, lr=0.1)
        assert fold_settings(settings) == replace(settings, epochs=expected)


def test_with_four_mistakes_left_no_gain_could_be_shown() -> None:
    assert not can_improve(np.array([True] * 96 + [False] * 4))
    assert can_improve(np.array([True] * 95 + [False] * 5))


def test_few_layers_learn_by_larger_steps_unless_asked(split: SplittableBackbone) -> None:
    def rates(**choices: Any) -> list[float]:
        return [rung.settings.lr for rung in plan_rungs(Recipe(**choices), split, train=3000, rate=200.0)]

    assert rates(effort="standard") == [LAST_LR, FineTuneSettings.lr]
    assert rates(effort="quick") == rates(effort="quick", unfreeze="conv_head") == [LAST_LR]
    assert rates(effort="quick", unfreeze="blocks.5") == [FineTuneSettings.lr]
    assert rates(effort="standard", lr=0.01) == [0.01, 0.01]


@pytest.mark.exhaustive
def test_networks_without_batchnorm_learn_more_slowly_unless_asked() -> None:
    recipe = Recipe(effort="quick", unfreeze="all")
    for name, rate in (("test_convnext", 1e-4), ("test_resnet", 1e-3)):
        split = SplittableBackbone(build_architecture(name, image_size=64), height=64, width=64)
        assert plan_rungs(recipe, split, train=100, rate=10.0)[0].settings.lr == rate
        assert plan_rungs(replace(recipe, lr=0.01), split, train=100, rate=10.0)[0].settings.lr == 0.01


def test_the_boundary_before_a_part_is_the_last_one_without_weights_between() -> None:
    split = SplittableBackbone(build_architecture("test_resnet", image_size=64), height=64, width=64)
    firsts = {boundary.name: split.parts(boundary.name)[0][0] for boundary in split.boundaries[1:-1]}
    assert firsts["act1"] == firsts["maxpool"] == "layer1.0"
    assert boundary_before("layer1", split).name == "maxpool"


def test_what_is_for_one_class_to_an_image_is_off_for_several_labels_unless_asked_for(
    split: SplittableBackbone,
) -> None:
    for effort in ("quick", "standard", "thorough"):
        for rung in plan_rungs(Recipe(effort=effort), split, train=3000, rate=200.0, multi_label=True):
            assert (rung.settings.cutmix, rung.settings.label_smoothing) == (0.0, 0.0)
    asked = plan_rungs(
        Recipe(effort="quick", cutmix=0.4, label_smoothing=0.1), split, train=9, rate=1.0, multi_label=True
    )[0]
    assert (asked.settings.cutmix, asked.settings.label_smoothing) == (0.4, 0.1)
