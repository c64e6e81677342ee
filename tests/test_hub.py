"""Push to and load from a fake Hugging Face hub on localhost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from commands import main
from hub import Hub, hub_for_tests
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from random_images import COLOURS, write_classes

import headstart as hs
from headstart.backbone.pixel_net import FeatureNet
from headstart.errors import HubError
from headstart.hub import Address, read_address

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_networks")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> hs.Run:
    folder = tmp_path_factory.mktemp("hub")
    data = write_classes(folder / "three|colours", dict.fromkeys(COLOURS, 60))
    return hs.train(data, out=folder / "run", image_size=64, val=0.35)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with hub_for_tests(tmp_path / "cache") as held:
        yield held


def test_a_pushed_model_is_loaded_unchanged(run: hs.Run, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = main("push", run.folder, "me/colours", capsys=capsys)
    assert code == 0, err
    assert out.splitlines()[-1] == "Model: hf://me/colours"
    files = hub.repositories["me/colours"]
    assert set(files) == {"README.md", "headstart.safetensors", "recipe.json", "scores.json"}
    assert files["headstart.safetensors"] == run.model_path.read_bytes()
    assert not hub.private
    image = next((run.folder.parent / "three|colours" / "red").iterdir())
    there = hs.load("hf://me/colours").predict(image)
    assert there == hs.load(run.folder).predict(image)
    code, out, err = main("predict", "hf://me/colours", image, capsys=capsys)
    assert (code, err) == (0, "")
    assert out.startswith(f"{image}\t")
    hub.asked.clear()
    hs.load("hf://me/colours@main")
    assert not [path for method, path in hub.asked if method == "GET"]  # from the local cache


def test_the_report_is_uploaded_only_on_request(run: hs.Run, hub: Hub) -> None:
    url = hs.push(run.folder, "me/with", private=True, with_report=True)
    assert url == f"{hub.address}/me/with"
    assert "report.html" in hub.repositories["me/with"]
    assert hub.private == {"me/with"}
    hs.push(run.folder, "me/with")  # again, over the existing files


@pytest.mark.parametrize(("license", "is_published"), [("cc-by-nc-4.0", False), ("unknown", True)])
def test_a_model_made_from_restricted_weights_is_pushed_only_if_accepted(
    run: hs.Run, hub: Hub, tmp_path: Path, license: str, is_published: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    model = hs.load(folder)
    net = model.net
    made_from = FeatureNet(replace(net.backbone, license=license), net.spec)
    model.replace(net=made_from).save(folder / "model.safetensors")
    code, _, err = main("push", folder, "me/licensed", capsys=capsys)
    assert (code == 0, bool(hub.asked)) == (is_published, is_published), err
    if not is_published:
        assert err.startswith(f"Error: {folder}: made from tf_efficientnet_lite0")
        assert "--accept-license" in err
        assert len(err.splitlines()) == 1
        code, _, err = main("push", folder, "me/licensed", "--accept-license", capsys=capsys)
        assert code == 0, err
    card = hub.repositories["me/licensed"]["README.md"].decode()
    assert f"Licence of the pretrained weights: {license}" in card


def test_the_model_card_contains_metrics_and_usage(run: hs.Run, hub: Hub) -> None:
    text = (run.folder / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.library_name == "headstart"
    assert card.data.pipeline_tag == "image-classification"
    assert {(e.dataset_split, e.metric_value) for e in card.data.eval_results} == {
        (name, round(scores.accuracy, 4)) for name, scores in run.results.items()
    }
    for scores in run.results.values():
        assert scores.sentence in text
    for c in run.scores.classes:
        assert f"| {c.label} | {100 * c.precision:.1f} % | {100 * c.recall:.1f} % |" in text
    assert 'hs.load("model.safetensors")' in text
    assert "None" not in text
    assert str(run.folder.parent) not in text  # no path of this machine
    hs.push(run.folder, "me/card")
    assert b'hs.load("hf://me/card")' in hub.repositories["me/card"]["README.md"]


def test_errors_of_the_hub_are_one_line(
    run: hs.Run, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories["me/other"] = {"readme.txt": b"hello"}
    for address, words in (
        ("hf://me/none", "no such repository"),
        ("hf://me/other", "contains no headstart.safetensors or model.safetensors"),
        ("hf://me", "expected hf://OWNER/NAME"),
    ):
        code, _, err = main("predict", address, run.model_path, capsys=capsys)
        assert (code, words in err, len(err.splitlines())) == (1, True, 1), err
    with pytest.raises(HubError, match="expected OWNER/NAME"):
        hs.push(run.folder, "colours")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(HubError, match="the hub refuses"):
        hs.push(run.folder, "me/colours")


def test_a_missing_network_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("neither there nor here")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(HubError, match="cannot be reached, and is not in the local cache"):
        hs.load("hf://me/colours")


def test_addresses() -> None:
    assert read_address("hf://a/b") == Address("a/b")
    assert read_address(Path("hf://a/b@v1")) == Address("a/b", "v1")
    assert str(Address("a/b", "v1")) == "hf://a/b@v1"
    assert read_address("runs/flowers") is None
    assert read_address(Path("/hf/x")) is None
