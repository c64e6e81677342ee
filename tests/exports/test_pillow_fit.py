"""The resize of readers with a fixed input size is Headstart's, to the pixel, and so are the snippets'."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from random_images import random_image
from small_models import small_model

from headstart.data.bit_depth import LEVELS, DeepValues
from headstart.data.preprocessing import Preprocessing, resize_and_crop
from headstart.exports.graph import export_metadata
from headstart.exports.metadata import ExportMetadata
from headstart.exports.phone_snippets import executorch_snippet, kotlin_snippet, litert_snippet, swift_snippet
from headstart.exports.readers import pillow_fit

SIZES = [(90, 70), (70, 91), (300, 40), (33, 200), (64, 64), (1, 1), (5, 3), (129, 255)]
"""(width, height); larger and smaller than the input, wide, tall and tiny."""

CASES = {
    "crop": Preprocessing(64, 64),
    "crop of another shape": Preprocessing(48, 64, 0.9),
    "bilinear": Preprocessing(60, 60, 0.95, interpolation="bilinear"),
    "lanczos": Preprocessing(64, 64, interpolation="lanczos"),
    "box": Preprocessing(64, 64, interpolation="box"),
    "hamming": Preprocessing(64, 64, interpolation="hamming"),
    "squash": Preprocessing(64, 48, 0.9, "squash"),
    "pad": Preprocessing(64, 64, 1.0, "border", mean=(0.2, 0.4, 0.6)),
    "pad and crop": Preprocessing(63, 64, 0.9, "border"),
}


def images() -> list[Image.Image]:
    noise = np.random.default_rng(0)
    return [
        Image.blend(
            random_image(i).resize(size), Image.fromarray(noise.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)), 0.5
        )
        for i, size in enumerate(SIZES)
    ]


def document(case: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(asdict(CASES[case])))
    return found


def metadata_of(case: str, **changes: Any) -> ExportMetadata:
    model = small_model(ood_detector=True, **changes)
    return ExportMetadata(
        **vars(export_metadata(model, written_with={}, before_graph="Resize.")) | {"preprocessing": document(case)}
    )


@pytest.mark.parametrize("case", CASES)
def test_pixels_are_those_of_headstart(case: str) -> None:
    for image in images():
        expected = resize_and_crop(image, CASES[case])
        assert np.array_equal(pillow_fit.fitted(np.array(image), document(case)), expected), image.size


def test_a_crop_that_is_off_by_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = pillow_fit._offset
    monkeypatch.setattr(pillow_fit, "_offset", lambda length, count: right(length, count) + 1)
    image = images()[0]
    assert not np.array_equal(
        pillow_fit.fitted(np.array(image), document("crop")), resize_and_crop(image, CASES["crop"])
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("snippet", [litert_snippet, executorch_snippet])
def test_the_python_snippet_resizes_to_the_same_pixels(case: str, snippet: Any) -> None:
    text = snippet(Path("m.tflite"), metadata_of(case))
    ast.parse(text)
    fit = text[text.index('image = image.convert("RGB")\n') : text.index("pixels = numpy.asarray")]
    for image in images():
        names = {"image": image, "Image": Image}
        exec(fit + "pixels = canvas", names)  # the snippet
        assert np.array_equal(np.asarray(names["pixels"]), resize_and_crop(image, CASES[case])), image.size


def test_the_python_snippets_name_file_and_outputs() -> None:
    one, several = metadata_of("crop"), metadata_of("crop", several=True)
    assert 'Interpreter("m.tflite")' in litert_snippet(Path("m.tflite"), one)
    assert 'metadata["none_above"]' in litert_snippet(Path("m.tflite"), one)
    assert 'metadata["thresholds"]' in litert_snippet(Path("m.tflite"), several)
    assert 'load_program("m.pte")' in executorch_snippet(Path("m.pte"), one)
    assert 'forResource: "m"' in swift_snippet(Path("m.mlpackage"), one)
    assert "// m.tflite, copied" in kotlin_snippet(Path("m.tflite"), one)


def test_the_swift_snippet_gives_the_answer_of_each_kind_of_model() -> None:
    one, several = metadata_of("crop"), metadata_of("crop", several=True)
    found = {name: swift_snippet(Path("m.mlpackage"), own) for name, own in (("one", one), ("several", several))}
    assert 'if outlier > (metadata["none_above"] as! Double) { return (metadata["none"] as! String' in found["one"]
    assert 'metadata["thresholds"] as! [Double]' in found["several"]
    assert "thresholds" not in found["one"]
    plain = swift_snippet(Path("m.mlpackage"), replace(one, none_above=None))
    assert "outlier" not in plain
    for text in (*found.values(), plain):
        assert text.count("{") == text.count("}")
        assert "{{" not in text


def test_snippets_for_phones_scale_images_of_more_than_8_bits_where_the_model_was_trained_in_a_range() -> None:
    usual = metadata_of("crop")
    deep = replace(usual, preprocessing=usual.preprocessing | {"value_range": [0.1, 0.3]})
    for snippet in (kotlin_snippet, swift_snippet):
        assert "scaled" not in snippet(Path("m"), usual)
        assert "(0.3 - 0.1)" in snippet(Path("m"), deep)
        assert "keep the upper 8 bits only" in snippet(Path("m"), deep)


STUBS = {
    "Bitmap": """package android.graphics
class Bitmap(val width: Int, val height: Int, val pixels: IntArray) {
    fun getPixels(to: IntArray, offset: Int, stride: Int, x: Int, y: Int, width: Int, height: Int) { }
}""",
    "Interpreter": """package org.tensorflow.lite
class Interpreter(file: java.io.File) { fun runSignature(inputs: Map<String, Any>, outputs: Map<String, Any>) { } }""",
    "JSONObject": """package org.json
class JSONArray { fun getString(index: Int) = ""; fun getDouble(index: Int) = 0.0 }
class JSONObject(text: String) {
    fun getDouble(name: String) = 0.0
    fun getString(name: String) = ""
    fun getJSONArray(name: String) = JSONArray()
}""",
}
"""Declarations of Android's classes that the snippet uses, with their signatures."""

MAIN = """
fun main(arguments: Array<String>) {
    for (name in arguments) {
        val data = File(name).readBytes().map { it.toInt() and 255 }
        val width = data[0] * 256 + data[1]
        val height = data[2] * 256 + data[3]
        val argb = IntArray(width * height) { i ->
            255 shl 24 or (data[4 + i * 3] shl 16) or (data[5 + i * 3] shl 8) or data[6 + i * 3]
        }
        File(name + ".fitted").writeBytes(ByteArray(0) + fit(argb, width, height).map { it.toByte() })
    }
}
"""


def compiled(text: str, folder: Path) -> Path:
    """A jar of the snippet, with a main function, and the stand-ins of Android's classes."""
    if not shutil.which("kotlinc") or not shutil.which("kotlin"):
        pytest.skip("no Kotlin compiler (kotlinc)")
    sources = STUBS | {"Classifier": text}
    for name, source in sources.items():
        (folder / f"{name}.kt").write_text(source)
    files = [str(folder / f"{name}.kt") for name in sources]
    made = subprocess.run(["kotlinc", *files, "-d", str(folder / "m.jar")], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return folder / "m.jar"


@pytest.mark.exhaustive
def test_the_kotlin_snippet_scales_16_bits_as_headstart_does(tmp_path: Path) -> None:
    usual = metadata_of("crop")
    deep = replace(usual, preprocessing=usual.preprocessing | {"value_range": [0.1, 0.3]})
    main = (
        "fun main(names: Array<String>) { File(names[0]).writeBytes(ByteArray(65536) { scaled(it, 65535).toByte() }) }"
    )
    jar, out = compiled(f"{kotlin_snippet(Path('m.tflite'), deep)}\n{main}\n", tmp_path), tmp_path / "levels"
    subprocess.run(["kotlin", "-cp", str(jar), "ClassifierKt", str(out)], check=True)
    levels = np.arange(LEVELS, dtype=np.uint16).reshape(256, 256)
    expected = np.array(DeepValues(levels, LEVELS - 1, 16).to_8_bits((0.1, 0.3)))
    assert np.array_equal(np.frombuffer(out.read_bytes(), np.uint8), expected.ravel())


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", CASES)
def test_the_kotlin_snippet_compiles_and_resizes_to_the_same_pixels(case: str, tmp_path: Path) -> None:
    jar = compiled(kotlin_snippet(Path("m.tflite"), metadata_of(case, several=case == "box")) + MAIN, tmp_path)
    raw = []
    for i, image in enumerate(images()):
        raw.append(tmp_path / f"{i}.raw")
        size = image.width.to_bytes(2, "big") + image.height.to_bytes(2, "big")
        raw[-1].write_bytes(size + np.array(image).tobytes())
    subprocess.run(["kotlin", "-cp", str(jar), "ClassifierKt", *map(str, raw)], check=True)
    for image, file in zip(images(), raw, strict=True):
        target = CASES[case]
        found = np.frombuffer(Path(f"{file}.fitted").read_bytes(), np.uint8).reshape(target.height, target.width, 3)
        assert np.abs(found.astype(int) - resize_and_crop(image, target)).max() <= (case == "hamming"), image.size
