from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from documents import ROOT
from hub import Hub, hub_for_tests
from recorded_progress import RecordedProgress
from safetensors.torch import save_file

from headstart.backbone.compute_cost import compute_cost
from headstart.backbone.names import default_image_size
from headstart.backbone.offline_packages import OFFLINE_PACKAGES
from headstart.backbone.weights import build_architecture
from headstart.errors import OptionError, WeightsError
from headstart.selection import candidates
from headstart.selection.candidates import DECLARED, DeclaredCandidate, find_candidates, load_candidate

SMALL = "test_resnet.r160_in1k"
REPOSITORY = "timm/test_resnet.r160_in1k"
OFFLINE = tuple(OFFLINE_PACKAGES)


def small_weights() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return build_architecture("test_resnet", classes=1000).state_dict()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub with the weights of one small network; timm's cache is empty."""
    save_file(small_weights(), tmp_path / "small.safetensors")
    with hub_for_tests(tmp_path / "cache") as served:
        served.repositories[REPOSITORY] = {"model.safetensors": (tmp_path / "small.safetensors").read_bytes()}
        yield served


@pytest.mark.parametrize("declared", DECLARED, ids=lambda one: one.architecture)
def test_the_table_agrees_with_timm(declared: DeclaredCandidate) -> None:
    config = timm.get_pretrained_cfg(declared.architecture)
    assert config is not None
    assert f"{config.architecture}.{config.tag}" == declared.architecture
    assert config.license == declared.license
    native = default_image_size(declared.architecture) or config.input_size[1]
    assert declared.image_size == native == (default_image_size(declared.architecture) or config.input_size[2])


def test_the_page_on_backbones_states_what_the_table_states() -> None:
    rows = re.findall(
        r"^\| `(\S+)` \| (\d+) \| ([\d.]+) M \| ([\d.]+) \|",
        (ROOT / "docs" / "how-to" / "backbones.md").read_text(),
        re.MULTILINE,
    )
    declared = [
        (one.architecture, str(one.image_size), f"{one.parameters / 1e6:.1f}", f"{one.gmacs:.3f}") for one in DECLARED
    ]
    assert rows == declared


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2.lvd142m", "vit_base_patch14_reg4_dinov2.lvd142m"])
def test_dinov2_is_declared_at_224_pixels_and_not_at_518(name: str) -> None:
    assert next(one.image_size for one in DECLARED if one.architecture == name) == 224
    assert timm.get_pretrained_cfg(name).input_size == (3, 518, 518)


@pytest.mark.exhaustive
@pytest.mark.parametrize("declared", DECLARED, ids=lambda one: one.architecture)
def test_the_table_states_the_parameters_and_operations_of_the_networks(declared: DeclaredCandidate) -> None:
    cost = compute_cost(declared.architecture, declared.image_size)
    assert (declared.parameters, declared.gmacs) == (cost.parameters, cost.gmacs)


def test_offline_candidates_come_from_the_installed_packages(hub: Hub) -> None:
    found = find_candidates("offline")
    assert tuple(one.architecture for one in found) == OFFLINE
    assert [(one.image_size, one.origin, one.download_bytes) for one in found] == [
        (224, "package", 0),
        (240, "package", 0),
        (260, "package", 0),
    ]
    assert {one.license for one in found} == {"apache-2.0"}
    assert hub.asked == []


@pytest.mark.slow
def test_a_name_that_is_not_on_this_machine_is_a_download_of_known_size(hub: Hub) -> None:
    (found,) = find_candidates("test_resnet")
    assert (found.architecture, found.origin, found.source) == (SMALL, "download", REPOSITORY)
    assert found.download_bytes == len(hub.repositories[REPOSITORY]["model.safetensors"])
    assert {method for method, _ in hub.asked} == {"HEAD"}
    assert found.why == "named by the user"
    assert found.parameters == sum(weight.numel() for weight in build_architecture("test_resnet").parameters())


@pytest.mark.slow
def test_cached_finds_earlier_downloads_and_never_uses_the_network(hub: Hub) -> None:
    with pytest.raises(OptionError, match=r"candidates cached: .* no weights that can be used\. Add offline"):
        find_candidates("cached")
    assert hub.asked == []
    (named,) = find_candidates("test_resnet")
    load_candidate(named)
    hub.asked.clear()
    (found,) = find_candidates("cached")
    assert (found.architecture, found.origin, found.why) == (SMALL, "cache", "in the local cache")
    assert find_candidates("test_resnet")[0].origin == "cache"
    load_candidate(found)
    assert hub.asked == []


def test_words_are_mixed_and_each_candidate_is_listed_once(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "own weights.safetensors"
    save_file(small_weights(), file)
    found = find_candidates(f" tf_efficientnet_lite2 , offline,test_resnet = {file}")
    assert [(one.architecture, one.weights) for one in found] == [
        (OFFLINE[2], None),
        (OFFLINE[0], None),
        (OFFLINE[1], None),
        ("test_resnet", file),
    ]
    assert hub.asked == []
    assert find_candidates(["offline", f"test_resnet={file}"])[:3] == find_candidates("offline")


def test_weights_of_a_file_have_the_licence_of_the_tag_that_is_given_with_them(tmp_path: Path) -> None:
    file = tmp_path / "with, comma.safetensors"
    save_file(small_weights(), file)
    bare, tagged = find_candidates([f"test_resnet={file}", f"{SMALL}={file}"])
    assert (bare.license, tagged.license) == ("unknown", "apache-2.0")
    assert (bare.origin, bare.source) == ("file", file.name)
    assert load_candidate(bare).source == f"file {file.name}"


@pytest.mark.slow
def test_a_larger_image_size_costs_more_and_is_the_one_that_is_loaded() -> None:
    (native,) = find_candidates("tf_efficientnet_lite0")
    (larger,) = find_candidates("tf_efficientnet_lite0", image_size=288)
    assert (larger.image_size, larger.parameters) == (288, native.parameters)
    assert larger.gmacs == pytest.approx(native.gmacs * (288 / 224) ** 2, rel=0.02)
    assert load_candidate(larger).preprocessing.height == 288


@pytest.mark.slow
def test_the_declared_operations_are_those_that_are_counted() -> None:
    """Of the smallest; a long test counts the others."""
    cost = compute_cost(DECLARED[0].architecture, DECLARED[0].image_size)
    assert (cost.parameters, cost.gmacs) == (DECLARED[0].parameters, DECLARED[0].gmacs)


@pytest.mark.parametrize("wanted", ["", "offline,", ",", "offline,,cached", []])
def test_an_empty_word_is_refused(wanted: str | list[str]) -> None:
    with pytest.raises(OptionError, match="expected offline, cached, recommended, a name, or NAME=FILE"):
        find_candidates(wanted)


def test_errors_name_the_candidate_and_the_remedy(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"no backbone named 'resnet81'.*resnet18"):
        find_candidates("offline,resnet81")
    with pytest.raises(WeightsError, match=r"candidate resnet18: .*gone\.pth: no such file.*resnet18=FILE"):
        find_candidates(f"resnet18={tmp_path / 'gone.pth'}")
    with pytest.raises(OptionError, match=r"candidate legacy_seresnext26_32x4d_none|no backbone named"):
        find_candidates("legacy_seresnext26_32x4d_none")
    with pytest.raises(
        WeightsError, match=r"candidate resnet18\.a1_in1k: .* leave it out, or .*resnet18\.a1_in1k=FILE"
    ):
        find_candidates("resnet18")  # the hub has no such repository
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.asked.clear()
    with pytest.raises(WeightsError, match=r"candidate hgnetv2_b0\.\S+: .*HF_HUB_OFFLINE is set"):
        find_candidates("recommended")
    assert hub.asked == []


@pytest.mark.slow
def test_restricted_weights_in_the_cache_are_left_out_and_named_unless_accepted(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "cached_names", lambda: ["convnextv2_atto.fcmae", SMALL])
    monkeypatch.setattr(candidates, "cached_file", lambda _config: Path("cached"))
    progress = RecordedProgress()
    found = find_candidates("cached", image_size=64, progress=progress)
    assert [one.architecture for one in found] == [SMALL]
    assert progress.said == [
        "1 cached candidate(s) with a restricted licence left out; --accept-license adds them "
        "(convnextv2_atto.fcmae: cc-by-nc-4.0)."
    ]
    both = find_candidates("cached", image_size=64, accept_license=True)
    assert [(one.architecture, one.license) for one in both] == [
        ("convnextv2_atto.fcmae", "cc-by-nc-4.0"),
        (SMALL, "apache-2.0"),
    ]


def test_a_cached_candidate_that_does_not_accept_the_image_size_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "cached_names", lambda: ["vgg11.tv_in1k", SMALL])
    monkeypatch.setattr(candidates, "cached_file", lambda _config: Path("cached"))
    progress = RecordedProgress()
    found = find_candidates("cached", image_size=20, progress=progress)
    assert [one.architecture for one in found] == [SMALL]
    assert "1 cached candidate(s) left out (vgg11.tv_in1k:" in progress.said[0]
    with pytest.raises(OptionError, match=r"vgg11\.tv_in1k does not accept images of 20 pixels"):
        find_candidates("vgg11", image_size=20)


def test_recommended_is_the_table_without_the_installed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "download_bytes", lambda _config: 7)
    found = find_candidates("recommended")
    assert [one.architecture for one in found] == [one.architecture for one in DECLARED if one.group == "recommended"]
    assert {(one.origin, one.download_bytes) for one in found} == {("download", 7)}
    assert all(one.gmacs > 0 for one in found)
