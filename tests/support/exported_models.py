"""Small models and their exported ONNX files, which take seconds to make: once in a test session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shared import shared_folder
from small_models import small_model

import headstart as hs
from headstart.exports.formats.onnx import onnx_graph, write_onnx
from headstart.exports.graph import export_metadata
from headstart.runtime import OnnxModel

MODES: dict[str, dict[str, Any]] = {
    "none of these": {"ood_detector": True},
    "several labels": {"several": True, "ood_detector": True},
    "two classes, one logit": {"head": "single"},
}
"""Kind of model -> arguments of ``small_model``."""


def model_and_export(mode: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[hs.Model, OnnxModel]:
    """A model and its exported file; ``mode`` is a key of ``MODES``."""

    def export(folder: Path) -> None:
        model = small_model(**MODES[mode])
        model.save(folder / "m.safetensors")
        write_onnx(onnx_graph(model), export_metadata(model, written_with={}), folder / "m.onnx")

    folder = shared_folder(tmp_path_factory, f"exported-{mode.replace(' ', '-')}", export)
    model, exported = hs.load(folder / "m.safetensors"), hs.load(folder / "m.onnx")
    assert isinstance(model, hs.Model)
    assert isinstance(exported, OnnxModel)
    return model, exported
