"""Quantising: what an int8 file claims is counted in its graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from random_images import random_image
from small_models import small_model

from headstart.errors import ExportError
from headstart.exports.formats.int8 import FLOAT_CONVOLUTIONS, quantize_int8, quantized_layers
from headstart.exports.graph import export_metadata
from headstart.exports.metadata import ExportMetadata

CONVOLUTIONS = FLOAT_CONVOLUTIONS + 2


def graph(*, scopes: bool = True) -> onnx.ModelProto:
    """Pixels, seven convolutions and a matrix product with weights, as PyTorch's exporter leaves them.

    Args:
        scopes: with the exporter's metadata that tell which module a node comes from.
    """
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["x0"], name="transpose", perm=[0, 3, 1, 2]),
    ]
    weights = []
    for i in range(CONVOLUTIONS):
        weight = rng.normal(0, 0.3, (4, 3 if i == 0 else 4, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"c{i}"], name=f"conv{i}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"x{i + 1}"], name=f"relu{i}"))
    weights.append(numpy_helper.from_array(rng.normal(size=(4, 3)).astype(np.float32), "head"))
    nodes += [
        helper.make_node("ReduceMax", [f"x{CONVOLUTIONS}", "axes"], ["features"], name="pool", keepdims=0),
        helper.make_node("MatMul", ["features", "head"], ["logits"], name="head"),
        helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax"),
    ]
    weights.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    if scopes:
        for node in nodes[2:-3]:
            entry = node.metadata_props.add()
            entry.key, entry.value = "pkg.torch.onnx.name_scopes", f"['', 'net', '{node.name}']"
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["images", "height", "width", 3])
    out = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["images", 3])
    own = helper.make_graph(nodes, "small", [pixels], [out], weights)
    return helper.make_model(own, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def metadata() -> ExportMetadata:
    return replace(export_metadata(small_model(), written_with={}), decode_at_least=48)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        random_image(i).save(path)
    return list(map(str, paths))


def test_the_layers_of_the_backbone_compute_in_8_bits_and_are_counted(
    images: list[str], metadata: ExportMetadata
) -> None:
    small = quantize_int8(graph(), images, metadata)
    found = quantized_layers(small)
    assert (found.convolutions, found.products) == ((2, CONVOLUTIONS), (0, 1))
    assert str(found) == f"2 of {CONVOLUTIONS} convolutions and 0 of 1 matrix products in 8 bits"


def test_a_graph_that_stayed_float32_is_refused_whatever_the_exporter_said_of_it(
    images: list[str], metadata: ExportMetadata
) -> None:
    with pytest.raises(
        ExportError, match=f"not quantised: 0 of {CONVOLUTIONS} convolutions and 0 of 1 matrix products"
    ):
        quantize_int8(graph(scopes=False), images, metadata)  # as if a new exporter wrote no metadata
    with pytest.raises(ExportError, match="not quantised"):
        quantized_layers(graph())


def test_without_a_readable_image_there_is_nothing_to_calibrate_on(tmp_path: Path, metadata: ExportMetadata) -> None:
    (tmp_path / "damaged.png").write_bytes(b"no image")
    with pytest.raises(ExportError, match=r"^no training image can be read to calibrate int8 on\."):
        quantize_int8(graph(), [str(tmp_path / "damaged.png"), str(tmp_path / "gone.png")], metadata)


def test_weights_alone_in_8_bits_do_not_count(images: list[str], metadata: ExportMetadata) -> None:
    small = quantize_int8(graph(), images, metadata)
    made_by = {name: node for node in small.graph.node for name in node.output}
    for node in small.graph.node:
        if node.op_type == "Conv" and made_by[node.input[0]].op_type == "DequantizeLinear":
            node.input[0] = made_by[made_by[node.input[0]].input[0]].input[0]  # what is quantised there
    with pytest.raises(ExportError, match="not quantised"):
        quantized_layers(small)


def test_quantised_operators_count_as_well() -> None:
    nodes = [helper.make_node(kind, ["a", "b"], [kind]) for kind in ("QLinearConv", "ConvInteger", "MatMulInteger")]
    found = quantized_layers(helper.make_model(helper.make_graph(nodes, "own", [], [])))
    assert (found.convolutions, found.products) == ((2, 2), (1, 1))
