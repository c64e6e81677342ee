"""An ONNX file as two graphs for a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from small_models import shown, small_model

from headstart.exports.formats.onnx import onnx_graph, write_onnx
from headstart.exports.gpu_graphs import split_for_gpu
from headstart.exports.graph import export_metadata


@pytest.mark.exhaustive
def test_the_two_graphs_together_are_the_file_and_the_second_has_neither_float64_nor_weights(tmp_path: Path) -> None:
    model = small_model(ood_detector=True)
    file = tmp_path / "model.onnx"
    write_onnx(onnx_graph(model), export_metadata(model, written_with={}), file)
    graphs = split_for_gpu(file)
    assert graphs is not None
    for name, data in zip(("resize.onnx", "network.onnx"), graphs, strict=True):
        (tmp_path / name).write_bytes(data)
    network = onnx.load_from_string(graphs[1])
    assert onnx.TensorProto.DOUBLE not in {tensor.data_type for tensor in network.graph.initializer}
    assert not any(
        node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.DOUBLE for node in network.graph.node
    )
    assert sum(len(graph) for graph in graphs) < file.stat().st_size / 3
    whole, first, second = (
        onnxruntime.InferenceSession(tmp_path / name) for name in ("model.onnx", "resize.onnx", "network.onnx")
    )
    for seed in range(3):
        pixels = np.array(shown(seed).resize((97, 61)))[None]
        between = first.run(None, {"pixels": pixels})
        found = second.run(None, dict(zip([one.name for one in first.get_outputs()], between, strict=True)))
        for one, expected in zip(found, whole.run(None, {"pixels": pixels}), strict=True):
            np.testing.assert_allclose(one, expected, atol=1e-6)


def test_a_network_in_float64_is_not_split(tmp_path: Path) -> None:
    helper, double = onnx.helper, onnx.TensorProto.DOUBLE
    nodes = [helper.make_node("Cast", ["pixels"], ["x"], to=double), helper.make_node("MatMul", ["x", "x"], ["y"])]
    pixels = helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, [2, 2])
    result = helper.make_tensor_value_info("y", double, [2, 2])
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [pixels], [result])), tmp_path / "double.onnx")
    assert split_for_gpu(tmp_path / "double.onnx") is None
