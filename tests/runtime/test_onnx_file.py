"""Opening exported files: what is damaged, changed, foreign or newer is refused with a clear message."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from small_onnx import mean_colour, small_metadata, small_onnx

from headstart.errors import ExportError
from headstart.exports.formats.onnx import write_onnx
from headstart.exports.metadata import KEY, ExportMetadata
from headstart.runtime import load
from headstart.runtime.onnx_file import OnnxFile


def test_a_file_gives_back_its_metadata(tmp_path: Path) -> None:
    file = small_onnx(tmp_path / "m.onnx", scores={"val": {"accuracy": 0.5}})
    metadata = OnnxFile(file).metadata
    assert len(metadata.sha256) == 64
    assert replace(metadata, sha256="") == small_metadata(scores={"val": {"accuracy": 0.5}})
    assert file.read_bytes().endswith(metadata.text().encode())


def altered(file: Path, old: bytes, new: bytes) -> Path:
    """The file with other bytes of the same length."""
    content = file.read_bytes()
    assert content.count(old) >= 1
    assert len(old) == len(new)
    file.write_bytes(content.replace(old, new))
    return file


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'["red", "green", "blue"]', b'["blue", "green", "red"]'),  # swapped classes
        (b'"unsure_below": 0.5', b'"unsure_below": 0.1'),
        (b'"mean_colour"', b'"mean_color!"'),
    ],
)
def test_altered_metadata_are_seen(old: bytes, new: bytes, tmp_path: Path) -> None:
    file = altered(small_onnx(tmp_path / "m.onnx"), old, new)
    with pytest.raises(ExportError, match=r"m\.onnx: its content does not match its checksum"):
        load(file)


def test_an_altered_weight_is_seen(tmp_path: Path) -> None:
    """ONNX Runtime itself opens such a file."""
    file = small_onnx(tmp_path / "m.onnx", scale=30.0)
    other = small_onnx(tmp_path / "o.onnx", scale=31.0)
    one, two = file.read_bytes(), other.read_bytes()
    places = [i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
    weight = places[0]
    file.write_bytes(one[:weight] + two[weight : weight + 1] + one[weight + 1 :])
    with pytest.raises(ExportError, match="does not match its checksum"):
        load(file)


def test_every_flipped_byte_at_the_end_is_seen(tmp_path: Path) -> None:
    file = small_onnx(tmp_path / "m.onnx")
    content = file.read_bytes()
    for place in (-1, -2, -3, -40, -66, -67):
        damaged = bytearray(content)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(ExportError, match=r"m\.onnx: "):
            load(file)


def test_a_file_of_an_earlier_version_has_no_checksum_and_is_opened(tmp_path: Path) -> None:
    proto, document = mean_colour(), json.loads(small_metadata().text())
    for name in ("sha256", "scores", "is_calibrated", "calibration"):
        del document[name]
    onnx.helper.set_model_props(proto, {KEY: json.dumps(document)})
    onnx.save(proto, tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    assert (model.is_calibrated, model.calibration_text, model.scores) == (True, "", {})


def test_unknown_keys_of_a_later_version_are_ignored() -> None:
    text = json.dumps(json.loads(small_metadata().text()) | {"more": 1})
    assert ExportMetadata.read(text, Path("m.onnx")) == small_metadata()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.onnx", None, "no such file"),
        ("empty.onnx", b"", "damaged, or not an ONNX file|not written by Headstart"),
        ("text.onnx", b"no graph", r"damaged, or not an ONNX file \(\w.*\)\. Copy or export it again\."),
        ("model.safetensors", b"", r"expected an ONNX file \(\.onnx\) written by headstart export"),
    ],
)
def test_what_is_no_onnx_file_is_refused(name: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ExportError, match=rf"{name}: .*(?:{words})"):
        load(tmp_path / name)


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    file = small_onnx(tmp_path / "m.onnx")
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ExportError, match="damaged, or not an ONNX file"):
        load(file)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    onnx.save(mean_colour(), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"m\.onnx: not written by Headstart\. Expected .* headstart export"):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"headstart_export": 99}, "Install a newer Headstart"),
        ({"classes": ("red", "blue")}, "graph and metadata do not fit: 2 classes"),
        ({"classes": "red"}, "the metadata is damaged"),
        ({"thresholds": (0.5,)}, "the metadata is damaged"),
        ({"preprocessing": {"height": 64}}, "the metadata is damaged"),
        ({"preprocessing": {"height": 64, "width": 64, "depth": 3}}, "the metadata is damaged"),
        ({"preprocessing": {"height": "64", "width": 64}}, "the metadata is damaged"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    write_onnx(mean_colour(), small_metadata(**changes), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=words):
        load(tmp_path / "m.onnx")


def test_another_limit_of_none_of_these_is_refused_and_not_ignored(tmp_path: Path) -> None:
    file = small_onnx(tmp_path / "m.onnx", none_above=0.5)
    with pytest.raises(ExportError, match=r"above 0\.5, this version above 0\.95"):
        load(file)


def test_a_graph_without_the_promised_output_is_refused(tmp_path: Path) -> None:
    write_onnx(mean_colour(outlier=False), small_metadata(none_above=0.95), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="graph and metadata do not fit"):
        load(tmp_path / "m.onnx")


def test_probabilities_that_are_not_numbers_are_an_error(tmp_path: Path) -> None:
    model = load(small_onnx(tmp_path / "m.onnx", scale=0.0))
    with pytest.raises(ExportError, match=r"m\.onnx: damaged: it does not give one probability for each class"):
        model.predict(b"P6 1 1 255 \x00\x00\x00")
