"""OpenVINO: a folder that agrees with the model, its int8 variant, and what is refused."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands import main
from small_models import shown, small_model, write_shown

import headstart as hs
from headstart.errors import ExportError, MissingExtra, OutputError
from headstart.exports.formats import openvino as openvino_format
from headstart.exports.formats import openvino_int8
from headstart.exports.formats.int8 import in_backbone
from headstart.exports.formats.interface import QuantizedLayers, WriteRequest
from headstart.exports.formats.onnx import onnx_graph
from headstart.exports.formats.openvino_int8 import quantized_openvino_layers
from headstart.exports.formats.openvino_model import converted, save
from headstart.exports.formats.registry import open_export
from headstart.exports.graph import export_metadata
from headstart.exports.readers.openvino_reader import import_openvino
from headstart.model import Model
from headstart.verbs import Exported

pytest.importorskip("openvino", reason='OpenVINO is an extra: pip install "headstart[openvino]"')
pytest.importorskip("nncf", reason='NNCF is in an extra: pip install "headstart[openvino]"')
pytestmark = pytest.mark.exhaustive  # an export takes ten seconds

ODD_SIZES = [(333, 251), (97, 61), (640, 123), (65, 400), (225, 224), (1400, 1000), (3, 2)]
"""With 61 and 123 pixels, a division by multiplication with the reciprocal gives 255 in place of 256."""


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model(ood_detector=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shown(tmp_path_factory.mktemp("images"), 30, lambda i: (60 + 7 * i, 90 - i))


@pytest.fixture(scope="module")
def exported(model: Model, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return hs.export(model, "openvino", out=tmp_path_factory.mktemp("exported") / "small_openvino", data=folder)


def read(folder: Path) -> Any:
    return import_openvino().Core().read_model(folder / "model.xml")


def test_a_folder_agrees_with_the_model_and_holds_the_metadata(exported: Exported, model: Model) -> None:
    assert sorted(path.name for path in exported.file.iterdir()) == ["model.bin", "model.xml"]
    row = exported.formats[1]
    assert (row.name, row.images, row.same) == ("openvino", 30, row.clear)
    assert row.largest is not None
    assert row.largest < 1e-3
    with open_export(exported.file) as opened:
        assert opened.metadata == exported.metadata
    assert exported.metadata.classes == model.classes
    assert {"openvino", "torch", "opset"} <= set(exported.metadata.written_with)
    text = (exported.file / "model.xml").read_text()
    assert str(Path(hs.__file__).parent) not in text  # traces of the exporter


def test_pixels_of_odd_sizes_and_batches_get_the_predictions_of_the_model(exported: Exported, model: Model) -> None:
    with open_export(exported.file) as opened:
        for i, size in enumerate(ODD_SIZES):
            image = np.array(shown(200 + i).resize(size))
            expected, outliers, _ = model.predict_with_outliers([image])
            found = opened(image[None])
            assert np.abs(found[0] - expected).max() < 1e-3
            assert np.abs(found[1] - outliers).max() < 0.04
        batch = np.stack([np.array(shown(i)) for i in range(5)])
        assert np.abs(opened(batch)[0] - model.predict_with_outliers(list(batch))[0]).max() < 1e-4


@pytest.mark.parametrize(
    "kind", [{"several": True}, {"head": "single"}, {"head": "rbf"}, {"head": "neighbours"}], ids=str
)
def test_any_head_is_exported(kind: dict[str, Any], tmp_path: Path) -> None:
    model = small_model(**kind)
    openvino_format.FORMAT.write(WriteRequest(model, tmp_path, "", [], tmp_path, hs.TerminalProgress()))
    images = [np.array(shown(300 + i).resize(size)) for i, size in enumerate(ODD_SIZES[:4])]
    expected, _, _ = model.predict_with_outliers(images)
    with open_export(tmp_path) as opened:
        for image, row in zip(images, expected, strict=True):
            assert np.abs(opened(image[None])[0][0] - row).max() < 1e-3


def test_the_printed_snippet_runs_as_it_is(
    model: Model, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = model.save(tmp_path / "m.safetensors")
    status, out, err = main("export", file, "--to", "openvino", "--data", folder, capsys=capsys)
    assert status == 0, err
    assert f"File: {tmp_path / 'm_openvino'}" in out.splitlines()
    shown(7).save(tmp_path / "image.jpg")
    text = out.partition("\npython:\n\n")[2]
    done = subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True, check=True, cwd=tmp_path)
    expected = model.predict(tmp_path / "image.jpg")
    answer, _, probability = done.stdout.strip().rpartition(" ")
    assert answer == ("none of these" if expected.answer == "none of these" else expected.label)
    assert float(probability) == pytest.approx(expected.probability, abs=1e-4)


def test_damaged_foreign_and_newer_folders_are_refused(exported: Exported, tmp_path: Path) -> None:
    def copied(name: str) -> Path:
        shutil.copytree(exported.file, tmp_path / name)
        return tmp_path / name

    half = copied("half")
    (half / "model.bin").write_bytes((half / "model.bin").read_bytes()[:1000])
    text = copied("text")
    (text / "model.xml").write_text("text")
    alone = copied("alone")
    (alone / "model.bin").unlink()
    for damaged in (half, text, alone):
        with pytest.raises(ExportError, match=f"{damaged.name}: damaged, or not an OpenVINO model"):
            open_export(damaged)
    newer = copied("newer")
    save(read(exported.file), replace(exported.metadata, headstart_export=99), newer)
    with pytest.raises(ExportError, match="Install a newer Headstart"):
        open_export(newer)
    foreign = copied("foreign")
    xml = (foreign / "model.xml").read_text()
    (foreign / "model.xml").write_text(xml.replace("<headstart ", "<other "))
    with pytest.raises(ExportError, match="not written by Headstart"):
        open_export(foreign)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file; openvino is written as a folder"):
        hs.export(small_model(), "openvino", out=tmp_path / "file")


def test_without_the_library_the_error_says_what_to_install(
    exported: Exported, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r'Run: pip install "headstart\[openvino\]"'):
        hs.export(small_model(), "openvino", out=tmp_path / "m", data=folder)
    (tmp_path / "openvino.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # of the process that opens it
    with pytest.raises(ExportError, match=r'not installed. Run: pip install "headstart\[openvino\]"'):
        open_export(exported.file)


def test_an_int8_folder_that_loses_accuracy_is_refused(
    model: Model,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = sorted(folder.rglob("*.png"))
    answers = [one.label for one in model.predict(images)]
    for image, answer in zip(images, answers, strict=True):  # the model is right about all images but one
        label = answer if image != images[0] else next(name for name in model.classes if name != answer)
        (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / "data" / label)
    lead = np.float32([[-1000 if name == answers[-1] else 0 for name in model.classes]])

    def never_the_usual_class(request: WriteRequest, proto: onnx.ModelProto, float32: Path, metadata: Any) -> None:
        again = converted(proto)
        softmax = next(node for node in again.get_ordered_ops() if node.get_type_name() == "Softmax")
        opset = importlib.import_module("openvino.opset13")
        changed = opset.add(softmax.input_value(0), opset.constant(lead))
        softmax.input(0).replace_source_output(changed.output(0))
        save(again, metadata, request.file)

    monkeypatch.setattr(openvino_int8, "quantize_openvino", never_the_usual_class)
    monkeypatch.setattr(openvino_int8, "quantized_openvino_layers", lambda _: QuantizedLayers((1, 1), (0, 0)))
    with pytest.raises(ExportError, match=r"not written: its accuracy is .* a loss of .* points; at most 1"):
        hs.export(model, "openvino", out=tmp_path / "m", data=tmp_path / "data", quantize="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def metadata_of(model: Model) -> Any:
    return export_metadata(model, written_with={}, precision="int8")


def job(model: Model, images: list[Path], scratch: Path) -> Path:
    """Writes what the process that quantises gets."""
    for name in ("float32", "out"):
        (scratch / name).mkdir()
    proto = onnx_graph(model)
    save(converted(proto), metadata_of(model), scratch / "float32")
    work = {
        "float32": str(scratch / "float32"),
        "out": str(scratch / "out"),
        "metadata": metadata_of(model).text(),
        "paths": list(map(str, images)),
        "backbone": [node.name for node in proto.graph.node if in_backbone(node)],
    }
    (scratch / openvino_int8.JOB_FILE).write_text(json.dumps(work))
    return scratch


def run_job(scratch: Path, max_changed: float) -> None:
    text = "import sys, pathlib; from headstart.exports.formats import openvino_int8 as q; q.MAX_CHANGED = "
    code = f"{text}{max_changed}\nq._work(pathlib.Path(sys.argv[1]))"
    environment = os.environ | openvino_int8._NO_TELEMETRY
    done = subprocess.run(
        [sys.executable, "-c", code, str(scratch)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_all_convolutions_of_the_backbone_are_quantised_and_return_to_float32_if_answers_change(
    folder: Path, tmp_path: Path
) -> None:
    """Depthwise ones too. Here all answers may change, or more of them must stay than there are."""
    scratch = job(small_model("test_efficientnet"), sorted(folder.rglob("*.png"))[::5], tmp_path)
    run_job(scratch, 1)
    kinds = [node.get_type_name() for node in read(scratch / "out").get_ordered_ops()]
    assert kinds.count("GroupConvolution") > 0
    count = kinds.count("GroupConvolution") + kinds.count("Convolution")
    found = quantized_openvino_layers(scratch / "out")
    assert found.convolutions == (count, count)
    assert found.products[0] == 0  # those of the resize and the head
    run_job(scratch, -0.5)
    with pytest.raises(ExportError, match=f"the graph is not quantised: 0 of {count} convolutions"):
        quantized_openvino_layers(scratch / "out")


def test_int8_is_calibrated_on_other_images_and_nothing_is_reported_to_the_maker(
    model: Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first report of OpenVINO or NNCF creates a folder "intel" with an identifier in the home folder."""
    for name in ("CI", "NNCF_CI"):
        monkeypatch.delenv(name, raising=False)
    cache = tmp_path / "cache"
    homes = [tmp_path / name for name in ("first", "second")]
    for home in homes:
        home.mkdir()
        monkeypatch.setenv("HOME", str(home))
        if home == homes[0]:
            subprocess.run([sys.executable, "-c", "import openvino"], check=True, capture_output=True)
            continue
        out = tmp_path / "m"
        found = hs.export(model, "openvino", out=out, data=folder, quantize="int8", allow_loss=True, cache=cache)
    assert (homes[0] / "intel").exists()  # so that the next line can fail
    assert not (homes[1] / "intel").exists()
    assert [one.name for one in found.formats] == ["model", "openvino", "openvino int8"]
    assert found.formats[2].images == 15  # the others calibrate
    assert found.formats[2].bytes < found.formats[1].bytes
    assert found.quantised is not None
    assert found.quantised.convolutions[0] > 0
    with open_export(found.file) as opened:
        assert (opened.metadata.precision, "nncf" in opened.metadata.written_with) == ("int8", True)


def test_int8_without_a_readable_image_is_an_error(model: Model, exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"x")
    request = WriteRequest(model, tmp_path, "int8", [str(tmp_path / "bad.png")], tmp_path, hs.TerminalProgress())
    with pytest.raises(ExportError, match="no training image can be read to calibrate int8 on"):
        openvino_int8.quantize_openvino(request, onnx.ModelProto(), exported.file, metadata_of(model))
