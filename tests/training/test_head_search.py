"""Several heads at once: each as if it had been alone, the best by validation kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from recorded_progress import RecordedProgress
from sklearn.datasets import make_classification

from headstart.errors import TrainingError
from headstart.training import head_search
from headstart.training.fit_head import in_memory
from headstart.training.head_search import HeadSearchSettings, train_heads
from headstart.training.head_spec import HeadSpec
from headstart.training.sampling import FeatureRows, Samples

SETTINGS = HeadSearchSettings(rates=(1e-3, 1e-2), penalties=(1e-2, 1.0), epochs=6, batch_size=32)
DEEP, LINEAR, DROPS = HeadSpec.parse("16-8"), HeadSpec(), HeadSpec.parse("16-0.5")


def some(count: int, seed: int = 0, classes: int = 3) -> Samples:
    x, y = make_classification(
        600, 20, n_informative=10, n_classes=classes, n_clusters_per_class=2, class_sep=1.2, random_state=1
    )
    chosen = np.random.default_rng(seed).permutation(600)[:count]
    x = x * np.linspace(2, 50, 20) + np.linspace(-9, 9, 20)
    return in_memory(x[chosen].astype(np.float32), y[chosen].astype(np.int64))


def right(head: torch.nn.Module, samples: Samples) -> int:
    x = samples.activations.read([(i, 0) for i in range(len(samples.labels))])
    return int((head(x).argmax(1).numpy() == samples.labels).sum())


@pytest.mark.parametrize("spec", [LINEAR, DEEP, DROPS])
def test_heads_that_train_at_once_end_as_each_would_alone(spec: HeadSpec) -> None:
    train, val = some(200), some(100, seed=1)
    together = train_heads([spec], train, val, SETTINGS, classes=3)
    assert len(together.candidates) == 4
    if spec.dropout:
        return  # what it drops differs with the company
    for one in together.candidates:
        alone = replace(SETTINGS, rates=(one.lr,), penalties=(one.penalty,))
        if one is together.candidates[0]:  # first weights are drawn in turn: only the first begins the same
            found = train_heads([spec], train, val, alone, classes=3).best
            assert (found.correct, found.epoch) == (one.correct, one.epoch)
            assert found.log_loss == pytest.approx(one.log_loss, rel=1e-3)


def test_the_best_is_kept_with_the_weights_of_its_best_epoch() -> None:
    train, val = some(200), some(100, seed=1)
    found = train_heads([LINEAR, DEEP], train, val, SETTINGS, classes=3)
    ranks = [(one.correct, -one.log_loss) for one in found.candidates]
    assert found.best == found.candidates[ranks.index(max(ranks))]
    assert len({one.log_loss for one in found.candidates}) == 8  # each has a separate learning rate and weight decay
    assert right(found.head, val) == found.best.correct > 60
    assert str(found.best.spec) in found.reason
    assert not found.head.training


def test_the_learning_rate_and_the_penalty_are_each_heads_own() -> None:
    train, val = some(200), some(100, seed=1)
    settings = replace(SETTINGS, rates=(1e-9, 1e-2), penalties=(1e-2,))
    slow, fast = train_heads([LINEAR], train, val, settings, classes=3).candidates
    assert slow.log_loss > fast.log_loss + 0.1
    settings = replace(SETTINGS, rates=(1e-2,), penalties=(0.0, 100.0), epochs=30)
    free, bound = train_heads([LINEAR], train, val, settings, classes=3).candidates
    assert bound.log_loss > free.log_loss + 0.1


def test_without_validation_some_training_images_choose() -> None:
    found = train_heads([DEEP], some(200), None, SETTINGS, classes=3)
    assert "40 training images that were held out" in found.reason
    assert right(found.head, some(100, seed=1)) > 60
    small = train_heads([DEEP], some(12), None, SETTINGS, classes=3)
    assert "too few to choose it" in small.reason


def test_a_class_of_one_image_does_not_keep_the_others_from_choosing() -> None:
    train = some(200)
    rare = np.r_[np.flatnonzero(train.labels != 2), np.flatnonzero(train.labels == 2)[:1]]
    found = train_heads([LINEAR], train.some(rare), None, SETTINGS, classes=3)
    assert "training images that were held out" in found.reason


def test_the_same_seed_gives_the_same_head_and_another_gives_another() -> None:
    """Law 11, dropout included."""
    train, val = some(120), some(60, seed=1)
    states = []
    for seed in (0, 0, 1):
        torch.rand(3)  # whatever was drawn before
        states.append(
            train_heads([DROPS], train, val, replace(SETTINGS, seed=seed), classes=3).head.state_dict()["0.weight"]
        )
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_batch_norm_of_a_convolution_learns_its_statistics() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    maps = rng.normal(size=(80, 6, 3, 3)).astype(np.float32) * 4 + 2
    maps[labels == 1, :2] += 6
    train, val = in_memory(maps[:60], labels[:60]), in_memory(maps[60:], labels[60:])
    settings = replace(SETTINGS, rates=(1e-2, 2e-2), penalties=(0.0,), epochs=10, batch_size=12)
    found = train_heads([HeadSpec.parse("conv4-avg")], train, val, settings, classes=2)
    assert right(found.head, val) == found.best.correct >= 18
    assert float(found.head[2].running_mean.abs().max()) > 0.1  # type: ignore[operator, union-attr]


def test_heads_with_many_weights_are_tried_with_one_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_search, "WEIGHTS_AT_ONCE", 1500)
    found = train_heads([DEEP], some(100), some(60, seed=1), replace(SETTINGS, penalties=(0.0, 0.1, 1.0)), classes=3)
    assert [(one.lr, one.penalty) for one in found.candidates] == [(1e-3, 0.1), (1e-2, 0.1)]


def test_a_head_that_does_not_converge_says_so_and_one_that_diverges_is_an_error() -> None:
    data, said = some(60), RecordedProgress()
    spec = HeadSpec.parse("8")
    calm = HeadSearchSettings(rates=(1e-3,), penalties=(0.0,), epochs=2)
    train_heads([spec], data, None, calm, classes=3, progress=said)
    assert said.said == []
    train_heads([spec], data, None, replace(calm, rates=(30.0,), epochs=3), classes=3, progress=said)
    assert len(said.said) == 1
    assert "Choose a learning rate (option head_lr) below 30" in said.said[0]
    broken = replace(data, activations=FeatureRows(torch.full((60, 20), float("nan"))))
    with pytest.raises(TrainingError, match="its loss is not a finite number"):
        train_heads([spec], broken, None, calm, classes=3)


def test_no_group_is_held_out_in_part() -> None:
    """Each group is one scene whose label says nothing of other scenes: torn apart, the best head looks perfect."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 10)
    x = (rng.normal(size=(40, 60))[group] + 0.05 * rng.normal(size=(400, 60))).astype(np.float32)
    y = rng.integers(0, 2, 40)[group]
    settings = HeadSearchSettings(epochs=3, rates=(1e-2, 1e-3))
    torn, apart = (
        train_heads([HeadSpec()], in_memory(x, y), None, settings, classes=2, together=own) for own in (None, group)
    )
    assert max(one.correct for one in torn.candidates) > 70
    assert max(one.correct for one in apart.candidates) < 64
