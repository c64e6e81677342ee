"""What `headstart export` prints is run exactly as it is printed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import main
from PIL import Image
from random_images import random_image
from small_models import small_model
from small_onnx import mean_colour

from headstart.data.decode import decode
from headstart.exports.formats.onnx import write_onnx
from headstart.exports.graph import export_metadata
from headstart.exports.metadata import ExportMetadata
from headstart.exports.parity import FormatResult
from headstart.exports.snippets import IMAGE, javascript_snippet
from headstart.verbs import export as export_module


def printed(
    file: Path, metadata: ExportMetadata, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, str]:
    """Language -> what stands behind it in the command's output, to the letter."""
    row = FormatResult("onnx", 1, 1, 0.2, 1.0, 1, 1.0)
    exported = export_module.Exported(file, metadata, (row,), "val of runs/own")
    monkeypatch.setattr(export_module, "export", lambda *_, **__: exported)
    status, out, err = main("export", "runs/own", capsys=capsys)
    assert status == 0, err
    python, _, javascript = out.partition("\npython:\n\n")[2].partition("\njavascript:\n\n")
    return {"python": python, "javascript": javascript}


def alpha_zero(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(0)
    return image


@pytest.mark.slow
@pytest.mark.parametrize("how", [["-c"], ["-i", "-q"]], ids=["script", "interactive"])
@pytest.mark.parametrize("kind", ["one class", "several labels", "outlier", "alpha that is zero everywhere"])
def test_the_printed_snippet_runs_as_it_is(
    kind: str,
    how: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    metadata = export_metadata(small_model(), written_with={})
    metadata = replace(metadata, classes=("red", "green", "blue"), decode_at_least=64, none_above=None)
    if kind == "several labels":
        metadata = replace(metadata, thresholds=(0.3, 0.3, 0.3))
    if kind == "outlier":
        metadata = replace(metadata, none_above=0.01)
    monkeypatch.chdir(tmp_path)
    file = Path("model.onnx")
    write_onnx(mean_colour(outlier=kind == "outlier"), metadata, file)
    image = random_image(3, (40, 60, 200))
    zero = kind.startswith("alpha")
    (alpha_zero(image) if zero else image).save(tmp_path / IMAGE, format="PNG")
    text = printed(file, metadata, monkeypatch, capsys)["python"]
    assert not text.startswith((" ", "\n"))
    given = {"args": [text]} if how == ["-c"] else {"input": text}
    done = subprocess.run(
        [sys.executable, "-I", *how, *given.get("args", [])],
        input=given.get("input"),
        stdin=None if "input" in given else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Error" not in done.stderr
    expected = np.array(decode(tmp_path / IMAGE).image).mean((0, 1)) / 30
    chances = np.exp(expected) / np.exp(expected).sum()
    if kind == "several labels":
        assert "'blue'" in done.stdout
        assert "'red'" not in done.stdout
        return
    answer, _, chance = done.stdout.strip().splitlines()[-1].rpartition(" ")
    assert answer.removeprefix(">>> ") == ("none of these" if kind == "outlier" else "blue")
    assert float(chance) == pytest.approx(chances.max(), abs=1e-4)


def test_the_javascript_snippet_stands_at_the_left_margin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = export_metadata(small_model(), written_with={})
    text = printed(tmp_path / "model.onnx", metadata, monkeypatch, capsys)["javascript"]
    assert text.startswith('import fs from "node:fs";\n')
    assert text == javascript_snippet(tmp_path / "model.onnx", metadata) + "\n"
    assert not any(line.startswith(" ") for line in text.splitlines())
