"""What `headstart export` prints is run exactly as it is printed."""

from __future__ import annotations

import os
import shutil
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
from headstart.exports.snippets import IMAGE, cpp_snippet, javascript_snippet
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
    python, _, others = out.partition("\npython:\n\n")[2].partition("\njavascript:\n\n")
    javascript, _, cpp = others.partition("\nc++:\n\n")
    return {"python": python, "javascript": javascript, "c++": cpp}


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


ONNXRUNTIME = os.environ.get("HEADSTART_ONNXRUNTIME", "")
"""A folder with headers and library of ONNX Runtime, in include and lib."""

STUB_HEADER = """
#include <cstdint>
#include <string>
#include <vector>
#define ORTCHAR_T char
#define ORT_TSTR(text) text
enum OrtAllocatorType { OrtArenaAllocator };
enum OrtMemType { OrtMemTypeDefault };
namespace Ort {
struct Env {};
struct SessionOptions {};
struct RunOptions {};
struct MemoryInfo { static MemoryInfo CreateCpu(OrtAllocatorType, OrtMemType) { return {}; } };
struct Value {
    std::vector<float> numbers;
    static Value CreateTensor(const MemoryInfo&, uint8_t* data, size_t count, const int64_t* shape, size_t sides) {
        float sum = 0;
        for (size_t i = 0; i < count; i++) sum += data[i] * float(i % 3 + 1);
        return {{sum, float(shape[1] * 1000 + shape[2]), float(sides)}};
    }
    template <typename T> const T* GetTensorData() const { return numbers.data(); }
};
struct Session {
    Session(Env&, const char*, const SessionOptions&) {}
    using Names = const char* const*;
    std::vector<Value> Run(const RunOptions&, Names, const Value* in, size_t, Names, size_t n) {
        const bool right = in->numbers == std::vector<float>{1 * 10 + 2 * 20 + 3 * 30, 1002, 4};
        std::vector<Value> found = {{{0.25f, right ? 0.75f : 0.0f, 0.5f}}, {{0.96875f}}};
        found.resize(n);
        return found;
    }
};
}
"""
"""In place of ONNX Runtime: three scores if pixels and shape are those of the test, and an outlier score of 0.96875."""


def run_cpp(text: str, folder: Path, image: Path, include: Path, *options: str) -> str:
    """Compiles the snippet and returns what it prints."""
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler (g++)")
    (folder / "classify.cpp").write_text(text, encoding="utf-8")
    program = folder / "classify"
    command = [
        "g++",
        "-std=c++17",
        "-Wall",
        "-Werror",
        f"-I{include}",
        folder / "classify.cpp",
        "-o",
        program,
        *options,
    ]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    done = subprocess.run([program, image], capture_output=True, text=True, check=True, encoding="utf-8")
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 'b "q" \\ \x01é 0.75\n'),
        ({"none_above": 0.97}, 'b "q" \\ \x01é 0.75\n'),
        ({"none_above": 0.96}, "none of these 0.75\n"),
        ({"thresholds": (0.3, 0.75, 0.4)}, 'b "q" \\ \x01é, c 0.5\n'),
        ({"thresholds": (0.9, 0.9, 0.9)}, " 1\n"),
    ],
    ids=["class", "below", "outlier", "labels", "no label"],
)
def test_the_cpp_snippet_compiles_and_prints_the_answer(changes: dict, expected: str, tmp_path: Path) -> None:
    metadata = replace(export_metadata(small_model(), written_with={}), classes=("a", 'b "q" \\ \x01é', "c"))
    (tmp_path / "onnxruntime_cxx_api.h").write_text(STUB_HEADER)
    image = tmp_path / "image.ppm"
    image.write_bytes(b"P6\n2 1\n255\n" + bytes([10, 20, 30, 0, 0, 0]))
    text = cpp_snippet(
        tmp_path / "m.onnx", replace(metadata, none_above=None) if not changes else replace(metadata, **changes)
    )
    assert run_cpp(text, tmp_path, image, tmp_path) == expected


@pytest.mark.exhaustive
def test_the_cpp_snippet_agrees_with_onnx_runtime(tmp_path: Path) -> None:
    if not ONNXRUNTIME:
        pytest.skip("no headers and library of ONNX Runtime (HEADSTART_ONNXRUNTIME)")
    metadata = replace(
        export_metadata(small_model(), written_with={}), classes=("red", "green", "blue"), none_above=None
    )
    write_onnx(mean_colour(), metadata, tmp_path / "m.onnx")
    image = random_image(3, (40, 60, 200))
    image.save(tmp_path / "image.ppm")
    lib = Path(ONNXRUNTIME) / "lib"
    options = f"-L{lib}", "-lonnxruntime", f"-Wl,-rpath,{lib}"
    text = cpp_snippet(tmp_path / "m.onnx", metadata)
    answer, _, chance = run_cpp(
        text, tmp_path, tmp_path / "image.ppm", Path(ONNXRUNTIME) / "include", *options
    ).rpartition(" ")
    expected = np.array(image).mean((0, 1)) / 30
    assert answer == "blue"
    assert float(chance) == pytest.approx((np.exp(expected) / np.exp(expected).sum()).max(), abs=1e-4)


def test_the_cpp_snippet_is_printed_and_says_what_to_do_with_deep_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = export_metadata(small_model(), written_with={})
    text = printed(tmp_path / "model.onnx", metadata, monkeypatch, capsys)["c++"]
    assert text == cpp_snippet(tmp_path / "model.onnx", metadata) + "\n"
    assert "more than 8 bits" not in text
    deep = replace(metadata, preprocessing=metadata.preprocessing | {"value_range": [0.1, 0.3]})
    assert "255 * (value / white - 0.1) / (0.3 - 0.1)" in cpp_snippet(tmp_path / "model.onnx", deep)


def test_the_cpp_snippet_escapes_what_changes_the_direction_of_text(tmp_path: Path) -> None:
    metadata = replace(export_metadata(small_model(), written_with={}), classes=("a\u202eb", "وردة 🌹", "\u2028"))
    text = cpp_snippet(tmp_path / "m.onnx", metadata)
    assert r'classes = {"a\U0000202eb", "وردة 🌹", "\U00002028"}' in text
