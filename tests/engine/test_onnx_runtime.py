"""ONNX Runtime's version is known before it is imported; test_architecture.py sees when it is."""

from __future__ import annotations

import os
import subprocess
import sys

import onnxruntime
import pytest

from headstart.engine import onnx_runtime

FORKED = """
import os, sys
import numpy as np
import onnx
from onnx import TensorProto, helper
from headstart.engine.onnx_runtime import new_session

side, kinds = 512, TensorProto.FLOAT
shape = [helper.make_tensor_value_info(name, kinds, [side, side]) for name in ("x", "y")]
graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "product", shape[:1], shape[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
session = new_session(model.SerializeToString(), threads=4)
session.run(None, {"x": np.ones((side, side), np.float32)})
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
del session
sys.exit(7)
"""


def test_the_version_is_the_librarys() -> None:
    assert onnx_runtime.onnxruntime_version() == onnxruntime.__version__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = onnx_runtime.nothing


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_of_a_process_with_a_session_ends() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], timeout=60, check=False, stderr=subprocess.DEVNULL)
    assert done.returncode == 7
