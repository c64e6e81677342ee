"""The pieces for a training loop of one's own: they are those of the built-in one."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from random_images import write_classes
from torch import nn

import headstart as hs
from headstart.errors import OptionError
from headstart.pipeline.custom_loop import Workbench
from headstart.training.finetune import FineTuneSettings, fine_tune
from headstart.training.schedule import warmup_cosine

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_networks")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("data") / "two", {"first": 24, "second": 24})


def bench_on(data: Path, **choices: object) -> Workbench:
    return hs.prepare(data, **{"unfreeze": "blocks.6", "views": 2, "image_size": 64, "device": "cpu"} | choices)


@pytest.fixture
def bench(data: Path) -> Workbench:
    return bench_on(data)


def test_batches_show_every_image_once_an_epoch_in_an_order_of_the_seed(bench: Workbench) -> None:
    epochs = [list(bench.batches("train", epoch=epoch, batch_size=8)) for epoch in (0, 0, 1, 2)]
    labels = [torch.cat([own for _, own in batches]) for batches in epochs]
    images = [torch.cat([x for x, _ in batches]) for batches in epochs]
    assert all(len(x) <= 8 for batches in epochs for x, _ in batches)
    assert labels[0].tolist() == labels[1].tolist() != labels[2].tolist()
    assert all(sorted(own.tolist()) == sorted(labels[0].tolist()) for own in labels)
    assert torch.equal(images[0], images[1])
    seen = [{row.numpy().tobytes() for row in own} for own in images]
    assert not seen[0] & seen[2]  # two views of each image, in turn
    assert seen[0] == seen[3]
    val = list(bench.batches("val"))
    assert torch.equal(val[0][0], next(bench.batches("val", epoch=3))[0])


def test_only_what_lies_behind_the_boundary_is_trained(bench: Workbench) -> None:
    net = bench.classifier.train()
    frozen = copy.deepcopy(bench._prepared.loaded.backbone.module.state_dict())
    optimizer = torch.optim.SGD(net.trainable_parameters(), lr=0.1)
    for x, labels in bench.batches("train"):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
    tuned = bench.model().net.backbone.module.state_dict()
    changed = {name for name in tuned if not torch.equal(tuned[name], frozen[name])}
    assert changed == {name.removeprefix("backbone.") for name in net.trainable() if name.startswith("backbone.")}
    assert {name.split(".")[0] for name in changed} == {"blocks", "conv_head", "bn2"}
    assert frozen.keys() == tuned.keys()
    assert all(
        torch.equal(own, frozen[name]) for name, own in bench._prepared.loaded.backbone.module.state_dict().items()
    )


def test_the_model_gives_what_the_classifier_gives(bench: Workbench, tmp_path: Path) -> None:
    """Law 5."""
    with torch.no_grad():
        for parameter in bench.classifier.trainable_parameters():
            parameter.mul_(1.02)
    model = bench.model()
    assert model.scores["val"]["correct"] == bench.scores().correct
    assert model.scores["val"]["log_loss"] == pytest.approx(bench.scores().log_loss, abs=1e-4)
    loaded = hs.load(model.save(tmp_path / "model.safetensors"))
    files = list(bench._prepared.featurised.val.images.files)  # type: ignore[union-attr]
    with torch.no_grad():
        ours = torch.cat([bench.classifier(x) for x, _ in bench.batches("val")]).softmax(1).numpy()
    assert np.abs(loaded.predict_proba(files)[0] - ours).max() < 0.02  # bfloat16 against float32


@pytest.mark.exhaustive
def test_a_loop_by_hand_ends_where_the_built_in_one_does(data: Path) -> None:
    plain = FineTuneSettings(epochs=3, label_smoothing=0.0, cutmix=0.0, feature_jitter=0.0)
    ours, theirs = bench_on(data), bench_on(data)
    tuned = fine_tune(
        theirs._split,
        theirs.boundary,
        theirs.classifier.head,
        theirs._train,
        None,
        plain,
        dtype=theirs._prepared.planned.engines.training_dtype,
    )
    net = ours.classifier
    size = min(32, max(4, len(ours._train.labels) // 8))
    steps = 3 * sum(1 for _ in ours.batches("train", batch_size=size))
    groups = net.parameter_groups(plain.lr, decay=plain.decay, weight_decay=plain.weight_decay)
    optimizer, peaks, step = torch.optim.AdamW(groups, fused=True), [group["lr"] for group in groups], 0
    average = [p.detach().clone() for p in net.trainable_parameters()]
    for epoch in range(3):
        for x, labels in ours.batches("train", epoch=epoch, batch_size=size):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * warmup_cosine(step, steps, plain.warmup)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), labels).backward()
            nn.utils.clip_grad_norm_(net.trainable_parameters(), plain.clip)
            optimizer.step()
            keep = min(plain.ema, (2 + step) / (11 + step))
            torch._foreach_lerp_(average, [p.detach() for p in net.trainable_parameters()], 1 - keep)
            step += 1
    built_in = [*tuned.head.parameters(), *(p for _, part in theirs.classifier.parts for p in part.values())]
    for own, other in zip(average, built_in, strict=True):
        assert torch.allclose(own, other, atol=1e-5)


def test_what_cannot_be_trained_is_refused(data: Path, bench: Workbench, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no backbone layers would be trained"):
        bench_on(data, effort="probe", unfreeze=None, views=None)
    with pytest.raises(OptionError, match="train and val"):
        next(bench.batches("tset"))
    for name in ("train", "test"):
        write_classes(tmp_path / "given" / name, {"a": 6, "b": 6})
    without = bench_on(tmp_path / "given")
    with pytest.raises(OptionError, match="no validation images"):
        without.scores()


class OwnHead(nn.Module):
    def __init__(self, length: int) -> None:
        super().__init__()
        self.last = nn.Linear(length, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x)


def test_a_head_of_ones_own_layers_is_trained_saved_and_loaded(bench: Workbench, tmp_path: Path) -> None:
    net = bench.classifier
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net.head = nn.Sequential(nn.LayerNorm(128), nn.Sequential(nn.Linear(128, 16), nn.GELU()), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(net.trainable_parameters(), lr=1e-3)
    for x, labels in bench.batches("train"):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
    model = bench.model()
    loaded = hs.load(model.save(tmp_path / "model.safetensors"))
    files = list(bench._prepared.featurised.val.images.files)  # type: ignore[union-attr]
    assert np.array_equal(loaded.predict_proba(files)[0], model.predict_proba(files)[0])
    assert loaded.version == model.version


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (OwnHead(128), r"OwnHead \(OwnHead\) cannot be restored from a model file, which contains no code"),
        (nn.Sequential(nn.Linear(128, 8), nn.Softmax(1)), r"Sequential\.1 \(Softmax\)"),
        (nn.Linear(128, 3), r"the output per image has shape \(3,\); expected one output for each of the 2 classes"),
        (nn.Linear(64, 2), r"does not accept features of shape \(128,\)"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(128, 2)), "ParametrizedLinear"),
    ],
    ids=["module", "softmax", "classes", "features", "parametrised"],
)
def test_a_head_that_could_not_be_saved_is_refused_before_it_is_trained(
    bench: Workbench, head: nn.Module, words: str
) -> None:
    bench.classifier.head = head
    with pytest.raises(OptionError, match=words):
        next(bench.batches("train"))
    with pytest.raises(OptionError, match=r"head: expected text, got .*see headstart\.prepare") as raised:
        hs.train("nowhere", head=head)
    assert "\n" not in str(raised.value)
