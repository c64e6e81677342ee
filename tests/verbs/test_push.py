"""Publishing a run: what timm and transformers load stands beside Headstart's model file, where it is possible."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import main
from hub import Hub, hub_for_tests
from random_images import COLOURS, write_classes
from recorded_progress import RecordedProgress
from safetensors.torch import load

import headstart as hs
from headstart.backbone.weights import random_backbone

pytestmark = pytest.mark.slow

OURS = {"README.md", "headstart.safetensors", "recipe.json", "scores.json"}
FOR_TIMM = {"config.json", "model.safetensors", "headstart_timm.json"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> hs.Run:
    """A network that timm's own process can build, so not one of ``small_architectures``."""
    folder = tmp_path_factory.mktemp("push")
    data = write_classes(folder / "colours", dict.fromkeys(COLOURS, 24))
    torch.save(random_backbone("test_resnet").module.state_dict(), folder / "w.pth")
    options = {"backbone": "test_resnet", "weights": str(folder / "w.pth"), "image_size": 64, "layers": "last"}
    return hs.train(data, out=folder / "run", device="cpu", val=0.35, **options)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with hub_for_tests(tmp_path / "cache") as held:
        yield held


def test_a_pushed_run_is_a_model_of_headstart_and_of_timm(
    run: hs.Run, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = main("push", run.folder, "me/colours", capsys=capsys)
    assert code == 0, err
    assert "Comparing with the model on" in err
    files = hub.repositories["me/colours"]
    assert set(files) == OURS | FOR_TIMM
    assert files["headstart.safetensors"] == run.model_path.read_bytes()
    config = json.loads(files["config.json"])
    assert (config["architecture"], config["label_names"]) == ("test_resnet", list(hs.load(run.folder).classes))
    assert load(files["model.safetensors"])["fc.weight"].shape[0] == len(config["label_names"])
    card = files["README.md"].decode()
    assert 'timm.create_model("hf-hub:me/colours", pretrained=True)' in card
    assert 'pipeline("image-classification", model="me/colours")' in card
    image = next((run.folder.parent / "colours" / "red").iterdir())
    assert hs.load("hf://me/colours").predict(image) == hs.load(run.folder).predict(image)
    assert "transformers" not in (run.folder / "README.md").read_text()  # a folder on this machine is not a repository


def test_a_repository_that_is_no_longer_a_model_of_timm_keeps_no_files_for_it(run: hs.Run, hub: Hub) -> None:
    hs.push(run.folder, "me/colours")
    hs.push(run.folder, "me/colours", with_timm=False)
    assert set(hub.repositories["me/colours"]) == OURS
    assert "hf-hub" not in hub.repositories["me/colours"]["README.md"].decode()


def test_without_the_images_a_model_is_published_without_the_files_for_timm(
    run: hs.Run, hub: Hub, tmp_path: Path
) -> None:
    folder = shutil.copytree(run.folder, tmp_path / "run")
    table = folder / "split.csv"
    table.write_text(table.read_text().replace(str(run.folder.parent / "colours"), str(tmp_path / "gone")))
    progress = RecordedProgress()
    hs.push(folder, "me/colours", progress=progress)
    assert set(hub.repositories["me/colours"]) == OURS
    assert "Published without the files for timm and transformers: " in " ".join(progress.said)


def test_a_repository_of_an_earlier_version_is_loaded(run: hs.Run, hub: Hub) -> None:
    hub.repositories["me/earlier"] = {"model.safetensors": run.model_path.read_bytes()}
    assert hs.load("hf://me/earlier").version == hs.load(run.folder).version
