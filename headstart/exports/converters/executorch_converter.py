"""Converts an ExportedProgram to an ExecuTorch file for XNNPACK. Runs outside Headstart.

python executorch_converter.py PROGRAM FILE
"""

from __future__ import annotations

import sys
from pathlib import Path


def convert(program: str, file: str) -> None:
    """Writes a file for the CPU of phones; layers that XNNPACK does not have run with ExecuTorch's portable kernels."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(torch.export.load(program), partitioner=[XnnpackPartitioner()])
    Path(file).write_bytes(edge.to_executorch().buffer)


if __name__ == "__main__":
    convert(*sys.argv[1:])
