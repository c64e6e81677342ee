"""Fine-tuning: what it learns, what it leaves alone, and that a stop in the middle changes nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from small_fine_tuning import SETTINGS, Held, StopAt, Stopped, prepared
from torch import Tensor, nn

from headstart.backbone.split import INPUT, SplittableBackbone
from headstart.backbone.weights import build_architecture, random_backbone
from headstart.errors import TrainingError
from headstart.training.finetune import FineTuneResult, FineTuneSettings, fine_tune
from headstart.training.head_spec import HeadSpec
from headstart.training.heads import build_head, linear_head
from headstart.training.sampling import Samples
from headstart.training.suffix_classifier import SuffixClassifier
from headstart.training.suffix_evaluation import logits_of
from headstart.training.training_step import TrainingStep
from headstart.training.tuning import Tuning, trained_names, undecayed_names


def tuned(settings: FineTuneSettings = SETTINGS, **given: object) -> tuple[SplittableBackbone, FineTuneResult]:
    split, train, val, head = prepared()
    return split, fine_tune(split, "layer3", head, train, val, settings, **given)  # type: ignore[arg-type]


def state(split: SplittableBackbone) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in split.module.state_dict().items()}


def test_it_learns_and_changes_only_what_lies_behind_the_boundary() -> None:
    """Law 3."""
    split, train, val, head = prepared()
    before = state(split)
    found = fine_tune(split, "layer3", head, train, val, SETTINGS)
    changed = {name for name, tensor in split.module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(trained_names(split, "layer3"))
    assert all(name.startswith("layer4") for name in changed)
    assert not any("running" in name or "num_batches" in name for name in changed)
    assert not any(p.requires_grad for p in split.module.parameters())
    logits = logits_of(split, "layer3", val, found.head)
    assert (logits.argmax(1) == val.labels).mean() > 0.9
    assert (logits.argmax(1) == val.labels).sum() == found.best["correct"]


def test_updated_batchnorm_layers_learn_their_statistics_and_those_before_the_boundary_stay() -> None:
    split, train, val, head = prepared()
    before = state(split)
    found = fine_tune(split, "layer3", head, train, val, replace(SETTINGS, tuning=Tuning(update_batchnorm=True)))
    changed = {name for name, tensor in split.module.state_dict().items() if not torch.equal(tensor, before[name])}
    learnt = {name for name in changed if name.endswith(("running_mean", "running_var"))}
    assert learnt
    assert all(name.startswith("layer4") for name in changed)
    assert changed == set(trained_names(split, "layer3", Tuning(update_batchnorm=True)))
    right = logits_of(split, "layer3", val, found.head).argmax(1) == val.labels
    assert right.sum() == found.best["correct"] > 0.8 * len(right)


@pytest.mark.exhaustive
def test_fine_tuning_goes_on_from_any_head_and_leaves_the_one_it_was_given() -> None:
    split, train, val, _ = prepared()
    torch.manual_seed(0)
    head = build_head(HeadSpec.parse("32-16-0.2"), split.boundaries[-1].shape, 2)
    given = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    settings = replace(SETTINGS, epochs=25, lr=5e-3)
    found = fine_tune(split, "layer3", head, train, val, settings)
    assert all(torch.equal(tensor, given[name]) for name, tensor in head.state_dict().items())
    assert all(not torch.equal(tensor, given[name]) for name, tensor in found.head.state_dict().items())
    assert (logits_of(split, "layer3", val, found.head).argmax(1) == val.labels).mean() > 0.8


def test_the_kept_epoch_is_the_best_by_validation() -> None:
    _, found = tuned(replace(SETTINGS, epochs=6, lr=0.05))
    ranks = [(entry["correct"], -entry["log_loss"]) for entry in found.history]
    assert ranks.index(max(ranks)) == found.best["epoch"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_gives_others() -> None:
    """Law 11."""
    first, again, other = tuned()[0], tuned()[0], tuned(replace(SETTINGS, seed=1))[0]
    assert all(torch.equal(a, b) for a, b in zip(state(first).values(), state(again).values(), strict=True))
    assert not torch.equal(state(first)["layer4.0.conv1.weight"], state(other)["layer4.0.conv1.weight"])


def altering(split: SplittableBackbone, name: str) -> object:
    """A function that changes one number of a tensor at the third step."""

    def alter(done: TrainingStep) -> None:
        if done.step == 3:
            tensor = split.module.state_dict()[name]
            tensor.add_(1)

    return alter


FROZEN = ["conv1.0.weight", "layer1.0.bn1.running_mean", "layer4.0.bn1.running_var", "layer4.0.bn1.num_batches_tracked"]


@pytest.mark.parametrize("name", FROZEN)
def test_a_frozen_tensor_that_is_altered_while_it_trains_is_an_error_that_names_it(name: str) -> None:
    """Law 3; statistics behind the boundary are constants in a folded copy, and belong to what is frozen."""
    split, train, val, head = prepared()
    settings = replace(SETTINGS, epochs=1)
    with pytest.raises(TrainingError, match=f"layer3: {name} changed"):
        fine_tune(split, "layer3", head, train, val, settings, on_step=altering(split, name))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "frozen"), [(FROZEN[1], True), (FROZEN[2], False), (FROZEN[3], False)])
def test_where_batchnorm_learns_only_what_lies_before_the_boundary_is_frozen(name: str, frozen: bool) -> None:
    split, train, val, head = prepared()
    settings, given = (
        replace(SETTINGS, epochs=1, tuning=Tuning(update_batchnorm=True)),
        {"on_step": altering(split, name)},
    )
    if frozen:
        with pytest.raises(TrainingError, match=name):
            fine_tune(split, "layer3", head, train, val, settings, **given)  # type: ignore[arg-type]
    else:
        fine_tune(split, "layer3", head, train, val, settings, **given)  # type: ignore[arg-type]


def test_a_frozen_tensor_that_is_replaced_by_another_is_seen_too() -> None:
    split, train, val, head = prepared()

    def replace_it(_done: TrainingStep) -> None:
        norm = split.module.get_submodule("layer4.0.bn1")
        norm.running_mean = norm.running_mean + 1

    with pytest.raises(TrainingError, match=r"layer4\.0\.bn1\.running_mean"):
        fine_tune(split, "layer3", head, train, val, replace(SETTINGS, epochs=1), on_step=replace_it)  # type: ignore[arg-type]


def begun(update_batchnorm: bool) -> tuple[SplittableBackbone, Samples, Samples, nn.Module]:
    split, train, val, head = prepared()
    if update_batchnorm:
        torch.manual_seed(4)
        head = build_head(HeadSpec.parse("8-0.5"), split.boundaries[-1].shape, 2)
    return split, train, val, head


@cache
def never_stopped(update_batchnorm: bool) -> tuple[SplittableBackbone, FineTuneResult]:
    split, train, val, head = begun(update_batchnorm)
    return split, fine_tune(
        split, "layer3", head, train, val, replace(SETTINGS, tuning=Tuning(update_batchnorm=update_batchnorm))
    )


@pytest.mark.slow
@pytest.mark.parametrize("update_batchnorm", [False, True])
@pytest.mark.parametrize("stop_after", [1, 7, 13])
def test_a_stop_at_any_step_changes_no_bit_of_the_end(stop_after: int, update_batchnorm: bool) -> None:
    """Law 4, with BatchNorm and dropout at work too."""
    settings = replace(SETTINGS, tuning=Tuning(update_batchnorm=update_batchnorm))
    whole, expected = never_stopped(update_batchnorm)
    stop = StopAt(stop_after)
    split, train, val, head = begun(update_batchnorm)
    with pytest.raises(Stopped):
        fine_tune(split, "layer3", head, train, val, settings, on_step=stop)
    split, train, val, head = begun(update_batchnorm)
    assert stop.saved is not None
    found = fine_tune(split, "layer3", head, train, val, settings, start=stop.saved)
    assert all(torch.equal(a, b) for a, b in zip(state(split).values(), state(whole).values(), strict=True))
    own, other = found.head.state_dict(), expected.head.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in other)
    assert found.history == expected.history


def test_later_parts_learn_faster_than_earlier_ones() -> None:
    split, train, _, head = prepared()
    shape = (3, 32, 32)
    samples = replace(train, activations=Held(shape, train.labels, 1))
    before = state(split)
    fine_tune(split, INPUT, head, samples, None, replace(SETTINGS, epochs=1, decay=0.01, clip=1e9))
    moved = {
        n: float((t - before[n]).abs().max()) for n, t in split.module.state_dict().items() if n.endswith("bn2.weight")
    }
    order = [f"layer{n}.0.bn2.weight" for n in (1, 2, 3, 4)]
    assert all(0 < 10 * moved[a] < moved[b] for a, b in pairwise(order))


def test_a_loss_that_is_no_number_ends_training_with_the_remedy() -> None:
    with pytest.raises(TrainingError, match=r"in epoch 1 .* Choose a learning rate \(option lr\) below 1e\+30"):
        tuned(replace(SETTINGS, lr=1e30, clip=1e30))


@pytest.mark.parametrize(
    ("architecture", "spared"),
    [
        ("test_vit", {"cls_token", "pos_embed", "blocks.0.norm1.weight", "blocks.0.attn.qkv.bias"}),
        ("test_vit2", {"reg_token", "pos_embed"}),
        ("swin_tiny_patch4_window7_224", {"layers.3.blocks.1.attn.relative_position_bias_table"}),
        ("test_resnet", {"layer4.0.bn1.weight"}),
    ],
)
def test_weight_decay_leaves_positions_tokens_biases_and_norms_alone(architecture: str, spared: set[str]) -> None:
    module = build_architecture(architecture, initialise=False)
    undecayed = undecayed_names(module)
    named = getattr(module, "no_weight_decay", set)()
    assert spared | (set(named) & {name for name, _ in module.named_parameters()}) <= undecayed
    matrices = {name for name, p in module.named_parameters() if p.ndim > 1 and name.endswith(".weight")}
    assert matrices
    assert not matrices & undecayed


def test_what_a_layer_inside_the_network_lists_has_no_weight_decay_either() -> None:
    module = build_architecture("edgenext_xx_small", initialise=False)
    listed = {name for name, _ in module.named_parameters() if name.endswith(".temperature")}
    assert listed
    assert listed <= undecayed_names(module)


def test_norms_and_biases_have_no_weight_decay() -> None:
    module = random_backbone("test_vit", seed=1).module
    split = SplittableBackbone(module, height=160, width=160)
    head = linear_head(np.zeros((2, split.boundaries[-1].shape[0])), np.zeros(2))
    classifier = SuffixClassifier(split, INPUT, head)
    decayed = {
        id(p)
        for group in classifier.parameter_groups(1e-3, weight_decay=0.05)
        for p in group["params"]
        if group["weight_decay"]
    }
    assert decayed == {id(p) for name, p in module.named_parameters() if p.ndim > 1 and name.endswith(".weight")}


def test_validation_that_does_not_choose_is_scored_for_the_curve_alone() -> None:
    split, train, val, head = prepared()
    settings = replace(SETTINGS, epochs=4, lr=0.05)  # so large that the last epoch is hardly the best
    found = fine_tune(split, "layer3", head, train, val, settings, val_chooses=False)
    assert [entry["epoch"] for entry in found.history] == [0, 1, 2, 3]
    assert all("correct" in entry and "log_loss" in entry for entry in found.history)
    assert found.best == found.history[-1]
    without = prepared()
    fine_tune(without[0], "layer3", head, train, None, settings)
    assert all(torch.equal(a, b) for a, b in zip(state(split).values(), state(without[0]).values(), strict=True))


@pytest.mark.slow
def test_balance_weighs_a_rare_class_like_a_common_one() -> None:
    split, train, _, head = prepared()
    labels = np.array([0] * 36 + [1] * 4)
    noise = Samples(
        Held(next(b.shape for b in split.boundaries if b.name == "layer3"), np.zeros(40)), labels, train.keys, 3
    )
    settings = replace(SETTINGS, epochs=8, lr=3e-3, mixup=0.0, feature_jitter=0.0)
    shares = []
    for balance in (False, True):
        split = prepared()[0]
        found = fine_tune(split, "layer3", head, noise, None, replace(settings, balance_classes=balance))
        logits = logits_of(split, "layer3", noise, found.head)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        shares.append(float((odds / odds.sum(1, keepdims=True))[:, 1].mean()))
    assert shares[1] > 1.3 * shares[0]


def test_views_take_turns_and_validation_has_one() -> None:
    _, train, val, _ = prepared()
    seen = [dict(train.rows(range(40), epoch)) for epoch in range(3)]
    assert all({epoch[image] for epoch in seen} == {0, 1, 2} for image in range(40))
    assert val.rows([3, 1], 5) == [(3, 0), (1, 0)]
