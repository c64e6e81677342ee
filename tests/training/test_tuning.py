"""Which weights are trained: all, biases and norms, or low-rank updates."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from small_fine_tuning import SETTINGS, StopAt, Stopped, never_trained, prepared
from torch import Tensor

from headstart.backbone.split import HEAD, INPUT, SplittableBackbone
from headstart.errors import TrainingError
from headstart.training.finetune import FineTuneResult, fine_tune
from headstart.training.frozen_proof import digests_of, tensors_of
from headstart.training.suffix_classifier import SuffixClassifier
from headstart.training.suffix_evaluation import logits_of
from headstart.training.training_step import TrainingStep
from headstart.training.tuning import (
    Tuning,
    changed_names,
    trained_by_boundary,
    trained_counts,
    trained_names,
)

LORA, BIAS_NORM = Tuning("lora", rank=4), Tuning("bias-norm")
VIT = ("test_vit", "blocks.3")
"""A vision transformer of 64 channels, and a boundary with two blocks of it after it."""

RESNET = ("test_resnet", "layer3")
LEARNS = replace(SETTINGS, lr=1e-2, cutmix=0.0, decay=1.0, epochs=8)


def tuned(tuning: Tuning, network: tuple[str, str] = VIT, **given: object) -> tuple[SplittableBackbone, FineTuneResult]:
    split, train, val, head = prepared(*network)
    settings = replace(LEARNS, tuning=tuning)
    return split, fine_tune(split, network[1], head, train, val, settings, **given)  # type: ignore[arg-type]


def state(split: SplittableBackbone) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in split.module.state_dict().items()}


def test_low_rank_updates_are_counted_by_rank_and_sides_of_each_linear_layer() -> None:
    split = never_trained(VIT[0])
    sides = {"attn.qkv": (64, 192), "attn.proj": (64, 64), "mlp.fc1": (64, 192), "mlp.fc2": (192, 64)}
    blocks = ("blocks.4", "blocks.5")
    expected = {f"{block}.{layer}.weight": 4 * sum(pair) for block in blocks for layer, pair in sides.items()}
    assert trained_counts(split, VIT[1], LORA) == expected
    assert sum(expected.values()) == 2 * 4 * (256 + 128 + 256 + 256)


def test_biases_and_norms_are_all_vectors_but_layer_scales() -> None:
    split = never_trained(VIT[0])
    counts = trained_counts(split, VIT[1], BIAS_NORM)
    named = dict(split.module.named_parameters())
    after = {name for _, part in split.parts(VIT[1]) for name in part}
    assert set(counts) == {name for name in after if named[name].ndim == 1 and "gamma" not in name}
    assert {"blocks.5.norm1.weight", "blocks.5.mlp.fc1.bias", "norm.weight"} <= set(counts)
    assert all(count == named[name].numel() for name, count in counts.items())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("tuning", [Tuning(), BIAS_NORM, LORA])
def test_the_classifier_trains_as_many_weights_as_are_counted(architecture: str, tuning: Tuning) -> None:
    split, _, _, head = prepared(architecture, INPUT)
    by_boundary = trained_by_boundary(split, tuning)
    for boundary in split.boundaries:
        counted = sum(trained_counts(split, boundary.name, tuning).values())
        assert by_boundary[boundary.name] == counted
        if boundary.name == HEAD:
            assert counted == 0
            continue
        trainable = SuffixClassifier(split, boundary.name, head, tuning=tuning).trainable()
        assert sum(p.numel() for name, p in trainable.items() if not name.startswith("head.")) == counted
        assert all(p.requires_grad for p in trainable.values())


@pytest.mark.parametrize(
    ("tuning", "network"),
    [(LORA, VIT), pytest.param(BIAS_NORM, VIT, marks=pytest.mark.slow), (BIAS_NORM, RESNET)],
    ids=["lora", "bias-norm", "resnet"],
)
def test_it_learns_and_changes_only_what_it_says(tuning: Tuning, network: tuple[str, str]) -> None:
    """Law 3; BatchNorm's statistics stay, though its scale and shift are trained."""
    split, train, val, head = prepared(*network)
    before = state(split)
    found = fine_tune(split, network[1], head, train, val, replace(LEARNS, tuning=tuning))
    changed = {name for name, tensor in split.module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(changed_names(split, network[1], tuning))
    assert not any("running" in name for name in changed)
    assert split.module.state_dict().keys() == before.keys()
    assert not any(p.requires_grad for p in split.module.parameters())
    logits = logits_of(split, network[1], val, found.head)
    assert (logits.argmax(1) == val.labels).sum() == found.best["correct"] > 0.7 * len(val.labels)
    assert found.history[-1]["accuracy"] > 0.9


def test_the_proof_is_of_the_network_before_low_rank_updates_are_merged() -> None:
    """Law 3: until then every tensor of the backbone is frozen."""
    split, train, val, head = prepared(*VIT)
    before = digests_of(tensors_of(split.module))
    assert trained_names(split, VIT[1], LORA) == []
    found = fine_tune(split, VIT[1], head, train, val, replace(LEARNS, epochs=1, tuning=LORA))
    assert before.items() <= found.frozen.items()
    after = digests_of(tensors_of(split.module))
    assert {name for name in before if before[name] != after[name]} == set(changed_names(split, VIT[1], LORA))


@pytest.mark.parametrize(
    ("tuning", "name"),
    [
        (LORA, "blocks.5.attn.qkv.weight"),
        (LORA, "blocks.5.attn.qkv.bias"),
        (LORA, "blocks.2.norm1.weight"),
        (BIAS_NORM, "blocks.5.mlp.fc1.weight"),
    ],
)
def test_a_weight_that_is_altered_although_only_something_beside_it_is_trained_is_an_error(
    tuning: Tuning, name: str
) -> None:
    split, train, val, head = prepared(*VIT)

    def alter(done: TrainingStep) -> None:
        if done.step == 3:
            split.module.state_dict()[name].add_(1)

    with pytest.raises(TrainingError, match=f"blocks.3: {name} changed"):
        fine_tune(split, VIT[1], head, train, val, replace(LEARNS, epochs=1, tuning=tuning), on_step=alter)


@pytest.mark.slow
def test_low_rank_updates_are_trained_in_bfloat16_and_merged_in_float32() -> None:
    split, found = tuned(LORA, dtype=torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in split.module.parameters())
    assert found.history[-1]["accuracy"] > 0.9
    val = prepared(*VIT)[2]
    correct = (logits_of(split, VIT[1], val, found.head).argmax(1) == val.labels).sum()
    assert abs(correct - found.best["correct"]) <= 1  # evaluated in bfloat16 while it was trained


@cache
def never_stopped(tuning: Tuning) -> tuple[SplittableBackbone, FineTuneResult]:
    return tuned(tuning)


@pytest.mark.slow
@pytest.mark.parametrize("tuning", [LORA, BIAS_NORM], ids=["lora", "bias-norm"])
@pytest.mark.parametrize("stop_after", [1, 7, 13])
def test_a_stop_at_any_step_changes_no_bit_of_the_end(stop_after: int, tuning: Tuning) -> None:
    """Law 4."""
    whole, expected = never_stopped(tuning)
    stop = StopAt(stop_after)
    with pytest.raises(Stopped):
        tuned(tuning, on_step=stop)
    assert stop.saved is not None
    split, found = tuned(tuning, start=stop.saved)
    assert all(torch.equal(a, b) for a, b in zip(state(split).values(), state(whole).values(), strict=True))
    own, other = found.head.state_dict(), expected.head.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in other)
    assert found.history == expected.history


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_gives_others() -> None:
    """Law 11."""
    first, again = tuned(LORA)[0], tuned(LORA)[0]
    assert all(torch.equal(a, b) for a, b in zip(state(first).values(), state(again).values(), strict=True))
    split, train, val, head = prepared(*VIT)
    fine_tune(split, VIT[1], head, train, val, replace(LEARNS, tuning=LORA, seed=1))
    name = "blocks.5.attn.qkv.weight"
    assert not torch.equal(state(first)[name], state(split)[name])


@pytest.mark.parametrize("tuning", [LORA, BIAS_NORM])
def test_low_rank_factors_have_weight_decay_and_biases_and_norms_have_none(tuning: Tuning) -> None:
    split, _, _, head = prepared(*VIT)
    classifier = SuffixClassifier(split, VIT[1], head, tuning=tuning)
    groups = classifier.parameter_groups(1e-3, decay=0.5, weight_decay=0.05)
    decayed = [id(p) for group in groups for p in group["params"] if group["weight_decay"]]
    factors = [id(p) for update in classifier.updates.values() for p in (update.lora_a, update.lora_b)]
    assert set(decayed) == set(factors)
    assert {group["lr"] for group in groups} >= {1e-3, 5e-4}
