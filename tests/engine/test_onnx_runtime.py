"""ONNX Runtime's version is known before it is imported; test_architecture.py sees when it is."""

from __future__ import annotations

import onnxruntime
import pytest

from headstart.engine import onnx_runtime


def test_the_version_is_the_librarys() -> None:
    assert onnx_runtime.onnxruntime_version() == onnxruntime.__version__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = onnx_runtime.nothing
