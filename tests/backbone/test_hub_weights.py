"""Weights on the hub and in timm's cache, with a server on this machine."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from hub import Hub, hub_for_tests, hub_on_this_machine
from plain_http import answering
from random_images import write_classes
from safetensors.torch import save_file

from headstart.backbone.hub_weights import cached_file, cached_names, download, download_bytes
from headstart.backbone.weights import build_architecture, load_backbone
from headstart.errors import WeightsError
from headstart.progress import SilentProgress

Command = Callable[..., subprocess.CompletedProcess[str]]
"""Runs a command in a new process."""

NAME = "test_resnet.r160_in1k"
REPOSITORY = f"timm/{NAME}"
CONFIG = timm.get_pretrained_cfg(NAME)


class RecordedTasks(SilentProgress):
    """Keeps (name, total, unit) of each task, and what was advanced."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, int, str]] = []
        self.advanced: list[int] = []

    @contextmanager
    def task(self, name: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        self.tasks.append((name, total, unit))
        yield self.advanced.append


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with hub_for_tests(tmp_path / "cache") as served:
        served.repositories[REPOSITORY] = {}
        yield served


@pytest.mark.slow
def test_a_download_is_shown_in_megabytes_by_the_progress_that_is_given(
    hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.repositories[REPOSITORY]["model.safetensors"] = bytes(12_400_000)
    progress = RecordedTasks()
    assert download_bytes(CONFIG) == 12_400_000
    file = download(CONFIG, NAME, progress)
    assert progress.tasks == [(f"Downloading {NAME}", 13, "MB")]
    assert sum(progress.advanced) == 13
    assert len([count for count in progress.advanced if count]) > 1  # while it arrives, not at the end
    assert file == cached_file(CONFIG)
    assert list(cached_names()) == [NAME]
    assert "".join(capfd.readouterr()) == ""  # the hub's bar is not shown


def test_loading_a_backbone_passes_its_progress_on(hub: Hub) -> None:
    hub.repositories[REPOSITORY]["model.safetensors"] = bytes(3_000_000)
    progress = RecordedTasks()
    with pytest.raises(WeightsError, match=r"in timm's cache cannot be read .* Remove the file"):
        load_backbone(NAME, progress=progress)  # these bytes are no weights
    assert progress.tasks == [(f"Downloading {NAME}", 3, "MB")]


def test_older_files_are_used_where_a_repository_has_no_safetensors(hub: Hub) -> None:
    hub.repositories[REPOSITORY]["pytorch_model.bin"] = b"12345"
    assert download_bytes(CONFIG) == 5
    assert download(CONFIG, NAME, SilentProgress()).name == "pytorch_model.bin"
    assert cached_file(CONFIG) is not None


def test_a_repository_without_weights_is_named(hub: Hub) -> None:
    with pytest.raises(FileNotFoundError, match=f"{REPOSITORY} contains neither model.safetensors"):
        download_bytes(CONFIG)


def test_nothing_is_asked_where_the_network_is_switched_off(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for use in (lambda: download_bytes(CONFIG), lambda: download(CONFIG, NAME, SilentProgress())):
        with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
            use()
    assert hub.asked == []


@pytest.mark.slow
def test_the_command_shows_a_download_that_takes_a_while(tmp_path: Path, headstart: Command) -> None:
    save_file(build_architecture("test_resnet", classes=1000).state_dict(), tmp_path / "w.safetensors")
    data = write_classes(tmp_path / "data", {"a": 2, "b": 2})
    settings = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
    with hub_on_this_machine() as served:
        served.repositories[REPOSITORY] = {"model.safetensors": (tmp_path / "w.safetensors").read_bytes()}
        served.seconds = 2.5
        done = headstart(
            *("extract", data, "--backbone", "test_resnet", "--out", tmp_path / "f.npz"),
            **settings,
            HF_ENDPOINT=served.address,
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("Downloading test_resnet: 0 of 2 MB, ")
    assert "model.safetensors" not in done.stderr  # the hub's own bar


@contextmanager
def release(content: bytes) -> Iterator[str]:
    """A server of weights that are not on the hub."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with answering(Handler) as url:
        yield url


def test_weights_that_are_not_on_the_hub_are_downloaded_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    content, progress = bytes(2_500_000), RecordedTasks()
    digest = hashlib.sha256(content).hexdigest()[:8]
    with release(content) as url:
        config = SimpleNamespace(hf_hub_id=None, url=f"{url}/weights-{digest}.pth")
        assert download_bytes(config) == 2_500_000
        assert cached_file(config) is None
        file = download(config, "old", progress)
        assert (file, file.read_bytes()) == (cached_file(config), content)
        assert (progress.tasks, sum(progress.advanced)) == ([("Downloading old", 3, "MB")], 3)
        damaged = SimpleNamespace(hf_hub_id=None, url=f"{url}/weights-00000000.pth")
        with pytest.raises(ConnectionError, match="does not begin with 00000000"):
            download(damaged, "old", progress)
        assert cached_file(damaged) is None
