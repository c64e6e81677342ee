"""ONNX Runtime is imported when it is first used, and its version is known before."""

from __future__ import annotations

import subprocess
import sys

import onnxruntime
import pytest

from headstart.engine import onnx_runtime


def test_the_version_is_the_librarys() -> None:
    assert onnx_runtime.onnxruntime_version() == onnxruntime.__version__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = onnx_runtime.nothing


def test_choosing_an_engine_imports_neither_onnx_nor_onnx_runtime() -> None:
    code = (
        "import sys; import headstart.engine.select, headstart.engine.measure\n"
        "from headstart.engine.onnx_runtime import onnxruntime_version; onnxruntime_version()\n"
        "assert not {'onnx', 'onnxruntime'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
