"""Law 6: an exported file is compared with the model on the user's images, and removed if it differs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import main
from encoded_images import encoded
from PIL import ExifTags, Image
from served import served
from small_models import CLASSES, shown, small_model, write_shown

import headstart as hs
from headstart.backbone.weights import load_backbone, random_backbone
from headstart.data.preprocessing import Fit
from headstart.errors import DataError, ExportError, OptionError, OutputError, RunError
from headstart.exports.formats.interface import WriteRequest
from headstart.exports.formats.onnx import write_onnx
from headstart.exports.formats.registry import FORMATS, open_export
from headstart.exports.graph import export_metadata
from headstart.exports.parity import ReferencePredictions, file_format, model_format, parity_failures
from headstart.exports.snippets import javascript_snippet, python_snippet
from headstart.exports.subprocess_runner import FilePredictions
from headstart.extras import is_installed
from headstart.model import Model
from headstart.verbs import Exported
from headstart.verbs import export as export_module

pytestmark = pytest.mark.exhaustive  # an export takes ten seconds; what is in the graph is tested in test_graph.py

NODE_PACKAGES = os.environ.get("HEADSTART_NODE_PACKAGES", "")
"""A folder with onnxruntime-web and sharp in node_modules."""

ODD_SIZES = [(333, 251), (97, 61), (640, 123), (65, 400), (225, 224)]

FIT_SIZES = [(900, 60), (60, 900), (3, 2), (1, 1), (126, 128), (122, 128), (64, 64), (300, 200), (200, 301)]
"""Wide, tall and tiny images, and some that are padded by an odd number of pixels; (width, height)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images of several sizes in three classes, including a large JPEG."""
    folder = write_shown(tmp_path_factory.mktemp("images"), 30, lambda i: (60 + 7 * i, 90 - i))
    shown(99).resize((1400, 1100)).save(folder / "blue" / "large.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model(ood_detector=True)


@pytest.fixture(scope="module")
def exported(model: Model, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return hs.export(model, "onnx", out=tmp_path_factory.mktemp("exported") / "small.onnx", data=folder)


@pytest.fixture
def same_graph(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    """The ONNX graph of ``model``, exported once; tests may change the copy."""
    proto = onnx.load(exported.file)
    monkeypatch.setattr("headstart.exports.formats.onnx.onnx_graph", lambda model: proto)
    return proto


def test_the_metadata_of_the_file_is_complete(exported: Exported, model: Model) -> None:
    metadata = open_export(exported.file).metadata
    assert replace(metadata, sha256="") == exported.metadata  # computed when the file is written
    assert (metadata.classes, metadata.model) == (model.classes, model.version)
    assert (metadata.unsure_below, metadata.none_above) == (0.6, 0.95)
    assert metadata.preprocessing["height"] == 64
    assert metadata.written_with["opset"] == "20"
    data = exported.file.read_bytes()
    assert json.loads(data[data.rindex(b'{"headstart_export"') :])["classes"] == list(CLASSES)
    assert str(Path(export_module.__file__).parent).encode() not in data  # traces of the exporter


def test_the_comparison_has_a_row_per_format_and_they_agree(exported: Exported) -> None:
    own, written = exported.formats
    assert (own.name, written.name) == ("model", "onnx")
    assert own.images == written.images == 31
    assert written.same == written.clear
    assert written.clear is not None
    assert written.clear > 25
    assert written.largest is not None
    assert written.largest < 1e-4
    assert own.correct == written.correct
    assert written.bytes == exported.file.stat().st_size
    assert written.full_size is not None
    assert written.full_size.images == 1


def test_raw_pixels_of_odd_sizes_get_the_predictions_of_the_model(exported: Exported, model: Model) -> None:
    opened = open_export(exported.file)
    for i, size in enumerate(ODD_SIZES):
        image = np.array(shown(200 + i).resize(size))
        chances, outliers, _ = model.predict_with_outliers([image])
        given = opened(image[None])
        assert np.abs(given[0] - chances).max() < 1e-4
        assert abs(given[1] - outliers).max() < 0.04
    batch = np.stack([np.array(shown(i)) for i in range(5)])
    assert np.abs(opened(batch)[0] - model.predict_with_outliers(list(batch))[0]).max() < 1e-4


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    shown(5).resize((900, 700)).save(path, exif=exif)


def transparent(path: Path) -> None:
    image = shown(6).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path)


KINDS: dict[str, Callable[[Path], None]] = {
    "turned.jpg": turned,
    "transparent.png": transparent,
    "palette.gif": lambda path: shown(7).convert("P").save(path),
    "grey.jpg": lambda path: shown(8).convert("L").save(path),
    "cmyk.jpg": lambda path: shown(9).convert("CMYK").save(path),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_python_snippet_prints_the_prediction_of_the_model(
    kind: str, exported: Exported, model: Model, tmp_path: Path
) -> None:
    image = tmp_path / kind
    KINDS[kind](image)
    text = python_snippet(exported.file, exported.metadata, str(image))
    assert python_snippet(exported.file, exported.metadata).splitlines() == exported.snippets["python"].splitlines()
    done = subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True, check=True)
    expected = model.predict(image)
    answer, _, chance = done.stdout.strip().rpartition(" ")
    assert answer == ("none of these" if expected.answer == "none of these" else expected.label)
    assert float(chance) == pytest.approx(expected.probability, abs=1e-4)


def test_the_javascript_snippet_prints_the_prediction_of_the_model(
    exported: Exported, model: Model, tmp_path: Path
) -> None:
    if not has_node():
        pytest.skip("no node, or no packages for it (HEADSTART_NODE_PACKAGES)")
    image = tmp_path / "image.png"
    transparent(image)
    answer, chance = run_javascript(exported, image, tmp_path)
    expected = model.predict(image)
    assert answer == ("none of these" if expected.answer == "none of these" else expected.label)
    # other programs composite transparency over white
    assert chance == pytest.approx(expected.probability, abs=0.01)


def has_node() -> bool:
    return bool(shutil.which("node")) and (Path(NODE_PACKAGES) / "node_modules" / "onnxruntime-web").is_dir()


def run_javascript(exported: Exported, image: Path, tmp_path: Path) -> tuple[str, float]:
    """(answer, probability) that the JavaScript snippet prints."""
    script = Path(NODE_PACKAGES) / f"{tmp_path.name}.mjs"
    script.write_text(javascript_snippet(exported.file, exported.metadata, str(image)))
    try:
        done = subprocess.run(["node", str(script)], capture_output=True, text=True, check=True)
    finally:
        script.unlink()
    answer, _, chance = done.stdout.strip().rpartition(" ")
    return answer, float(chance)


def oddly_shaped(folder: Path) -> list[Path]:
    """Images of ``FIT_SIZES``, upright and stored rotated (EXIF orientation 6), in a folder for each class."""
    made = []
    for place, (width, height) in enumerate(FIT_SIZES):
        for orientation in (1, 6):
            file = folder / CLASSES[place % 3] / f"{place}-{orientation}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            tags = Image.Exif()
            tags[ExifTags.Base.Orientation] = orientation
            noise = np.random.default_rng(place).integers(0, 256, (height, width, 3), dtype=np.uint8)
            image = Image.blend(Image.fromarray(noise), shown(place).resize((width, height)), 0.5)
            image.save(file, exif=tags)
            made.append(file)
    return made


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_every_fit_is_in_every_format_and_its_snippets(fit: Fit, tmp_path: Path) -> None:
    """An export raises an error if it differs from the model on one of the images."""
    model = small_model(random_backbone("test_resnet", image_size=64, fit=fit), ood_detector=True)
    images = oddly_shaped(tmp_path / "images")
    exported = hs.export(model, "onnx", out=tmp_path / "m.onnx", data=tmp_path / "images")
    assert exported.formats[1].images == len(images)
    assert exported.metadata.preprocessing["crop_mode"] == {"crop": "center", "pad": "border"}.get(fit, fit)
    program = hs.export(model, "torch", out=tmp_path / "m.pt2", data=tmp_path / "images")
    assert (program.formats[1].largest or 0) < 1e-4
    eight = hs.export(
        model, "onnx", out=tmp_path / "8.onnx", data=tmp_path / "images", quantize="int8", allow_loss=True
    )
    assert eight.metadata.precision == "int8"
    for image in (images[0], images[3], images[5]):  # wide; tall and rotated; tiny and rotated
        expected = model.predict(image)
        script = python_snippet(exported.file, exported.metadata, str(image))
        done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
        assert float(done.stdout.rsplit(" ", 1)[1]) == pytest.approx(expected.probability, abs=1e-4)
        if has_node():
            answer, chance = run_javascript(exported, image, tmp_path)
            assert answer in (expected.answer, expected.label)
            assert chance == pytest.approx(expected.probability, abs=1e-3)


def expected_of(count: int = 200) -> tuple[ReferencePredictions, FilePredictions]:
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.ones(3), count)
    outliers = rng.random(count)
    metadata = export_metadata(small_model(), written_with={})
    labels = chances.argmax(axis=1)
    known = ReferencePredictions(tuple(map(str, range(count))), labels, chances, outliers, 1.0)
    return known, FilePredictions(metadata, chances.copy(), outliers.copy(), np.full_like(chances, np.nan), 1.0, 0.1)


def faults_of(
    change: Callable[[FilePredictions], None], *, precision: str = "float32", allow_loss: bool = False
) -> list[str]:
    known, answers = expected_of()
    change(answers)
    formats = model_format(known, None, size=1), file_format("onnx", known, answers, size=1)
    return parity_failures(formats[1], formats[0], precision=precision, allow_loss=allow_loss)


def other_answers(count: int) -> Callable[[FilePredictions], None]:
    def change(answers: FilePredictions) -> None:
        answers.probabilities[:count] = np.roll(answers.probabilities[:count], 1, axis=1)

    return change


def test_a_file_is_refused_below_each_of_the_limits_and_not_above() -> None:
    assert faults_of(lambda answers: None) == []
    assert "1 of 200 predictions differ where the model has a clear margin" in faults_of(other_answers(1))[0]

    def shifted(by: float) -> Callable[[FilePredictions], None]:
        return lambda answers: answers.probabilities.__iadd__(by)

    assert faults_of(shifted(9e-4)) == []
    assert "probabilities differ by up to 1.1e-03" in faults_of(shifted(1.1e-3))[0]
    assert (
        "probabilities differ by up to inf"
        in faults_of(lambda answers: answers.probabilities.__setitem__((0, 0), np.nan))[-1]
    )
    assert "outlier scores differ by up to" in faults_of(lambda answers: answers.outliers.__iadd__(0.03))[0]
    assert faults_of(other_answers(2), precision="int8") == []
    assert "a loss of 1.5 points" in faults_of(other_answers(3), precision="int8")[0]
    assert faults_of(other_answers(3), precision="int8", allow_loss=True) == []


def test_a_file_that_differs_is_removed(
    model: Model, folder: Path, same_graph: onnx.ModelProto, tmp_path: Path
) -> None:
    bias = next(t for t in same_graph.graph.initializer if t.name == "head.0.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32([0, 0.5, 0]), bias.name))
    with pytest.raises(ExportError, match=r"small\.onnx: not written: .*probabilities differ by up to"):
        hs.export(model, out=tmp_path / "new" / "small.onnx", data=folder)
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_a_table_the_file_and_how_to_use_it(
    model: Model,
    folder: Path,
    same_graph: onnx.ModelProto,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = model.save(tmp_path / "m.safetensors")
    status, out, err = main("export", file, "--data", folder, capsys=capsys)
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["format", "accuracy", "correct"]
    assert [line.split()[0] for line in lines[1:3]] == ["model", "onnx"]
    assert "1 images are JPEGs that Headstart decodes at reduced size" in out
    assert f"File: {tmp_path / 'm.onnx'}" in lines
    assert "import json, numpy, onnxruntime" in lines
    assert 'import fs from "node:fs";' in lines
    shown(7).save(tmp_path / "image.jpg")
    text = out.partition("\npython:\n\n")[2].partition("\njavascript:\n\n")[0]
    done = subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True, check=True, cwd=tmp_path)
    expected = model.predict(tmp_path / "image.jpg")
    assert done.stdout.strip().rpartition(" ")[0] == expected.answer or expected.unsure


def test_a_file_is_compared_again_later(
    exported: Exported, model: Model, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = model.save(tmp_path / "m.safetensors")
    status, out, err = main("verify", exported.file, folder, "--model", file, "--json", capsys=capsys)
    assert status == 0, err
    document = json.loads(out)
    assert [row["name"] for row in document["formats"]] == ["model", "onnx"]
    assert document["faults"] == []
    alone = hs.verify(exported.file, folder)
    assert [(one.name, one.clear) for one in alone.formats] == [("onnx", None)]
    assert alone.formats[0].correct == exported.formats[1].correct
    with pytest.raises(ExportError, match="was exported from another model"):
        hs.verify(exported.file, folder, model=small_model())


def test_invalid_arguments_are_refused_before_any_work(
    exported: Exported, model: Model, folder: Path, tmp_path: Path
) -> None:
    file = model.save(tmp_path / "m.safetensors")
    with pytest.raises(OptionError, match="'caffe': expected one of onnx, torch"):
        hs.export(file, "caffe", data=folder)
    with pytest.raises(OptionError, match="not available for format torch, only for onnx"):
        hs.export(file, "torch", quantize="int8", data=folder)
    with pytest.raises(OptionError, match=r"\(option out\), for example NAME\.onnx"):
        hs.export(model, data=folder)
    with pytest.raises(OutputError, match=r"expected a name that ends in \.onnx"):
        hs.export(file, out=tmp_path / "a.pt2", data=folder)
    with pytest.raises(RunError, match=r"\(option data\)"):
        hs.export(file)
    with pytest.raises(OutputError, match="cannot be written"):
        hs.export(file, out=file / "a.onnx", data=folder)
    with pytest.raises(DataError, match="no such folder or table"):
        hs.export(file, data=tmp_path / "gone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors"]


def test_foreign_and_damaged_files_are_refused(exported: Exported, folder: Path, tmp_path: Path) -> None:
    whole = exported.file.read_bytes()
    cases = {
        "gone.onnx": (None, "no such file"),
        "half.onnx": (whole[: len(whole) // 2], "damaged, or not an ONNX file"),
        "other.txt": (b"text", r"\.onnx or \.pt2"),
        "half.pt2": (b"PK\x03\x04", "damaged, or not an exported program"),
    }
    for name, (data, message) in cases.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(ExportError, match=message):
            hs.verify(tmp_path / name, folder)
    proto = onnx.load(exported.file)
    newer = replace(exported.metadata, headstart_export=99)
    write_onnx(proto, newer, tmp_path / "newer.onnx")
    with pytest.raises(ExportError, match="Install a newer Headstart"):
        open_export(tmp_path / "newer.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    with pytest.raises(ExportError, match="not written by Headstart"):
        open_export(tmp_path / "foreign.onnx")


def test_an_exported_program_agrees_and_contains_no_pickle(model: Model, folder: Path, tmp_path: Path) -> None:
    found = hs.export(model, "torch", out=tmp_path / "small.pt2", data=folder)
    assert found.formats[1].name == "torch"
    assert found.metadata == open_export(found.file).metadata
    done = subprocess.run(
        [sys.executable, "-c", python_snippet(found.file, found.metadata, str(folder / "blue" / "large.jpg"))],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = model.predict(folder / "blue" / "large.jpg")
    assert float(done.stdout.split()[-1]) == pytest.approx(expected.probability, abs=1e-4)
    with zipfile.ZipFile(found.file) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    assert not any(b"/exports/" in data for data in entries.values())  # traces of the exporter
    top = next(iter(entries)).partition("/")[0]
    for name, data in {"data/sample_inputs/model.pt": b"x", "data/constants/opaque_obj_0": b"x"}.items():
        with zipfile.ZipFile(tmp_path / "hostile.pt2", "w") as archive:
            for entry, own in (entries | {f"{top}/{name}": data}).items():
                archive.writestr(entry, own)
        with pytest.raises(ExportError, match="contains entries that torch would unpickle"):
            open_export(tmp_path / "hostile.pt2")


def test_int8_calibration_images_are_not_compared_on(model: Model, folder: Path, tmp_path: Path) -> None:
    found = hs.export(model, out=tmp_path / "small.onnx", data=folder, quantize="int8", allow_loss=True)
    assert [one.name for one in found.formats] == ["model", "onnx", "onnx int8"]
    assert found.formats[2].images == 16
    assert found.formats[2].bytes < 0.5 * found.formats[1].bytes
    assert open_export(found.file).metadata.precision == "int8"
    assert found.quantised is not None
    assert found.quantised.convolutions == (10, 15)  # all but the first five
    assert found.as_json()["quantised"]["convolutions"] == (10, 15)
    assert hs.verify(found.file, folder).quantised == found.quantised
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.onnx"]


@pytest.mark.parametrize("kind", [{"head": "rbf"}, {"head": "neighbours"}, {"several": True, "head": "8"}], ids=str)
def test_any_head_is_exported(kind: dict, folder: Path, tmp_path: Path) -> None:
    model = small_model(**kind)
    images = [np.array(shown(300 + i).resize(size)) for i, size in enumerate(ODD_SIZES)]
    chances, _, _ = model.predict_with_outliers(images)
    for file in written(model, tmp_path):
        for image, chance in zip(images, chances, strict=True):
            assert np.abs(open_export(file)(image[None])[0][0] - chance).max() < 1e-4


BACKBONES = [
    "tf_efficientnet_lite0",
    "mobilenetv2_100",
    "resnet50",
    "vgg16",
    "convnext_tiny",
    "vit_small_patch16_224",
]


@pytest.mark.parametrize("name", BACKBONES)
def test_exports_of_a_backbone_agree_on_images_of_odd_sizes(name: str, tmp_path: Path) -> None:
    backbone = load_backbone() if name == "tf_efficientnet_lite0" else random_backbone(name)
    model = small_model(backbone, ood_detector=True)
    images = [np.array(shown(400 + i).resize(size)) for i, size in enumerate(ODD_SIZES)]
    chances, _, _ = model.predict_with_outliers(images)
    assert np.ptp(chances, axis=0).max() > 0.3
    second, first = np.sort(chances, axis=1)[:, -2:].T
    clear = first - second > 1e-3
    assert clear.sum() >= 4
    for file in written(model, tmp_path, extras=True):
        opened = open_export(file)
        given = np.concatenate([opened(image[None])[0] for image in images])
        print(f"{name} {file.name}: {np.abs(given - chances).max():.1e}")
        assert np.abs(given - chances).max() <= 1e-3
        assert (given.argmax(axis=1) == chances.argmax(axis=1))[clear].all()


@pytest.mark.parametrize(("image_size", "fit"), [(256, "crop"), (256, "squash"), (288, "pad")])
def test_a_larger_input_of_the_default_backbone_works_with_every_fit(image_size: int, fit: Fit, tmp_path: Path) -> None:
    """Twice: in the exported files and on the server."""
    model = small_model(load_backbone(image_size=image_size, fit=fit), ood_detector=True)
    assert model.net.backbone.preprocessing.height == image_size
    images = [np.array(shown(400 + i).resize(size)) for i, size in enumerate([*ODD_SIZES, *FIT_SIZES])]
    expected, _, _ = model.predict_with_outliers(images)
    assert np.ptp(expected, axis=0).max() > 0.3
    for file in written(model, tmp_path):
        opened = open_export(file)
        found = np.concatenate([opened(image[None])[0] for image in images])
        assert np.abs(found - expected).max() <= 1e-3
    model = hs.load(model.save(tmp_path / "m.safetensors"))
    forms = [(f"{i}.png", encoded(Image.fromarray(image), "PNG")) for i, image in enumerate(images)]
    with served(model) as server:
        answers = server.predict(*forms).json()["predictions"]
    by_server = [{own["label"]: own["probability"] for own in answer["probabilities"]} for answer in answers]
    assert np.abs(np.array([[row[name] for name in CLASSES] for row in by_server]) - expected).max() <= 1e-3


def written(model: Model, folder: Path, *, extras: bool = False) -> Iterator[Path]:
    """The model as an ONNX file and as an ExportedProgram, without the comparison; and as a folder for OpenVINO."""
    for one in (
        FORMATS["onnx"],
        FORMATS["torch"],
        *([FORMATS["openvino"]] if extras and is_installed("openvino") else []),
    ):
        file = folder / f"model{one.suffix}"
        if one.marker:
            file.mkdir()
        one.write(WriteRequest(model, file, "", [], folder, hs.TerminalProgress()))
        yield file
