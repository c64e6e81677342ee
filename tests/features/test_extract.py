"""Features on disk: computed once, by an engine that follows from the run's own images, and found under its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import DAMAGES
from damaged_reading import Reading, tally
from random_images import mislabel, write_classes
from safetensors.torch import save_file

import headstart as hs
from headstart.backbone.pixel_net import FeatureNet
from headstart.backbone.weights import Backbone, random_backbone
from headstart.cache.keys import content_key
from headstart.data.pixel_cache import pixel_store
from headstart.data.scan import scan
from headstart.engine import agreement, candidates
from headstart.engine.conv_bn_fusion import can_fold_for_inference
from headstart.engine.measure import measure_engines
from headstart.engine.plan import EnginePlan, read_plan
from headstart.engine.torch_engine import TorchEngine
from headstart.errors import WeightsError
from headstart.features.export import export_features
from headstart.features.extract import compute_features, feature_store, pick_sample
from headstart.progress import SilentProgress

CPU = torch.device("cpu")
folding = pytest.mark.skipif(not can_fold_for_inference(CPU), reason="this PyTorch has no oneDNN")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("test_resnet", image_size=32)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = write_classes(tmp_path_factory.mktemp("images"), {"blue": 20, "red": 20})
    return sorted(map(str, folder.rglob("*.png")))


@pytest.fixture
def low_precision(all_engines: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed precision and folded float32, on any processor and however coarse they are for weights that are random."""
    monkeypatch.setattr(candidates, "has_fast_bfloat16", lambda device: True)
    monkeypatch.setattr(candidates, "ONNX_WEIGHT_LIMIT", 0)
    monkeypatch.setattr(agreement, "MIXED_TOLERANCE", 0.5)


def read(files: Sequence[str], backbone: Backbone, cache: Path) -> list[bytes]:
    return scan(files, preprocessing=backbone.preprocessing, cache=cache).keys


def test_a_sample_is_stratified_and_follows_from_the_images_alone() -> None:
    keys = [content_key(bytes([n])) for n in range(100)]
    labels = np.repeat([0, 1, 2], [80, 15, 5])  # sorted by class, as folders are
    picked = pick_sample(keys, labels, 12)
    assert Counter(labels[picked].tolist()) == {0: 4, 1: 4, 2: 4}
    assert Counter(labels[pick_sample(keys, labels, 20)].tolist()) == {0: 8, 1: 7, 2: 5}
    order = np.random.default_rng(0).permutation(100)
    again = pick_sample([keys[i] for i in order], labels[order] * 7, 12)
    assert {keys[order[i]] for i in again} == {keys[i] for i in picked}
    assert sorted(pick_sample(keys[:9], labels[:9])) == list(range(9))
    assert len(pick_sample([keys[0]] * 9, labels[:9])) == 1


def test_a_sample_of_images_with_several_labels_has_all_combinations() -> None:
    keys = [content_key(bytes([n])) for n in range(40)]
    labels = np.array([[0, 0]] * 30 + [[1, 0]] * 6 + [[1, 1]] * 4)
    assert Counter(map(tuple, labels[pick_sample(keys, labels, 9)].tolist())) == {(0, 0): 3, (1, 0): 3, (1, 1): 3}


@pytest.mark.slow
@folding
def test_rows_are_kept_under_the_engine_that_made_them_also_where_another_was_planned(
    backbone: Backbone, images: list[str], low_precision: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where mixed precision was refused, float32 rows stood under the key of mixed ones, for all later runs."""
    net, keys = FeatureNet(backbone), read(images, backbone, tmp_path)
    sample = pixel_store(backbone.preprocessing, tmp_path).read(keys)
    plan = measure_engines(net, sample, count=40, device="cpu", cache=tmp_path)
    assert plan.fast == "mixed"
    options: dict[str, Any] = {"engines": plan, "sample": sample, "device": "cpu", "cache": tmp_path}
    with monkeypatch.context() as patch:
        patch.setattr(agreement, "MIXED_TOLERANCE", 1e-9)
        refused = compute_features(net, keys, exact=False, **options)
        assert compute_features(net, keys, exact=False, **options).folder == refused.folder
    exact = compute_features(net, keys, **options)
    assert refused.folder == exact.folder
    mixed = compute_features(net, keys, exact=False, **options)
    assert mixed.folder != refused.folder
    assert mixed.about["precision"] == plan.precision(False)
    assert not np.array_equal(mixed.read(keys), exact.read(keys))


@pytest.mark.slow
def test_the_engine_follows_from_all_images_that_are_asked_for_not_from_those_that_are_missing(
    backbone: Backbone, images: list[str], tmp_path: Path
) -> None:
    net = FeatureNet(backbone)
    keys, partly = read(images, backbone, tmp_path / "cold"), tmp_path / "partly"
    read(images, backbone, partly)
    few = compute_features(net, keys[:30], device="cpu", cache=partly)
    assert few.about["engine"] == "torch"
    compute_features(net, keys[:38], device="cpu", cache=partly)  # leaves two: fewer than are worth another engine
    warm = compute_features(net, keys, device="cpu", cache=partly)
    cold = compute_features(net, keys, device="cpu", cache=tmp_path / "cold")
    assert cold.about == warm.about
    assert cold.about["engine"] != "torch"
    assert np.array_equal(cold.read(keys), warm.read(keys))


def test_features_of_another_machine_are_not_found(backbone: Backbone, tmp_path: Path) -> None:
    net = FeatureNet(backbone)
    here = TorchEngine(net, CPU).identity
    folder = feature_store(net, here, tmp_path).folder
    for other in ({"machine": "another"}, {"library": "torch 0.0"}, {"engine": "folded"}, {"precision": "mixed ab"}):
        assert feature_store(net, here | other, tmp_path).folder != folder


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_give_no_numbers_are_named_and_nothing_is_kept(
    images: list[str], tmp_path: Path, value: float
) -> None:
    broken = random_backbone("test_resnet", image_size=32)
    next(broken.module.parameters()).data.fill_(value)
    keys = read(images[:4], broken, tmp_path)
    net = FeatureNet(broken)
    with pytest.raises(WeightsError, match=r"test_resnet \(.*\): the features of the images contain NaN.*option"):
        compute_features(net, keys, engines=EnginePlan(), device="cpu", cache=tmp_path)
    assert len(feature_store(net, TorchEngine(net, CPU).identity, tmp_path)) == 0


@pytest.mark.slow
@folding
def test_a_training_gives_the_same_weights_whatever_the_cache_holds(
    tmp_path: Path, low_precision: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 11: alone; after other data, predictions and an extraction in the same cache; once more when it is warm."""
    weights = tmp_path / "weights.safetensors"
    save_file(random_backbone("test_resnet", image_size=32).module.state_dict(), weights)
    options: dict[str, Any] = {"backbone": "test_resnet", "weights": str(weights), "image_size": 32, "device": "cpu"}
    one = write_classes(tmp_path / "one", {"blue": 40, "red": 40})
    other = write_classes(tmp_path / "other", {"green": 50, "red": 40}, first_seed=900)
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "shared"))
    alone = hs.train(one, out=tmp_path / "alone", cache=tmp_path / "fresh", **options)
    plan = read_plan(alone.folder / "checkpoints" / "engines.safetensors")
    assert plan is not None
    assert plan.fast == "mixed"
    before = hs.train(other, out=tmp_path / "before", **options)
    few = sorted(one.rglob("*.png"))[:35]
    hs.load(before.folder).predict(few)
    hs.load(alone.folder).predict(few)
    extracting = {name: value for name, value in options.items() if name != "device"}
    export_features(write_classes(tmp_path / "some", {"blue": 20, "red": 20}), tmp_path / "some.npz", **extracting)
    expected = alone.model_path.read_bytes()
    for name in ("after", "warm"):
        assert hs.train(one, out=tmp_path / name, **options).model_path.read_bytes() == expected, name


@pytest.mark.slow
def test_fine_tuning_gives_the_same_weights_whether_or_not_the_backbone_was_run(
    low_precision: None, tmp_path: Path
) -> None:
    """An engine changes the memory format of the weights that it runs, and kernels round otherwise in another."""
    data = mislabel(write_classes(tmp_path / "data", {"blue": 24, "red": 24}), "blue", "red", 24)
    options: dict[str, Any] = {"backbone": "test_resnet", "scratch": True, "effort": "quick", "epochs": 1}
    options |= {"image_size": 32, "device": "cpu", "cache": tmp_path / "cache"}
    cold, warm = (hs.train(data, out=tmp_path / name, **options) for name in ("cold", "warm"))
    assert cold.best != "probe"
    assert cold.model_path.read_bytes() == warm.model_path.read_bytes()


@pytest.mark.slow
@folding
def test_damaged_files_of_a_cache_change_no_number_and_end_no_run(
    low_precision: None, images: list[str], tmp_path: Path
) -> None:
    """benchmarks/damaged_cache.py does the same 3,000 times."""
    reading = Reading(images[::4])
    outcomes = tally(reading, tmp_path / "cache", tmp_path / "work", 2 * len(DAMAGES))
    assert outcomes == {"the same numbers": 2 * len(DAMAGES)}


@pytest.mark.slow
def test_what_is_damaged_is_said_once_and_read_from_the_images_again(images: list[str], tmp_path: Path) -> None:
    class Heard(SilentProgress):
        def __init__(self) -> None:
            self.said: list[str] = []

        def say(self, text: str) -> None:
            self.said.append(text)

    reading = Reading(images[:10])
    expected = reading.read(tmp_path)
    for file in tmp_path.rglob("rows.bin"):
        file.write_bytes(bytes(file.stat().st_size))
    heard = Heard()
    given = reading.read(tmp_path, heard)
    for file in tmp_path.rglob("rows.bin"):
        file.write_bytes(bytes(file.stat().st_size))
    reading.read(tmp_path, heard)
    assert all(np.array_equal(one, other) for one, other in zip(expected, given, strict=True))
    warnings = [text for text in heard.said if "were damaged" in text]
    kinds = list(dict.fromkeys(text.split(" in the cache")[0] for text in warnings))
    assert len(set(warnings)) == len(warnings)
    assert kinds == [f"Warning: some {what}" for what in ("facts of images", "pixels", "features", "activations")]
    assert all("headstart cache --verify" in text for text in warnings)
    heard.said.clear()
    reading.read(tmp_path, heard)
    assert not [text for text in heard.said if "damaged" in text]
