"""Extending: new classes behind those that a classifier knows, and nothing forgotten."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from random_images import write_classes
from safetensors.torch import save_file

import headstart as hs
from headstart.backbone.batchnorm_prior import average_features
from headstart.backbone.pixel_net import FeatureNet
from headstart.backbone.weights import build_architecture, load_backbone, load_with_classifier, random_backbone
from headstart.errors import DataError, OptionError, WeightsError
from headstart.training.extend import MAX_FORGOTTEN, RehearsalSamples, Rows, extend_rows, synthesise_features
from headstart.training.head_spec import HeadSpec
from headstart.training.heads import build_head, head_with_rows

SMALL = {"image_size": 64, "device": "cpu"}


def clouds(classes: int, each: int, *, seed: int = 0, size: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Features in ``classes`` clouds that touch; (classes * each, size) float32 and labels."""
    rng = np.random.default_rng(seed)
    centres = 1.6 * np.random.default_rng(1).normal(size=(classes, size))
    labels = np.repeat(np.arange(classes), each)
    return (centres[labels] + rng.normal(size=(len(labels), size))).astype(np.float32), labels


def ideal_rows(classes: int, size: int = 12) -> Rows:
    """The classifier that knows the clouds: linear discriminants."""
    centres = 1.6 * np.random.default_rng(1).normal(size=(classes, size))
    return Rows(centres, -0.5 * (centres**2).sum(axis=1))


def all_of(rows: Rows) -> Rows:
    return Rows(rows.weight[:6], rows.bias[:6])


@pytest.mark.parametrize("train_old", [False, True])
def test_new_rows_find_their_images_and_rehearsal_images_keep_their_classes(train_old: bool) -> None:
    x, y = clouds(8, 120)
    old = all_of(ideal_rows(8))
    kept = RehearsalSamples(x[y < 6], y[y < 6])
    found = extend_rows(old, x[y >= 6], y[y >= 6] - 6, kept, classes=2, train_old=train_old)
    assert found.rows.weight.shape == (8, 12)
    assert np.array_equal(found.rows.weight[:6], old.weight) != train_old
    fresh, right = clouds(8, 200, seed=5)
    given, before = found.rows.logits(fresh).argmax(axis=1), old.logits(fresh).argmax(axis=1)
    known = right < 6
    assert (given[~known] == right[~known]).mean() > 0.8
    was, now = (before[known] == right[known]).mean(), (given[known] == right[known]).mean()
    assert was - now < 0.02
    assert found.lost <= MAX_FORGOTTEN
    assert found.found == pytest.approx((given[~known] >= 6).mean(), abs=0.08)


def test_the_old_classifiers_own_answers_stand_in_for_labels() -> None:
    x, y = clouds(8, 120)
    old = all_of(ideal_rows(8))
    found = extend_rows(old, x[y >= 6], y[y >= 6] - 6, RehearsalSamples(x[y < 6], np.full(720, -1)), classes=2)
    fresh, right = clouds(8, 200, seed=5)
    known = right < 6
    same = found.rows.logits(fresh[known]).argmax(axis=1) == old.logits(fresh[known]).argmax(axis=1)
    assert same.mean() > 0.98


def test_stepping_back_changes_nothing_among_the_new() -> None:
    x, y = clouds(8, 60)
    old = all_of(ideal_rows(8))
    new, kept = (x[y >= 6], y[y >= 6] - 6), RehearsalSamples(x[y < 6] + 0.8, y[y < 6])
    found = extend_rows(old, *new, kept, classes=2)
    assert found.step_back > 0
    forward = found.rows.logits(x)[:, 6:] + found.step_back
    assert np.array_equal(forward.argmax(axis=1), found.rows.logits(x)[:, 6:].argmax(axis=1))


def test_synthesised_features_show_their_classes_about_an_average_image() -> None:
    x, y = clouds(8, 60)
    old = all_of(ideal_rows(8))
    made = synthesise_features(old, np.zeros(12), x[y >= 6], y[y >= 6] - 6)
    assert made.is_synthesised
    assert set(made.labels) == {-1}
    assert len(made.features) % 6 == 0
    given = old.logits(made.features).argmax(axis=1)
    assert (given == np.repeat(np.arange(6), len(given) // 6)).mean() > 0.8


@pytest.mark.slow
def test_an_average_image_is_what_the_last_batchnorm_says() -> None:
    net = FeatureNet(load_backbone(image_size=64))
    average = average_features(net)
    assert average is not None
    assert average.shape == (1280,)
    norm = net.backbone.module.bn2
    z = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    drawn = torch.clamp(norm.bias + norm.weight * z, 0, 6).mean(0).numpy()
    assert np.abs(average - drawn).max() < 0.03
    assert average_features(FeatureNet(random_backbone("resnet18", image_size=64))) is None
    assert average_features(FeatureNet(random_backbone("vit_tiny_patch16_224"))) is None


@pytest.mark.parametrize("single", [False, True])
def test_a_head_gets_rows_for_its_last_layer(single: bool) -> None:
    head = build_head(HeadSpec(widths=(5,), single=single), (7,), 2)
    weight, bias = np.ones((4, 5)), np.arange(4.0)
    other = head_with_rows(head, weight, bias)
    x = torch.randn(3, 7)
    inner = torch.relu(head[0](x))
    assert torch.allclose(other(x), inner @ torch.ones(5, 4) + torch.arange(4.0))


def test_the_pretrained_classifier_is_the_one_that_the_weights_came_with() -> None:
    backbone, known = load_with_classifier(image_size=64)
    assert len(known.classes) == len(set(known.classes)) == 1000
    assert known.classes[985] == "n11939491 daisy"
    assert known.weight.shape == (1000, 1280)
    assert backbone.fingerprint == load_backbone(image_size=64).fingerprint


@pytest.mark.slow
def test_the_classifier_is_read_from_a_weights_file(tmp_path: Path) -> None:
    module = build_architecture("resnet18", image_size=64, classes=7)
    save_file(module.state_dict(), tmp_path / "seven.safetensors")
    backbone, known = load_with_classifier("resnet18", weights=tmp_path / "seven.safetensors", image_size=64)
    assert known.classes == tuple(f"class {i}" for i in range(7))
    assert torch.equal(known.weight, module.fc.weight)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(backbone.module(x) @ known.weight.T + known.bias, module(x), atol=1e-4)
    bare = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith("fc.")}
    save_file(bare, tmp_path / "bare.safetensors")
    with pytest.raises(WeightsError, match="contains no classifier"):
        load_with_classifier("resnet18", weights=tmp_path / "bare.safetensors", image_size=64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_classes(root / "two", {"blue": 16, "green": 16})
    write_classes(root / "more", {"red": 16, "green": 4}, first_seed=900)
    write_classes(root / "one", {"grey": 12}, first_seed=1800)
    write_classes(root / "others", {"any": 12}, first_seed=2700)
    return root


@pytest.fixture(scope="module")
def grown(folders: Path) -> hs.Run:
    first = hs.train(folders / "two", out=folders / "first", **SMALL)
    return hs.train(folders / "more", out=folders / "second", extend=str(first.folder), device="cpu")


def test_a_models_classes_stay_and_the_new_ones_stand_behind(grown: hs.Run, folders: Path) -> None:
    """Images of a class that is known already are rehearsal with the rest."""
    before, after = hs.load(folders / "first"), hs.load(grown.model_path)
    assert after.classes == ("blue", "green", "red")
    assert torch.equal(after.head[0].weight[:2], before.head[0].weight)
    assert {"old classes", "val"} <= set(grown.results)
    assert grown.results["old classes"].accuracy > 0.8
    reds = after.predict(sorted((folders / "more" / "red").glob("*.png")))
    assert sum(p.label == "red" for p in reds) >= 14
    document = json.loads((grown.folder / "run.json").read_text())
    assert document["head"]["name"] == "extension"
    assert document["head"]["old_classes"] == 2
    again = {part.scores.name: part.scores for part in hs.evaluate(grown.folder)}
    assert again["val"].correct == grown.results["val"].correct


@pytest.mark.exhaustive
def test_a_second_extension_works_like_the_first(grown: hs.Run, folders: Path) -> None:
    """All that the first models learnt from is rehearsal still."""
    third = hs.train(folders / "one", out=folders / "third", extend=str(grown.folder), device="cpu")
    assert hs.load(third.model_path).classes == ("blue", "green", "red", "grey")
    with open(third.folder / "rehearsal.csv", newline="") as file:
        rehearsal = list(csv.DictReader(file))
    assert {row["label"] for row in rehearsal} == {"blue", "green", "red"}
    assert {row["split"] for row in rehearsal} == {"train", "val"}
    assert "val, new classes only" not in third.results  # one class alone


@pytest.mark.exhaustive
def test_imagenets_classes_are_extended_with_synthesised_features(folders: Path) -> None:
    is_synthesised = hs.train(folders / "two", out=folders / "is_synthesised", extend="pretrained", **SMALL)
    assert is_synthesised.results["val, new classes only"].accuracy > 0.8
    assert "old classes" not in is_synthesised.results
    assert json.loads((is_synthesised.folder / "run.json").read_text())["head"]["is_synthesised"] is True


@pytest.mark.exhaustive
def test_imagenets_classes_are_extended_from_images_to_remember(folders: Path) -> None:
    named = {"extend": "pretrained", "rehearsal": str(folders / "others")}
    real = hs.train(folders / "two", out=folders / "real", **named, **SMALL)
    model = hs.load(real.model_path)
    assert len(model.classes) == 1002
    assert model.classes[-2:] == ("blue", "green")
    assert real.results["val, new classes only"].accuracy > 0.8
    assert real.results["old classes"].count > 0
    assert json.loads((real.folder / "run.json").read_text())["head"]["is_synthesised"] is False
    assert "1002 classes" in real.report_path.read_text()
    header = (real.folder / "predictions.csv").read_text().splitlines()[0]
    assert header.count("p:") < 50  # classes that do not occur are left out


@pytest.mark.slow
def test_what_cannot_be_extended_is_refused(folders: Path, grown: hs.Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="already has every class of the data"):
        hs.train(folders / "two", out=tmp_path / "a", extend=str(grown.folder), device="cpu")
    with pytest.raises(OptionError, match="no images of its existing classes were found"):
        hs.train(folders / "one", out=tmp_path / "b", extend=str(grown.model_path), device="cpu")
    near = hs.train(folders / "two", out=tmp_path / "near", probe="knn", **SMALL)
    with pytest.raises(OptionError, match="no weights per class"):
        hs.train(folders / "one", out=tmp_path / "c", extend=str(near.folder), device="cpu")
    for choices in ({"effort": "quick"}, {"head": "16"}, {"backbone": "resnet18"}):
        with pytest.raises(OptionError, match="extending keeps"):
            hs.train(folders / "one", extend=str(grown.folder), **choices)
    with pytest.raises(OptionError, match="belongs to extend"):
        hs.train(folders / "one", rehearsal="x")
    with pytest.raises(DataError, match="a classifier needs at least two"):
        hs.train(folders / "one", out=tmp_path / "d")
