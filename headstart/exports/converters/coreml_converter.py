"""Converts an ExportedProgram to a Core ML package. Runs outside Headstart.

    python coreml_converter.py PROGRAM METADATA PACKAGE

METADATA is the JSON document of an exported file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def convert(program: str, metadata: str, package: str) -> None:
    """Writes a package that takes an image of the network's input size and computes in float32."""
    import coremltools
    import torch

    text = Path(metadata).read_text(encoding="utf-8")
    document = json.loads(text)
    names = ["probabilities"] if document["none_above"] is None else ["probabilities", "outlier"]
    shape = (1, 3, document["preprocessing"]["height"], document["preprocessing"]["width"])
    pixels = coremltools.ImageType(name="pixels", shape=shape, color_layout=coremltools.colorlayout.RGB)
    model = coremltools.convert(
        torch.export.load(program).run_decompositions({}),
        inputs=[pixels],
        outputs=[coremltools.TensorType(name=name) for name in names],
        compute_precision=coremltools.precision.FLOAT32,
        minimum_deployment_target=coremltools.target.iOS16,
        skip_model_load=True,
    )
    model.user_defined_metadata["headstart"] = text
    model.save(package)
    (Path(package) / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)


if __name__ == "__main__":
    convert(*sys.argv[1:])
