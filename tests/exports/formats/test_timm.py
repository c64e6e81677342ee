"""Folders for timm and transformers: the network with the head as its classifier, or a refusal that says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hub import TOKEN, hub_on_this_machine
from PIL import Image
from pipelines import PIPELINES
from safetensors.torch import load_file, save_file
from small_models import CLASSES, shown, small_model, write_shown
from torch import nn

import headstart as hs
from headstart.backbone.feature_spec import FeatureSpec
from headstart.backbone.pixel_net import FeatureNet
from headstart.backbone.weights import random_backbone
from headstart.errors import ExportError
from headstart.exports.formats import timm
from headstart.exports.formats.interface import WriteRequest, WrittenFiles
from headstart.exports.formats.registry import FORMATS, open_export
from headstart.exports.readers.timm_reader import ColumnsFirst
from headstart.exports.snippets import timm_snippet
from headstart.model import Model
from headstart.verbs import Exported


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images of several sizes in three classes, including a large JPEG."""
    folder = write_shown(tmp_path_factory.mktemp("images"), 30, lambda i: (60 + 7 * i, 90 + 5 * (i % 7)))
    shown(99).resize((1400, 1100)).save(folder / "blue" / "large.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = small_model(ood_detector=True)
    return hs.export(model, "timm", out=tmp_path_factory.mktemp("exported") / "small", data=folder)


def custom_head() -> nn.Module:
    torch.manual_seed(0)
    head = nn.Sequential(nn.BatchNorm1d(96), nn.Dropout(0.5), nn.Linear(96, 20), nn.Identity(), nn.Linear(20, 3))
    head[0].running_mean.normal_()
    head[0].running_var.uniform_(0.5, 2)
    head[4].weight.data.mul_(20)
    return head.eval()


HEADS: dict[str, Callable[[], Model]] = {
    "linear": small_model,
    "one logit": lambda: small_model(head="single"),
    "dropout": lambda: small_model(head="0.5"),
    "a sequence of affine layers": lambda: small_model().replace(head=custom_head()),
    "a transformer": lambda: small_model("test_vit"),
    "a transformer with another size": lambda: small_model("test_vit", image_size=96),
    "a network with a norm before its classifier": lambda: small_model("test_convnext"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_the_network_with_its_classifier_gives_the_probabilities_of_the_model(kind: str) -> None:
    model = HEADS[kind]()
    network = timm.classifying_network(model)
    pixels = np.stack([model.preprocess(shown(100 + i)) for i in range(8)])
    expected, _ = model.predict_proba([shown(100 + i) for i in range(8)])
    with torch.no_grad():
        found = network(model.net.normalised(torch.from_numpy(pixels))).softmax(1).numpy()
    assert np.ptp(expected, axis=0).max() > 0.05
    assert np.abs(found - expected).max() < 1e-4


def with_layers() -> Model:
    backbone = random_backbone("test_resnet", image_size=64)
    net = FeatureNet(backbone, FeatureSpec(layers=("layer3",)))
    return small_model().replace(net=net)


OBSTACLES: dict[str, tuple[Callable[[], Model], str]] = {
    "hidden layers": (lambda: small_model(head="8"), r"its head is not a linear layer \(ReLU\)"),
    "neighbours": (lambda: small_model(head="neighbours"), "nearest neighbours"),
    "rbf": (lambda: small_model(head="rbf"), "Gaussian kernel"),
    "several labels": (lambda: small_model(several=True), "several labels"),
    "cut": (lambda: small_model(cut="layer3"), r"cut after layer3 \(--cut\)"),
    "pooling": (lambda: small_model(pool="max"), "--pool max"),
    "layers": (with_layers, r"features are those of several layers \(layer3 besides.*--layers last"),
    "side by side": (lambda: small_model("test_resnet+test_vit"), "2 backbones side by side"),
}


@pytest.mark.parametrize("kind", OBSTACLES)
def test_a_model_that_timm_cannot_hold_is_refused_with_the_reason(kind: str) -> None:
    make, words = OBSTACLES[kind]
    with pytest.raises(ExportError, match=f"--to timm: .*{words}.*Export to onnx or torch"):
        timm.classifying_network(make())


def test_a_refused_export_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"--to timm: .*Gaussian kernel"):
        hs.export(small_model(head="rbf"), "timm", out=tmp_path / "new" / "refused", data=folder)
    assert list(tmp_path.iterdir()) == []


def test_value_range_is_refused() -> None:
    backbone = random_backbone("test_resnet", image_size=64)
    scaled = replace(backbone, preprocessing=replace(backbone.preprocessing, value_range=(0.0, 0.1)))
    assert "--value-range" in timm.timm_obstacle(small_model(scaled))


@pytest.mark.slow
def test_the_folder_is_compared_with_the_model_and_says_how_to_use_it(exported: Exported, folder: Path) -> None:
    own, written = exported.formats
    assert (own.name, written.name) == ("model", "timm")
    assert written.same == written.clear
    assert (written.clear or 0) > 25
    assert written.largest is not None
    assert written.largest < 1e-4
    assert written.largest_outlier is None
    assert written.full_size is not None
    assert written.full_size.images == 1
    assert exported.metadata.none_above is None
    names = {file.name for file in exported.file.iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md", "headstart_timm.json"}
    assert not hs.verify(exported.file, folder, model=small_model(ood_detector=True)).faults
    config = json.loads((exported.file / "config.json").read_text())
    assert (config["architecture"], config["label_names"]) == ("test_resnet", list(CLASSES))
    assert config["pretrained_cfg"]["input_size"] == [3, 64, 64]
    card = (exported.file / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_every_fit_is_timms_transform(fit: hs.data.Fit, folder: Path, tmp_path: Path) -> None:
    model = small_model(random_backbone("test_resnet", image_size=64, fit=fit))
    assert (hs.export(model, "timm", out=tmp_path / "out", data=folder).formats[1].largest or 1) < 1e-4


@pytest.mark.slow
def test_the_snippet_prints_the_prediction_of_the_model(exported: Exported, folder: Path) -> None:
    image = str(folder / "blue" / "large.jpg")
    text = timm_snippet(f"local-dir:{exported.file}", exported.metadata, image)
    assert timm_snippet(f"local-dir:{exported.file}", exported.metadata) == exported.snippets["python"]
    done = subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True, check=True)
    expected = small_model().predict(image)
    answer, _, chance = done.stdout.strip().rpartition(" ")
    assert (answer, float(chance)) == (expected.label, pytest.approx(expected.probability, abs=1e-4))


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    document = json.loads(file.read_text())
    document["pretrained_cfg"] |= changes
    file.write_text(json.dumps(document))


def edit_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_labels(folder: Path) -> None:
    file = folder / "config.json"
    document = json.loads(file.read_text())
    document["label_names"] = [CLASSES[1], CLASSES[0], CLASSES[2]]
    file.write_text(json.dumps(document))


FAULTS: dict[str, Callable[[Path], None]] = {
    "wrong normalisation": lambda folder: edit_config(folder, mean=[0.485, 0.456, 0.406], std=[0.5, 0.5, 0.5]),
    "BGR": lambda folder: edit_tensor(folder, "conv1.0.weight", lambda weight: weight.flip(1)),
    "resized to one pixel more": lambda folder: edit_config(folder, crop_pct=0.94),
    "another filter": lambda folder: edit_config(folder, interpolation="bicubic"),
    "another fit": lambda folder: edit_config(folder, crop_mode="squash"),
    "swapped names": edit_labels,
    "swapped rows": lambda folder: edit_tensor(folder, "fc.weight", lambda weight: weight[[1, 0, 2]]),
    "a stale weight": lambda folder: edit_tensor(
        folder, "conv1.0.weight", lambda weight: torch.cat([-weight[:1], weight[1:]])
    ),
    "no temperature": lambda folder: edit_tensor(folder, "fc.weight", lambda weight: weight * 0.7),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused(fault: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(request: WriteRequest) -> WrittenFiles:
        done = timm.FORMAT.write(request)
        FAULTS[fault](request.file)
        return done

    monkeypatch.setitem(FORMATS, "timm", replace(timm.FORMAT, write=write))
    with pytest.raises(ExportError, match=r"not written: .*(predictions differ|probabilities differ)"):
        hs.export(small_model(), "timm", out=tmp_path / "out" / "small", data=folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_damaged_and_foreign_folders_are_refused(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected a file written by headstart export"):
        open_export(tmp_path)
    for name in ("model.safetensors", "config.json"):
        broken = tmp_path / name.partition(".")[0]
        broken.mkdir()
        for file in exported.file.iterdir():
            data = file.read_bytes()
            (broken / file.name).write_bytes(data[: len(data) // 2] if file.name == name else data)
        with pytest.raises(ExportError, match="damaged, or not a folder of a timm network"):
            open_export(broken)


def test_columns_are_resized_before_rows() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 90, 3), dtype=np.uint8))
    expected = image.resize((50, 400), Image.Resampling.BICUBIC).resize((50, 220), Image.Resampling.BICUBIC)
    image.__class__ = ColumnsFirst
    found = image.resize((50, 220), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.slow
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_library_gives_the_top_class_of_the_model_from_a_hub(
    library: str, exported: Exported, tmp_path: Path
) -> None:
    """Fifty images: PNGs and small JPEGs, so that preprocessing differs in the order of the passes at most."""
    if library == "transformers":
        pytest.importorskip("transformers", reason="transformers is not installed")
    images = [tmp_path / f"{i}.{'jpg' if i % 2 else 'png'}" for i in range(50)]
    for i, image in enumerate(images):
        shown(200 + i).resize((60 + 7 * i, 300 - 4 * i)).save(image)
    model = small_model()
    expected = model.predict([str(image) for image in images])
    with hub_on_this_machine() as hub:
        hub.repositories["me/small"] = {file.name: file.read_bytes() for file in exported.file.iterdir()}
        place = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
        command = [sys.executable, "-I", "-c", PIPELINES, str(int(library == "transformers")), *map(str, images)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | place)
    found = json.loads(done.stdout.strip().splitlines()[-1])[library]
    second = [one.top[1][1] if len(one.top) > 1 else 0.0 for one in expected]
    clear = [one.probability - other > 0.01 for one, other in zip(expected, second, strict=True)]
    assert sum(clear) > 40
    for one, (label, probability), is_clear in zip(expected, found, clear, strict=True):
        assert label == one.label or not is_clear
        assert probability == pytest.approx(one.probability, abs=0.01)
