"""Converts an ExportedProgram to LiteRT, quantizes it, and counts its layers. Runs outside Headstart.

    python litert_converter.py convert PROGRAM FILE
    python litert_converter.py quantize FILE VARIANT CALIBRATION QUANTIZED
    python litert_converter.py count FILE COUNTS

CALIBRATION is a .npy file of (N, height, width, 3) uint8 pixels; COUNTS a JSON file that is written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

BACKBONE = r".*FeatureNet_net[/;].*"
"""Names of the tensors of the backbone, as the converter makes them of the module's class and attribute."""

SIGNATURE = "serving_default"
LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def convert(program: str, file: str) -> None:
    """Writes a float32 file; names of inputs and outputs are those of the program."""
    import litert_torch
    import torch

    loaded = torch.export.load(program)
    (name,) = loaded.graph_signature.user_inputs
    shape = next(node.meta["val"].shape for node in loaded.graph.nodes if node.name == name)
    pixels = torch.zeros(*shape, dtype=torch.uint8)
    litert_torch.convert(loaded.module(), sample_kwargs={"pixels": pixels}).export(file)


def quantize(file: str, variant: str, calibration: str, quantized: str) -> None:
    """Writes a float16 file (weights), or an int8 file (weights and activations of the backbone)."""
    import numpy
    from ai_edge_quantizer import qtyping, quantizer

    names = qtyping.TFLOperationName
    made = quantizer.Quantizer(file)
    if variant == "float16":
        half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        config = qtyping.OpQuantizationConfig(
            weight_tensor_config=half, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
        )
        made.update_quantization_recipe(".*", names.ALL_SUPPORTED, config, algorithm_key="float_casting")
        made.quantize().export_model(quantized)
        return
    for layer in LAYERS:
        made.add_static_config(BACKBONE, names[layer], activation_num_bits=8, weight_num_bits=8)
    images: list[Any] = [{"pixels": image[None]} for image in numpy.load(calibration)]
    found = made.calibrate({SIGNATURE: images}, num_threads=1)
    made.quantize(found).export_model(quantized)


def count(file: str, counts: str) -> None:
    """Writes how many layers have inputs and weights of 8 bits, as {"convolutions": [8-bit, all], "products": ...}."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(Path(file).read_bytes(), 0)
    kinds = {value: name for name, value in vars(schema.BuiltinOperator).items() if name in LAYERS}
    found = {"convolutions": [0, 0], "products": [0, 0]}
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            kind = kinds.get(max(code.builtinCode, code.deprecatedBuiltinCode))
            if kind is None:
                continue
            key = "products" if kind == "FULLY_CONNECTED" else "convolutions"
            types = [graph.tensors[place].type for place in operator.inputs[:2]]
            found[key][0] += all(one == schema.TensorType.INT8 for one in types)
            found[key][1] += 1
    Path(counts).write_text(json.dumps(found))


if __name__ == "__main__":
    actions: dict[str, Callable[..., None]] = {"convert": convert, "quantize": quantize, "count": count}
    actions[sys.argv[1]](*sys.argv[2:])
