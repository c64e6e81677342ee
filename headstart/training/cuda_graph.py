"""Many small kernels as one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

WARM_UP = 3
"""Runs before recording, in which libraries choose their kernels and take their memory."""


@final
class Graphed:
    """A function on a GPU, recorded as a CUDA graph once and launched whole from then on.

    To launch the kernels of a training step one by one takes longer than they run.

    Args:
        function: of tensors on the GPU; it reads nothing back, and whatever else it uses or changes stays where it is
            in memory. It is run ``WARM_UP`` times.
        inputs: of the shapes, dtypes and strides to come.

    Raises:
        RuntimeError: something in it cannot be recorded.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(beside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = function(*self.inputs)

    def takes(self, *inputs: Tensor) -> bool:
        """Whether it was recorded for inputs of these shapes."""
        return all(own.shape == given.shape for own, given in zip(self.inputs, inputs, strict=True))

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the function gives; the next call writes over it."""
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.outputs
