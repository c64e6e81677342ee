"""A Gradio Space: its page gives the model's answers without Headstart, or is not written."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import main
from small_models import shown, small_model, write_shown

import headstart as hs
from headstart.errors import ExportError, OutputError
from headstart.exports.space import SPACE_FILES
from headstart.model import Model
from headstart.verbs import Exported, space
from headstart.verbs import gradio_space as space_module

PYTHON = os.environ.get("HEADSTART_SPACE_PYTHON", "")
"""A Python with what the requirements.txt of a Space installs, and nothing else."""

TITLE = 'Colours: "blue", green & 🎨'


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model(ood_detector=True)


@pytest.fixture(scope="module")
def exported(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    images = write_shown(folder / "images", 9)
    return hs.export(model, "onnx", out=folder / "small.onnx", data=images)


@pytest.fixture
def once_exported(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export takes ten seconds; test_export.py tests it."""

    def export(_model: Model, _to: str, *, out: Path, **_: Any) -> Exported:
        return replace(exported, file=Path(shutil.copy(exported.file, out)))

    monkeypatch.setattr(space_module, "export", export)


@pytest.mark.slow
@pytest.mark.usefixtures("once_exported")
def test_the_folder_is_a_space_whose_app_gives_the_models_answers(model: Model, tmp_path: Path) -> None:
    written = space(model, tmp_path / "new" / "space", title=TITLE)
    assert {file.name for file in written.folder.iterdir()} == set(SPACE_FILES)
    assert written.exported.file == written.folder / "model.onnx"
    assert written.images_of_app == 7
    _, front, card = (written.folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    settings = yaml.safe_load(front)
    assert (settings["title"], settings["sdk"], settings["app_file"]) == (TITLE, "gradio", "app.py")
    assert f"# {TITLE}\n" in card
    image = tmp_path / "image.png"
    shown(5).save(image)
    done = subprocess.run(
        [sys.executable, "-I", str(written.folder / "app.py"), str(image)], capture_output=True, text=True, check=True
    )
    (line,) = done.stdout.splitlines()
    answer, expected = json.loads(line), model.predict(image)
    assert answer["answer"] == expected.answer
    assert answer["probabilities"] == pytest.approx(dict(expected.top), abs=1e-4)
    space(model, written.folder)  # again, in place of itself


FAULTS: dict[str, tuple[str, str]] = {
    "BGR": ('image.convert("RGB"))[None]', 'image.convert("RGB"))[None, :, :, ::-1].copy()'),
    "no orientation": ("image = ImageOps.exif_transpose(image)", ""),
    "transparency over black": ('image.size, "white")', 'image.size, "black")'),
    "no reduced decoding": ('image.draft(None, (metadata["decode_at_least"],) * 2)', "pass"),
    "swapped classes": ('zip(metadata["classes"], prob', 'zip(metadata["classes"][::-1], prob'),
    "never unsure": ('scores[best] < metadata["unsure_below"]', "False"),
    "does not run": ("import numpy", "import no_such_module"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("once_exported")
@pytest.mark.parametrize("fault", FAULTS)
def test_an_app_that_answers_otherwise_is_refused(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, (right, wrong) = space_module.app_code, FAULTS[fault]

    def broken(*arguments: Any) -> str:
        code = made(*arguments)
        assert right in code
        return code.replace(right, wrong)

    monkeypatch.setattr(space_module, "app_code", broken)
    with pytest.raises(ExportError, match=r"app\.py: (not written: .*|cannot be run in a separate process)"):
        space(small_model(ood_detector=fault != "never unsure"), tmp_path / "new" / "space")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_in_it_is_not_replaced(model: Model, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("print(1)")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"is not empty \(mine\.txt\)"):
        space(model, tmp_path)
    with pytest.raises(OutputError, match=r"is not empty \(mine\.txt\)"):
        space(model, tmp_path / "new" / "..")
    with pytest.raises(OutputError, match="is a file"):
        space(model, tmp_path / "mine.txt")


@pytest.mark.slow
@pytest.mark.usefixtures("once_exported")
def test_the_command_says_how_to_run_and_publish_it(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = model.save(tmp_path / "m.safetensors")
    code, out, err = main("space", file, "--out", tmp_path / "space", capsys=capsys)
    assert code == 0, err
    assert f"hf upload OWNER/NAME {tmp_path / 'space'} . --repo-type space" in out
    code, out, err = main("space", file, "--out", tmp_path / "space", "--json", capsys=capsys)
    assert (code, json.loads(out)["images_of_app"]) == (0, 7), err


ASK = """
import json, sys
from gradio_client import Client, handle_file

client = Client(sys.argv[1], verbose=False)
for path in sys.argv[2:]:
    answer, label = client.predict(handle_file(path), api_name="/predict")
    print(json.dumps([answer, label["confidences"]]))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("once_exported")
def test_the_page_answers_in_an_environment_of_its_requirements(model: Model, tmp_path: Path) -> None:
    if not PYTHON:
        pytest.skip("no environment with Gradio (HEADSTART_SPACE_PYTHON)")
    folder = space(model, tmp_path / "space").folder
    (tmp_path / "images").mkdir()
    images = [str(path) for path in space_module.write_probe_images(tmp_path / "images")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "HOME": str(tmp_path)}
    address = f"http://127.0.0.1:{port}/"
    page = subprocess.Popen([PYTHON, "-I", "app.py"], cwd=folder, env=os.environ | environment)
    try:
        _wait_until(lambda: urllib.request.urlopen(address).status == 200, page)
        done = subprocess.run(
            [PYTHON, "-I", "-c", ASK, address, *images], capture_output=True, text=True, check=True, cwd=tmp_path
        )
    finally:
        page.kill()
        page.wait()
    for line, expected in zip(done.stdout.splitlines(), model.predict(images), strict=True):
        answer, scores = json.loads(line)
        assert answer == expected.answer
        assert {row["label"]: row["confidence"] for row in scores} == pytest.approx(dict(expected.top), abs=1e-3)


def _wait_until(is_up: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    for _ in range(120):
        assert process.poll() is None
        try:
            if is_up():
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail("the page does not start within a minute")
