from __future__ import annotations

import copy
import dataclasses
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_images import random_image
from safetensors import safe_open
from safetensors.torch import save_file

import headstart
from headstart.backbone.feature_spec import FeatureSpec
from headstart.backbone.pixel_net import FeatureNet, feature_shape
from headstart.backbone.weights import fingerprint, random_backbone
from headstart.engine.select import choose_engine
from headstart.errors import ModelFileError
from headstart.model import Model, load
from headstart.model_schema import FORMAT_VERSION
from headstart.prediction import Prediction
from headstart.training.head_spec import HeadSpec
from headstart.training.heads import build_head, linear_head
from headstart.training.recipe import Recipe
from headstart.trust.calibration import Calibration


@pytest.fixture(scope="module")
def model() -> Model:
    net = FeatureNet(random_backbone("test_resnet", image_size=64), FeatureSpec("avgmax"))
    weight = np.random.default_rng(0).normal(size=(3, feature_shape(net)[0])).astype(np.float32)
    return Model(
        net,
        linear_head(weight, np.array([0.1, 0, -0.1])),
        ["9", "10", "é"],
        recipe=Recipe(),
        data={"a": 1},
        scores={},
    )


def alike(one: tuple[tuple[str, float], ...], two: tuple[tuple[str, float], ...]) -> bool:
    """Same labels in the same order; the last bits of a probability depend on the size of the batch."""
    return [label for label, _ in one] == [label for label, _ in two] and np.allclose(
        [chance for _, chance in one], [chance for _, chance in two], atol=1e-6
    )


def changed_header(source: Path, target: Path, change: dict[str, object]) -> Path:
    """The same file with other values in its header; the tensors as they were."""
    data = source.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + length])
    document = json.loads(head["__metadata__"]["headstart"]) | change
    head["__metadata__"]["headstart"] = json.dumps(document)
    text = json.dumps(head).encode()
    target.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return target


def test_a_model_file_gives_back_everything(model: Model, tmp_path: Path) -> None:
    again = load(model.save(tmp_path / "m.safetensors"))
    assert again.classes == ("9", "10", "é")
    assert again.preprocessing == model.preprocessing
    assert again.net.spec == FeatureSpec("avgmax")
    assert again.recipe == model.recipe
    assert again.data == {"a": 1}
    assert again.libraries == model.libraries
    assert fingerprint(again.net.backbone.module.state_dict()) == model.net.backbone.fingerprint
    images = [random_image(i) for i in range(3)]
    assert [p.top for p in again.predict(images)] == [p.top for p in model.predict(images)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cut", "pool", "head"), [("layer2", "none", "conv6-flatten-4-0.5"), ("layer3", "flatten", "8")]
)
def test_a_backbone_that_ends_early_is_saved_without_what_lies_behind(
    cut: str, pool: str, head: str, tmp_path: Path
) -> None:
    net = FeatureNet(random_backbone("test_resnet", image_size=64), FeatureSpec(pool, cut))  # type: ignore[arg-type]
    layers = build_head(HeadSpec.parse(head), feature_shape(net), 3)
    model = Model(net, layers, ["a", "b", "c"], recipe=Recipe(), data={}, scores={})
    again = load(model.save(tmp_path / "m.safetensors"))
    with safe_open(tmp_path / "m.safetensors", framework="pt") as opened:
        saved = list(opened.keys())
    assert any(name.startswith(f"backbone.{cut}") for name in saved)
    assert not any(name.startswith("backbone.layer4") for name in saved)
    images = [random_image(i) for i in range(3)]
    assert [p.top for p in again.predict(images)] == [p.top for p in model.predict(images)]


def test_saving_twice_writes_the_same_bytes(model: Model, tmp_path: Path) -> None:
    one, two = model.save(tmp_path / "1.safetensors"), model.save(tmp_path / "2.safetensors")
    assert one.read_bytes() == two.read_bytes()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["1.safetensors", "2.safetensors"]


def test_damage_anywhere_in_the_file_is_seen(model: Model, tmp_path: Path) -> None:
    file = model.save(tmp_path / "m.safetensors")
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    places = [3, 40, 400, *rng.integers(500, len(whole), 30).tolist(), len(whole) - 1]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        file.write_bytes(damaged)
        with pytest.raises(ModelFileError, match=r"m\.safetensors"):
            load(file)
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match="damaged"):
            load(file)
    file.write_bytes(whole)
    load(file)


def test_foreign_newer_and_missing_files_are_refused_with_the_remedy(model: Model, tmp_path: Path) -> None:
    file = model.save(tmp_path / "m.safetensors")
    with pytest.raises(ModelFileError, match="Install a newer Headstart"):
        load(changed_header(file, tmp_path / "newer.safetensors", {"format_version": FORMAT_VERSION + 1}))
    with pytest.raises(ModelFileError, match="damaged: the checksum"):
        load(changed_header(file, tmp_path / "other.safetensors", {"classes": ["10", "9", "é"]}))
    save_file({"x": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelFileError, match="not a Headstart model"):
        load(tmp_path / "w.safetensors")
    with pytest.raises(ModelFileError, match="no such model file"):
        load(tmp_path / "gone.safetensors")
    with pytest.raises(ModelFileError, match="no such model file"):
        load(tmp_path)


def test_one_image_gives_one_prediction_and_many_give_many_in_order(model: Model, tmp_path: Path) -> None:
    for i in range(3):
        random_image(i).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in (2, 0, 1)]
    many = model.predict(paths, top=2)
    assert [p.path for p in many] == [str(p) for p in paths]
    one = model.predict(str(paths[1]))
    assert isinstance(one, Prediction)
    assert one.label == many[1].label
    assert alike(one.top[:2], many[1].top)
    assert sum(chance for _, chance in one.top) == pytest.approx(1)
    in_memory = model.predict([Image.open(paths[1]), np.asarray(Image.open(paths[1]))])
    assert alike(in_memory[0].top, one.top)
    assert alike(in_memory[1].top, one.top)
    assert (in_memory[0].path, in_memory[1].path) == ("<image>", "<array>")
    assert [p.top for p in model.predict(np.array([str(p) for p in paths]), top=2)] == [p.top for p in many]
    assert model.predict([]) == []


def test_the_prediction_of_an_unreadable_image_contains_the_error(model: Model, tmp_path: Path) -> None:
    """Law 8, in prediction."""
    for i in range(40):
        random_image(i).save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(40)]
    expected = {p.path: p.top for p in model.predict(paths)}
    (tmp_path / "bad.png").write_bytes(b"")
    mixed = [*paths[:5], str(tmp_path / "bad.png"), *paths[5:33], str(tmp_path / "gone.png"), *paths[33:]]
    predictions = model.predict(mixed)
    assert [p.path for p in predictions] == mixed
    for p in predictions:
        if p.error is None:
            assert alike(p.top, expected[p.path])
        else:
            assert (p.label, p.top) == (None, ())
    assert {Path(p.path).name: p.error for p in predictions if p.error} == {
        "bad.png": "empty file (0 bytes)",
        "gone.png": "no such file or directory",
    }


def test_nothing_in_the_package_unpickles() -> None:
    """Law 12, by reading the source."""
    for file in Path(headstart.__file__).parent.rglob("*.py"):
        text = file.read_text()
        assert not re.search(r"\b(import pickle|joblib|allow_pickle=True|dill)\b", text), file
        for call in re.findall(r"torch\.load\([^)]*\)", text):
            assert "weights_only=True" in call, (file, call)


def test_a_files_bytes_are_predicted_as_the_file_is(model: Model, tmp_path: Path) -> None:
    random_image(3).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    one = model.predict(data)
    assert (one.path, one.top) == ("<bytes>", model.predict(tmp_path / "a.png").top)
    assert [p.error is None for p in model.predict([data, b"none", data])] == [True, False, True]


def test_the_version_is_what_stands_in_the_file_and_changes_with_the_model(model: Model, tmp_path: Path) -> None:
    file = model.save(tmp_path / "m.safetensors")
    with safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()["headstart"])["sha256"] == model.version
    assert load(file).version == model.version
    other = Model(model.net, model.head, ["9", "10", "e"], recipe=model.recipe, data={"a": 1}, scores={})
    assert other.version != model.version


@pytest.mark.slow
def test_the_engine_is_built_once_and_nothing_is_written(
    model: Model, all_engines: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls of 32 images: one engine, and nothing in the cache."""
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "default"))
    fresh = Model(model.net, model.head, model.classes, recipe=model.recipe, data={}, scores={})
    built: list[int] = []

    def choose(net: FeatureNet, *, count: int, **options: object) -> object:
        built.append(count)
        return choose_engine(net, count=count, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("headstart.engine.select.choose_engine", choose)
    images = [random_image(i) for i in range(32)]
    for _ in range(3):
        fresh.predict_with_outliers(images)
        fresh.predict(images)
        fresh.predict_proba(images)
        fresh.predict(images[:2])
    assert sorted(built) == [2, 32]
    assert not (tmp_path / "default").exists()


def test_a_model_can_be_copied_after_it_has_predicted(model: Model) -> None:
    images = [random_image(i) for i in range(2)]
    expected = model.predict(images)
    assert copy.deepcopy(model).predict(images) == expected


def test_class_names_of_an_earlier_version_that_cannot_be_written_become_text(model: Model) -> None:
    """Once, tables that were not UTF-8 gave such names, and a server with them answered nobody."""
    names = ("G\udce4nse", *model.classes[1:])
    own = Model(model.net, model.head, names, recipe=model.recipe, data={}, scores={})
    assert own.classes[0] == "G\\xe4nse"
    assert "".join(own.classes).encode()


def test_replacing_a_value_gives_another_model_that_shares_weights_and_engines(model: Model) -> None:
    before = model.predict([random_image(0)])
    warmer = model.replace(calibration=Calibration(temperature=2.0, images=10), scores={"val": {"correct": 1}})
    assert (warmer.net, warmer.head, warmer._predictor) == (model.net, model.head, model._predictor)
    assert (warmer.calibration.temperature, model.calibration.temperature) == (2.0, 1.0)
    assert warmer.predict([random_image(0)])[0].probability < before[0].probability
    assert model.predict([random_image(0)]) == before
    assert warmer.version != model.version
    with pytest.raises(TypeError, match="no_such_value"):
        model.replace(no_such_value=1)


def test_a_model_cannot_be_changed_after_it_was_made(model: Model) -> None:
    for name in ("calibration", "classes", "head", "net", "thresholds", "anything"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(model, name, None)
