from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import timm
import torch
from plain_http import answering
from random_images import write_classes
from recorded_progress import RecordedProgress
from safetensors.torch import save_file

from headstart.backbone.names import TORCHVISION, resolution_note, resolve_architecture
from headstart.backbone.weights import (
    build_architecture,
    fingerprint,
    load_backbone,
    load_with_classifier,
    random_backbone,
)
from headstart.errors import OptionError, WeightsError
from headstart.features.export import export_features

SMALL = "test_resnet"


def some_weights(classes: int = 7) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return build_architecture(SMALL, classes=classes).state_dict()


def without_classifier(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state.items() if not k.startswith("fc.")}


@pytest.mark.parametrize("kind", ["safetensors", "pth", "nested", "parallel"])
def test_weights_from_a_file_of_any_kind_are_the_ones_in_it(tmp_path: Path, kind: str) -> None:
    state = some_weights()
    file = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(state, file)
    elif kind == "nested":
        torch.save({"epoch": 3, "state_dict": state}, file)
    else:
        torch.save({f"module.{k}": v for k, v in state.items()} if kind == "parallel" else state, file)
    backbone = load_backbone(SMALL, weights=file)
    assert backbone.fingerprint == fingerprint(without_classifier(state))
    assert not any(p.requires_grad for p in backbone.module.parameters())
    assert backbone.source == f"file {file.name}"


def test_keys_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = some_weights()
    state["extra.weight"] = torch.zeros(1)
    state["conv1.bias"] = torch.zeros(2)
    del state["layer1.0.conv1.weight"]
    first = next(k for k in state if k.startswith("layer2"))
    state[first] = torch.zeros(1, 2, 3)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as raised:
        load_backbone(SMALL, weights=tmp_path / "w.safetensors")
    for named in ("missing: layer1.0.conv1.weight", "extra.weight", first, "(1, 2, 3), expected"):
        assert named in str(raised.value)


def saved(state: dict[str, torch.Tensor], file: Path, *, wrap: str = "") -> Path:
    torch.save({wrap: state, "epoch": 3} if wrap else state, file)
    return file


@pytest.mark.parametrize(
    ("prefix", "wrap"),
    [
        ("model.", "state_dict"),  # Lightning
        ("module.backbone.", "teacher"),  # DINO
        ("module.model.", ""),
        ("net.module.", "model_state"),
        ("encoder.", "model_ema"),
        ("0.", ""),  # nn.Sequential(backbone, head)
    ],
)
def test_prefixes_of_training_tools_are_removed_and_said(tmp_path: Path, prefix: str, wrap: str) -> None:
    state = some_weights()
    wrapped = {prefix + key: own for key, own in state.items()} | {"loss.centre": torch.zeros(3)}
    backbone = load_backbone(SMALL, weights=saved(wrapped, tmp_path / "w.pth", wrap=wrap))
    assert backbone.fingerprint == fingerprint(without_classifier(state))
    (note,) = backbone.notes
    assert note == (
        f"Weights of w.pth: removed '{prefix}' from the names of its tensors; ignored 1 outside it (loss.centre)."
    )


def test_names_that_a_compiled_part_leaves_inside_are_mended(tmp_path: Path) -> None:
    state = some_weights()
    compiled = {f"_orig_mod.{key}".replace("layer1.", "layer1._orig_mod."): own for key, own in state.items()}
    backbone = load_backbone(SMALL, weights=saved(compiled, tmp_path / "w.pth"))
    assert backbone.fingerprint == fingerprint(without_classifier(state))
    assert backbone.notes == ("Weights of w.pth: removed '_orig_mod.' from the names of its tensors.",)


def test_plain_names_need_no_note(tmp_path: Path) -> None:
    assert load_backbone(SMALL, weights=saved(some_weights(), tmp_path / "w.pth")).notes == ()


def test_of_several_networks_the_one_that_its_authors_evaluate_is_taken(tmp_path: Path) -> None:
    state = some_weights()
    other = {key: own + 1 if own.is_floating_point() else own for key, own in state.items()}
    moco = {f"module.encoder_k.{key}": own for key, own in other.items()} | {"module.queue": torch.zeros(2, 4)}
    moco |= {f"module.encoder_q.{key}": own for key, own in state.items()}
    for content in (
        {"state_dict": moco},
        {"student": other, "teacher": {f"backbone.{key}": own for key, own in state.items()}},
        {"state_dict": other, "state_dict_ema": state},
    ):
        torch.save(content, tmp_path / "w.pth")
        backbone = load_backbone(SMALL, weights=tmp_path / "w.pth")
        assert backbone.fingerprint == fingerprint(without_classifier(state))
        assert ": used " in backbone.notes[0]


def test_several_networks_that_fit_equally_are_refused(tmp_path: Path) -> None:
    state = some_weights()
    other = {key: own + 1 if own.is_floating_point() else own for key, own in state.items()}
    both = {f"a.{key}": own for key, own in state.items()}
    file = saved(both | {f"b.{key}": own for key, own in other.items()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="several networks that fit, under 'a' and 'b'"):
        load_backbone(SMALL, weights=file)
    same = saved(both | {f"b.{key}": own for key, own in state.items()}, tmp_path / "same.pth")
    assert load_backbone(SMALL, weights=same).fingerprint == fingerprint(without_classifier(state))


def test_a_prefix_behind_which_a_part_is_missing_is_named_with_what_is_missing(tmp_path: Path) -> None:
    state = {f"model.{key}": own for key, own in some_weights().items() if not key.startswith("layer2")}
    with pytest.raises(WeightsError) as raised:
        load_backbone(SMALL, weights=saved(state, tmp_path / "w.pth"))
    text = str(raised.value)
    assert "Keys below 'model'" in text
    assert "missing: layer2." in text
    assert "Tried without the prefix model." in text
    assert len(text) < 600
    with pytest.raises(WeightsError, match="contains no tensors"):
        load_backbone(SMALL, weights=saved({}, tmp_path / "empty.pth", wrap="state_dict"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_the_name_of_the_tensor(tmp_path: Path, value: float) -> None:
    state = some_weights()
    state["layer1.0.conv1.weight"].view(-1)[3] = value
    with pytest.raises(WeightsError, match=r"w\.pth: layer1\.0\.conv1\.weight contains values that are not finite"):
        load_backbone(SMALL, weights=saved(state, tmp_path / "w.pth"))


@pytest.mark.parametrize("kind", ["zeros", "dead"])
def test_weights_that_give_every_image_the_same_features_are_refused(tmp_path: Path, kind: str) -> None:
    state = some_weights()
    if kind == "zeros":
        state = {key: torch.zeros_like(own) for key, own in state.items()}
    else:  # every unit of the last block lies below 0 for every image
        last = [key for key in state if key.startswith("layer4") and key.endswith("bias")]
        state |= {key: torch.full_like(state[key], -1e4) for key in last}
        state |= {key.replace("bias", "weight"): torch.zeros_like(state[key]) for key in last}
    with pytest.raises(WeightsError, match="the same features for every image"):
        load_backbone(SMALL, weights=saved(state, tmp_path / "w.pth"))


def test_what_was_done_to_load_the_weights_is_printed(tmp_path: Path) -> None:
    state = {f"module.{key}": own for key, own in some_weights().items()}
    progress = RecordedProgress()

    file = saved(state, tmp_path / "w.pth")
    data = write_classes(tmp_path / "data", {"blue": 2, "red": 2})
    export_features(
        data, tmp_path / "f.npz", backbone=SMALL, weights=file, image_size=32, device="cpu", progress=progress
    )
    assert progress.said[0] == "Weights of w.pth: removed 'module.' from the names of its tensors."


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path(self.target),))  # type: ignore[attr-defined]


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """Law 12."""
    bomb = Bomb()
    bomb.target = str(tmp_path / "exploded")  # type: ignore[attr-defined]
    torch.save({"state_dict": some_weights(), "args": bomb}, tmp_path / "w.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(bomb))
    for name in ("w.pth", "raw.pth"):
        with pytest.raises(WeightsError, match=r"does not unpickle|damaged"):
            load_backbone(SMALL, weights=tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"garbage")
    (tmp_path / "w.pth").write_bytes(b"")
    for name in ("w.safetensors", "w.pth", "gone.pth"):
        with pytest.raises(WeightsError, match=name):
            load_backbone(SMALL, weights=tmp_path / name)


def test_an_unknown_architecture_is_refused_with_the_nearest() -> None:
    with pytest.raises(OptionError, match="resnet18"):
        load_backbone("resnet81")
    with pytest.raises(OptionError, match=r"no backbone named 'resnet18\.nonsense'"):
        load_backbone("resnet18.nonsense")


@pytest.mark.parametrize(
    ("name", "resolved"),
    [
        ("hf-hub:timm/resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("hf_hub:timm/resnet50", "resnet50"),
        ("https://huggingface.co/timm/resnet50.tv_in1k", "resnet50.tv_in1k"),
        ("timm/test_vit", "test_vit"),
        ("  ResNet50 ", "resnet50"),
        ("vit_b_16", "vit_base_patch16_224"),
        ("efficientnet_v2_s", "tf_efficientnetv2_s"),
        ("ConvNeXt_Tiny", "convnext_tiny"),
    ],
)
def test_names_are_understood_however_they_are_written(name: str, resolved: str) -> None:
    assert resolve_architecture(name) == resolved


def test_every_name_of_torchvision_leads_to_an_architecture_of_timm() -> None:
    assert [own for own in TORCHVISION.values() if not timm.is_model(own)] == []
    assert [own for own in TORCHVISION if timm.is_model(own)] == []


def test_a_resolved_name_is_used_and_said(tmp_path: Path) -> None:
    file = saved(some_weights(), tmp_path / "w.pth")
    backbone = load_backbone(f" timm/{SMALL.upper()}", weights=file)
    assert (backbone.architecture, backbone.build["name"], backbone.notes) == (SMALL, SMALL, ())
    assert "timm's vit_base_patch16_224 is used" in resolution_note("vit_b_16", "vit_base_patch16_224")
    assert random_backbone(f"timm/{SMALL} ").architecture == SMALL


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet-50", "Similar names: resnet50,"), ("ViT-B/16", "Similar names: vit_base_patch16_224"), ("", "none")],
)
def test_the_right_name_is_suggested(name: str, near: str) -> None:
    with pytest.raises(OptionError, match=near):
        resolve_architecture(name)
    with pytest.raises(OptionError, match=r"facebook/dino.*--weights"):
        resolve_architecture("facebook/dino-vits16")


def test_from_scratch_means_random_weights() -> None:
    """Law 14: no weight file is behind them, and another seed gives others."""
    one, two, again = (random_backbone("tf_efficientnet_lite0", seed=seed) for seed in (0, 1, 0))
    pretrained = load_backbone("tf_efficientnet_lite0")
    assert one.fingerprint == again.fingerprint != two.fingerprint
    for name, weight in one.module.named_parameters():
        if weight.ndim == 4:
            assert not torch.allclose(weight, pretrained.module.get_parameter(name), atol=1e-3), name


def test_the_offline_default_is_trained_and_carries_its_preprocessing() -> None:
    backbone = load_backbone()
    assert backbone.architecture == "tf_efficientnet_lite0.in1k"
    assert (backbone.preprocessing.height, backbone.preprocessing.mean) == (224, (0.5, 0.5, 0.5))
    assert load_backbone(image_size=96).preprocessing.height == 96
    padded = load_backbone(image_size=96, fit="pad")
    assert padded.preprocessing == replace(
        backbone.preprocessing, height=96, width=96, crop_mode="border", crop_pct=1.0
    )
    assert padded.fingerprint == backbone.fingerprint
    with pytest.raises(OptionError, match="fit 'stretch': expected one of"):
        load_backbone(fit="stretch")  # type: ignore[arg-type]
    assert backbone.module.get_buffer("bn1.running_var").std() > 0.01


@pytest.mark.exhaustive
def test_a_fixed_size_network_is_rebuilt_for_another_size_or_refuses() -> None:
    assert random_backbone("test_vit", image_size=64).module(torch.zeros(1, 3, 64, 64)).shape[0] == 1
    with pytest.raises(OptionError, match="does not accept images of 20 pixels"):
        random_backbone("vgg11", image_size=20)


@contextmanager
def hub(files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """A server that answers as the hub does, on a free port."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            asked.append(self.path)
            data = next((d for name, d in files.items() if self.path.endswith(f"/resolve/main/{name}")), None)
            self.send_response(200 if data is not None or self.path == "/" else 404)
            if data is None and self.path != "/":
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("ETag", '"0123456789abcdef"')
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if body and data:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with answering(Handler) as url:
        yield url, asked


@pytest.mark.exhaustive
def test_weights_come_from_the_hub_once_and_from_its_cache_without_a_network(tmp_path: Path, headstart) -> None:
    config = timm.get_pretrained_cfg("test_resnet")
    state = some_weights(classes=config.num_classes)
    save_file(state, tmp_path / "model.safetensors")
    write_classes(tmp_path / "d", {"a": 3, "b": 3})
    settings = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
    command = ("extract", tmp_path / "d", "--backbone", SMALL, "--json", "--out")
    with hub({"model.safetensors": (tmp_path / "model.safetensors").read_bytes()}) as (address, asked):
        first = headstart(*command, tmp_path / "1.npz", **settings, HF_ENDPOINT=address)
        assert first.returncode == 0, first.stderr
        assert any("model.safetensors" in path for path in asked)
        assert json.loads(first.stdout)["images"] == 6
    gone = headstart(*command, tmp_path / "2.npz", **settings, HF_ENDPOINT=address)
    assert gone.returncode == 0, gone.stderr
    assert gone.stdout.replace("2.npz", "1.npz") == first.stdout
    never = headstart(*command, tmp_path / "3.npz", HF_HOME=str(tmp_path / "empty"), HF_ENDPOINT=address, timeout=60)
    assert never.returncode == 1
    assert never.stderr.startswith("Error: the weights of test_resnet are not in timm's cache and cannot be downloaded")
    assert "--weights" in never.stderr
    assert len(never.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "name", ["test_vit", "test_convnext", "test_resnet", "test_byobnet", "swin_tiny_patch4_window7_224"]
)
def test_weights_that_are_not_drawn_leave_nothing_behind_once_they_are_loaded_over(name: str) -> None:
    drawn = build_architecture(name)
    before = torch.get_rng_state()
    bare = build_architecture(name, initialise=False)
    assert torch.equal(torch.get_rng_state(), before)
    bare.load_state_dict(drawn.state_dict())
    theirs = dict(drawn.named_buffers()) | dict(drawn.named_parameters())
    ours = dict(bare.named_buffers()) | dict(bare.named_parameters())
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_pretrained_classifier_is_the_one_that_the_weights_came_with() -> None:
    backbone, known = load_with_classifier(image_size=64, fit="squash")
    assert (backbone.preprocessing.crop_mode, backbone.preprocessing.crop_pct) == ("squash", 1.0)
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
