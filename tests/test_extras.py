"""Extras: without one everything else works, and what needs it says how to install it."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from random_images import write_classes
from recorded_progress import RecordedProgress
from safetensors.torch import save_file
from small_models import small_model

import headstart as hs
from headstart.backbone.weights import random_backbone
from headstart.data.decode import decode
from headstart.errors import MissingExtra, UnreadableImage
from headstart.extras import EXTRAS, importing_extra, install_command, is_installed, version_of
from headstart.runs.tensorboard import BOARD_FOLDER

QUICK: dict[str, Any] = {"backbone": "test_resnet", "image_size": 32, "effort": "probe"}


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the modules of an extra impossible to import, as if they were not installed."""

    def hidden(extra: str) -> None:
        if "headstart.serve" in sys.modules:  # the attribute is restored with the modules
            monkeypatch.setattr(sys.modules["headstart"], "serve", sys.modules["headstart.serve"])
        for name in [name for name in sys.modules if name.startswith("headstart.serve")]:
            monkeypatch.delitem(sys.modules, name)
        for module in EXTRAS[extra]:
            for name in [name for name in sys.modules if name.split(".")[0] == module]:
                monkeypatch.delitem(sys.modules, name)
            monkeypatch.setitem(sys.modules, module, None)

    return hidden


@pytest.mark.parametrize("extra", EXTRAS)
def test_modules_of_an_extra_are_installed_for_the_tests_and_can_be_hidden(
    extra: str, hide: Callable[[str], None]
) -> None:
    assert is_installed(extra) or extra in ("heif", "openvino")
    hide(extra)
    assert not is_installed(extra)


def asks_for(extra: str) -> Any:
    return pytest.raises(MissingExtra, match=re.escape(f'Run: pip install "headstart[{extra}]"'))


def test_the_server_without_its_extra(hide: Callable[[str], None]) -> None:
    hide("serve")
    with asks_for("serve"):
        import headstart.serve

        headstart.serve.create_app("runs/flowers")
    with asks_for("serve"):
        import headstart.serve.watch


@pytest.mark.parametrize(("to", "name"), [("onnx", "m.onnx"), ("web", "m_web")])
def test_an_export_to_onnx_without_its_extra(to: str, name: str, hide: Callable[[str], None], tmp_path: Path) -> None:
    data, progress = write_classes(tmp_path / "d", {"blue": 4, "green": 4, "red": 4}), RecordedProgress()
    hide("export")
    with asks_for("export"):
        hs.export(small_model(), to, out=tmp_path / name, data=data, progress=progress)
    assert not (tmp_path / name).exists()
    assert not progress.said  # before anything is announced or downloaded


def test_parquet_without_its_extra(hide: Callable[[str], None], tmp_path: Path) -> None:
    from headstart.evaluation.tables import write_predictions
    from headstart.files import check_suffix

    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    hide("parquet")
    with asks_for("parquet"):
        hs.open_data(tmp_path / "t.parquet")
    with asks_for("parquet"):
        write_predictions(tmp_path / "p.parquet", [])
    with asks_for("parquet"):  # before any work is done for it
        check_suffix(tmp_path / "p.parquet", [".parquet"])


def test_heic_files_without_their_extra(hide: Callable[[str], None]) -> None:
    hide("heif")
    with pytest.raises(UnreadableImage, match=re.escape(install_command("heif"))):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


@pytest.mark.slow
def test_training_without_tensorboard_writes_no_curves(hide: Callable[[str], None], tmp_path: Path) -> None:
    data = write_classes(tmp_path / "d", {"blue": 24, "red": 24})
    weights = tmp_path / "w.safetensors"
    save_file(random_backbone("test_resnet").module.state_dict(), weights)
    hide("tensorboard")
    run = hs.train(data, out=tmp_path / "run", head="8", weights=weights, **QUICK)
    assert run.model_path.is_file()
    assert not (run.folder / BOARD_FOLDER).exists()


def test_another_missing_module_is_not_mistaken_for_an_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module") as caught, importing_extra("serve", "the server"):
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert not isinstance(caught.value, MissingExtra)


def test_the_version_of_a_distribution_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    version_of.cache_clear()
    assert version_of("torch") == importlib.metadata.version("torch")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: pytest.fail(f"{name} is read again"))
    assert version_of("torch")
