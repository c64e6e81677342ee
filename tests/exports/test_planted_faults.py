"""A file that is wrong in one of the usual ways is refused, in every format, and leaves nothing behind."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from commands import main
from small_models import CLASSES, small_model, write_shown
from torch import Tensor
from web_pages import fake_runtime_files

from headstart.exports import graph as graph_module
from headstart.exports.graph import ExportGraph
from headstart.model import Model

pytestmark = pytest.mark.exhaustive

HERE = (
    "onnx",
    "torch",
    "web",
    pytest.param("openvino", marks=pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is an extra")),
)
"""Formats that are written from the graph; the others plant these faults in tests of their own."""

Outputs = tuple[Tensor, ...]


class FaultyGraph(ExportGraph):
    """The exported graph with a change of its input, of the fitted image, of its output, or of a weight."""

    change_pixels: Callable[[Tensor], Tensor] = staticmethod(lambda pixels: pixels)
    change_fitted: Callable[[Tensor], Tensor] = staticmethod(lambda fitted: fitted)
    change_probabilities: Callable[[Tensor], Tensor] = staticmethod(lambda probabilities: probabilities)
    stale = False

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        if self.stale:
            self.net = copy.deepcopy(self.net)
            weight = next(p for p in self.net.parameters() if p.dim() == 4)
            weight.data[0] *= -1
        fit, change = self.fit, self.change_fitted

        class ChangedFit(torch.nn.Module):
            def forward(self, pixels: Tensor) -> Tensor:
                return change(fit(pixels))

        self.fit = ChangedFit()  # type: ignore[assignment]

    def forward(self, pixels: Tensor) -> Outputs:
        probabilities, *others = super().forward(self.change_pixels(pixels))
        return (self.change_probabilities(probabilities), *others)


FAULTS = {
    "wrong normalisation": {"change_fitted": staticmethod(lambda fitted: fitted * 0.9)},
    "BGR": {"change_pixels": staticmethod(lambda pixels: pixels.flip(-1))},
    "crop off by one": {"change_fitted": staticmethod(lambda fitted: torch.roll(fitted, 1, dims=-1))},
    "swapped classes": {"change_probabilities": staticmethod(lambda found: found[:, [1, 0, *range(2, len(CLASSES))]])},
    "a stale weight": {"stale": True},
    "": {},
}


@pytest.mark.parametrize("to", HERE)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused(
    fault: str, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    write_shown(images, 12, lambda i: (90 + i, 80))
    monkeypatch.setattr(graph_module, "ExportGraph", type("Planted", (FaultyGraph,), FAULTS[fault]))
    model = small_model(ood_detector=True).save(tmp_path / "model.safetensors")
    file = out / {"onnx": "m.onnx", "torch": "m.pt2", "web": "m_web", "openvino": "m_openvino"}[to]
    more = ["--ort-files", fake_runtime_files(tmp_path / "package", monkeypatch)] if to == "web" else []
    status, _, err = main("export", model, "--to", to, "--out", file, "--data", images, *more, capsys=capsys)
    if not fault:
        assert status == 0, err
        assert file.exists()
        return
    assert status == 1
    assert re.search(r"not written: .*(predictions differ|probabilities differ)", err)
    assert not out.exists()
