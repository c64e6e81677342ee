"""LiteRT, Core ML and ExecuTorch: files with a fixed input size, whose converters are in isolated environments.

The mechanism is tested with programs in place of the converters; the converters, where this machine has them already.
"""

from __future__ import annotations

import copy
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import main
from isolated import use_existing, use_stub
from small_models import CLASSES, shown, small_model, write_shown
from torch import Tensor

import headstart as hs
from headstart.errors import ExportError, OptionError
from headstart.exports import graph as graph_module
from headstart.exports import reader_process
from headstart.exports.formats import coreml, executorch, litert
from headstart.exports.formats.registry import open_export
from headstart.exports.graph import FittedGraph, capture_fitted
from headstart.exports.parity import FormatResult, parity_failures
from headstart.exports.readers import pillow_fit
from headstart.model import Model
from headstart.progress import SilentProgress

MODULES = {"litert": litert, "executorch": executorch}
FILES = {"litert": "m.tflite", "executorch": "m.pte"}


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model(ood_detector=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shown(tmp_path_factory.mktemp("images"), 24, lambda i: (90 + 9 * i, 80))


class PlantedGraph(FittedGraph):
    """The exported graph with a change of the fitted image, of its output, or of a weight."""

    change_fitted: Callable[[Tensor], Tensor] = staticmethod(lambda fitted: fitted)
    change_probabilities: Callable[[Tensor], Tensor] = staticmethod(lambda probabilities: probabilities)
    stale = False

    def __init__(self, model: Model, *, planes: bool = False) -> None:
        super().__init__(model, planes=planes)
        if self.stale:
            self.net = copy.deepcopy(self.net)
            weight = next(p for p in self.net.parameters() if p.dim() == 4)
            weight.data[0] *= -1

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        probabilities, *others = super().forward(self.change_fitted(pixels))
        return (self.change_probabilities(probabilities), *others)


FAULTS = {
    "wrong normalisation": {"change_fitted": staticmethod(lambda fitted: (fitted * 0.9).to(fitted.dtype))},
    "BGR": {"change_fitted": staticmethod(lambda fitted: fitted.flip(-1))},
    "crop off by one": {"change_fitted": staticmethod(lambda fitted: torch.roll(fitted, 1, dims=2))},
    "swapped classes": {"change_probabilities": staticmethod(lambda found: found[:, [1, 0, *range(2, len(CLASSES))]])},
    "a stale weight": {"stale": True},
    "": {},
}


def refused(to: str, fault: str, model: Model, images: Path, out: Path, patch: pytest.MonkeyPatch) -> None:
    """Exports a graph with a fault, which must be refused; or without one, which must be written."""
    file = out / FILES[to]
    patch.setattr(graph_module, "FittedGraph", type("Planted", (PlantedGraph,), FAULTS[fault]))
    if not fault:
        found = hs.export(model, to, out=file, data=images)
        assert found.formats[1].same == found.formats[1].clear
        return
    with pytest.raises(ExportError, match=r"not written: .*(predictions differ|probabilities differ)"):
        hs.export(model, to, out=file, data=images)
    assert not out.exists()


def off_by_one(to: str, model: Model, images: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Compares with a reader whose crop is off by one, as an app might do it."""
    shutil.copytree(reader_process.READERS, folder)
    fit = Path(pillow_fit.__file__)
    wrong = fit.read_text().replace("return -((count", "return 1 - ((count").replace("else round(", "else 1 + round(")
    (folder / "pillow_fit.py").write_text(wrong)
    for reader in folder.glob("*_reader.py"):  # a stand-in names the folder of the right one
        reader.write_text(reader.read_text().replace(str(fit.parent), str(folder)))
    patch.setattr(reader_process, "READERS", folder)
    with pytest.raises(ExportError, match=r"not written: .*(predictions differ|probabilities differ)"):
        hs.export(model, to, out=folder / "out" / FILES[to], data=images)


@pytest.mark.parametrize("kind", ["linear", "several", "rbf"])
def test_fitted_pixels_get_what_predict_gives(kind: str) -> None:
    model = small_model(ood_detector=True, **({"several": True} if kind == "several" else {"head": kind}))
    pixels = [np.array(shown(1000 + i).resize((64, 64))) for i in range(4)]
    exact = replace(model.preprocessing, crop_pct=1.0)
    model.net.backbone.__dict__["preprocessing"] = exact  # nothing is cropped from 64 x 64
    chances, outliers, _ = model.predict_with_outliers(pixels)
    graph, planes = FittedGraph(model), FittedGraph(model, planes=True)
    for image, chance, outlier in zip(pixels, chances, outliers, strict=True):
        tensor = torch.from_numpy(image)[None]
        for found in (graph(tensor), planes(tensor.permute(0, 3, 1, 2).float())):
            assert np.abs(found[0][0].numpy() - chance).max() < 1e-4
            assert found[1][0].item() == pytest.approx(outlier, abs=0.04)


def test_the_nth_largest_counts_equal_values() -> None:
    values = torch.tensor([[3.0, 5.0, 5.0, 1.0], [2.0, 2.0, 2.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    for n in range(1, 5):
        expected = values.topk(n, dim=1).values[:, -1:]
        assert torch.equal(graph_module._nth_largest(values, n), expected)


@pytest.mark.slow
def test_a_graph_for_phones_has_no_sort(model: Model) -> None:
    names = {str(node.target) for node in capture_fitted(model).graph.nodes}
    assert not [name for name in names if "topk" in name or "sort" in name]


@pytest.mark.slow
def test_a_graph_for_phones_has_contiguous_weights_whatever_a_prediction_did_to_them() -> None:
    model = small_model()
    weight = next(p for p in model.net.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    model.net.to(memory_format=torch.channels_last)  # as the engine does
    assert not weight.is_contiguous()
    assert all(own.is_contiguous() for own in capture_fitted(model).state_dict.values())
    assert not weight.is_contiguous()


def row(**values: object) -> FormatResult:
    return FormatResult(
        **{"name": "x", "images": 200, "correct": 190, "low": 0, "high": 1, "bytes": 1, "rate": 1} | values
    )  # type: ignore[arg-type]


def test_a_float16_file_may_lose_a_point_and_differ_by_five_hundredths() -> None:
    def faults(precision: str = "float16", allow_loss: bool = False, **values: object) -> list[str]:
        return parity_failures(row(**values), row(), precision=precision, allow_loss=allow_loss)

    assert faults(correct=188, largest=0.05) == []
    assert "a loss of 1.5 points" in faults(correct=187, largest=0.01)[0]
    assert "probabilities differ by up to 6.0e-02" in faults(largest=0.06)[0]
    assert "probabilities differ" in faults(largest=float("inf"))[0]
    assert faults(correct=187, largest=0.06, allow_loss=True) == []
    assert faults("int8", largest=0.06) == []


@pytest.mark.slow
@pytest.mark.parametrize("to", FILES)
def test_a_file_is_compared_by_its_runtime_and_says_what_comes_before_the_graph(
    to: str, model: Model, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_stub(monkeypatch, tmp_path / "stub", to)
    found = hs.export(model, to, out=tmp_path / FILES[to], data=images)
    assert [one.name for one in found.formats] == ["model", to]
    assert (found.formats[1].same, found.formats[1].images) == (found.formats[1].clear, 24)
    assert "cropped to the central 64 x 64 pixels" in found.metadata.before_graph
    assert "uint8 [1, 64, 64, 3]" in found.metadata.before_graph
    with zipfile.ZipFile(found.file) as archive:
        assert archive.read("headstart.json").decode() == found.metadata.text()
    with open_export(found.file) as opened:
        assert opened.metadata == found.metadata
    assert hs.verify(found.file, images, model=model).faults == ()


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused(
    fault: str, model: Model, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_stub(monkeypatch, tmp_path / "stub", "litert")
    refused("litert", fault, model, images, tmp_path / "out", monkeypatch)


@pytest.mark.slow
def test_a_crop_that_is_off_by_one_before_the_graph_is_refused(
    model: Model, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_stub(monkeypatch, tmp_path / "stub", "litert")
    off_by_one("litert", model, images, tmp_path / "wrong", monkeypatch)


@pytest.mark.slow
def test_quantized_files_are_compared_with_float32_as_well(
    model: Model, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_stub(monkeypatch, tmp_path / "stub", "litert")
    found = hs.export(model, "litert", out=tmp_path / "8.tflite", data=images, quantize="int8")
    assert [one.name for one in found.formats] == ["model", "litert", "litert int8"]
    assert found.metadata.precision == "int8"
    assert found.quantised is not None
    assert found.quantised.convolutions == (1, 2)
    with monkeypatch.context() as patch:
        refused("litert", "BGR", model, images, tmp_path / "out", patch)
        with pytest.raises(ExportError, match="not written"):  # though --allow-loss accepts any loss of the int8 file
            hs.export(model, "litert", out=tmp_path / "9.tflite", data=images, quantize="int8", allow_loss=True)
    half = hs.export(model, "litert", out=tmp_path / "16.tflite", data=images, quantize="float16")
    assert (half.metadata.precision, half.quantised) == ("float16", None)
    assert sorted(file.name for file in tmp_path.glob("*.tflite")) == ["16.tflite", "8.tflite"]


def test_an_int8_file_without_8_bit_layers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_stub(monkeypatch, tmp_path / "stub", "litert")
    converter = tmp_path / "stub" / "converter.py"
    converter.write_text(converter.read_text().replace("[1, 2]", "[0, 2]"))
    with pytest.raises(ExportError, match="the graph is not quantised: 0 of 2 convolutions"):
        litert.count_quantized(tmp_path / "m.tflite")


def test_variants_that_a_format_does_not_have_are_refused(model: Model, images: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="float16: not available for format onnx, only for litert"):
        hs.export(model, "onnx", out=tmp_path / "m.onnx", data=images, quantize="float16")
    with pytest.raises(OptionError, match=r"int8: not available for format executorch, only for onnx, .*litert"):
        hs.export(model, "executorch", out=tmp_path / "m.pte", data=images, quantize="int8")


@pytest.mark.parametrize("name", ["m.tflite", "m.pte"])
def test_files_that_headstart_did_not_write_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.isolated_environment.IsolatedEnvironment.ensure", lambda *_: Path(sys.executable))
    (tmp_path / name).write_bytes(b"TFL3" * 100)
    with pytest.raises(ExportError, match=rf"{name}: damaged, or not written by Headstart"):
        open_export(tmp_path / name)


COREML_STUB = """
import sys
from pathlib import Path

inner = Path(sys.argv[3]) / "Data" / "com.apple.CoreML"
inner.mkdir(parents=True)
(inner / "model.mlmodel").write_bytes(Path(sys.argv[1]).read_bytes())
(inner / "metadata.json").write_bytes(Path(sys.argv[2]).read_bytes())
"""


@pytest.mark.slow
def test_a_core_ml_package_is_labelled_as_not_verified(
    model: Model, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    (tmp_path / "converter.py").write_text(COREML_STUB)
    monkeypatch.setattr(coreml, "CONVERTER", tmp_path / "converter.py")
    monkeypatch.setattr("headstart.isolated_environment.IsolatedEnvironment.ensure", lambda *_: Path(sys.executable))
    file = model.save(tmp_path / "m.safetensors")
    status, out, err = main("export", file, "--to", "coreml", "--data", images, capsys=capsys)
    assert status == 0, err
    assert "Not verified on this machine: Core ML runs on macOS only" in out
    assert "Compared on" not in out
    package = tmp_path / "m.mlpackage"
    text = (package / "Data" / "com.apple.CoreML" / "metadata.json").read_text()
    assert '"unverified": "Core ML runs on macOS only' in text
    status, _, err = main("verify", package, images, "--model", file, capsys=capsys)
    assert status == 1
    assert "m.mlpackage: Core ML runs on macOS only: compare the file with its model there (headstart verify)" in err


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("to", FILES)
def test_the_real_converter_and_runtime_agree_and_planted_faults_are_refused(
    to: str, fault: str, model: Model, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_existing(monkeypatch, MODULES[to].ENVIRONMENT, tmp_path / "cache")
    refused(to, fault, model, images, tmp_path / "out", monkeypatch)


@pytest.mark.exhaustive
def test_real_litert_files_are_quantized_and_a_wrong_crop_before_the_graph_is_refused(
    model: Model, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_existing(monkeypatch, litert.ENVIRONMENT, tmp_path / "cache")
    eight = hs.export(model, "litert", out=tmp_path / "8.tflite", data=images, quantize="int8", allow_loss=True)
    assert eight.quantised is not None
    assert eight.quantised.convolutions[0] == 6
    assert eight.formats[2].bytes < eight.formats[1].bytes
    half = hs.export(model, "litert", out=tmp_path / "16.tflite", data=images, quantize="float16")
    assert (half.formats[2].largest or 0) > (half.formats[1].largest or 0)
    assert litert.ENVIRONMENT.ensure(SilentProgress()).exists()
    off_by_one("litert", model, images, tmp_path / "wrong", monkeypatch)
    truncated = tmp_path / "half.tflite"
    data = eight.file.read_bytes()
    truncated.write_bytes(data[: len(data) // 2] + data[data.rindex(b"PK\x03\x04") :])
    with pytest.raises(ExportError, match="damaged"):
        open_export(truncated)


@pytest.mark.exhaustive
def test_a_real_core_ml_package_has_the_metadata(
    model: Model, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_existing(monkeypatch, coreml.ENVIRONMENT, tmp_path / "cache")
    found = hs.export(model, "coreml", out=tmp_path / "m.mlpackage", data=images)
    data = (found.file / "Data" / "com.apple.CoreML" / "model.mlmodel").read_bytes()
    assert b'"headstart_export"' in data
    assert sorted(path.name for path in found.file.iterdir()) == ["Data", "Manifest.json"]
    assert bool(found.unverified) == (sys.platform != "darwin")
