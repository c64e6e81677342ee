"""CUDA graph of a training step: its kernels are recorded once and launched together from then on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

WARM_UP_RUNS = 3
"""Runs before recording, in which libraries choose their kernels and allocate their memory."""


@final
class RecordedStep:
    """A function on a GPU, recorded as a CUDA graph: launching its kernels one by one takes longer than they run.

    Args:
        function: of tensors on the GPU. It must not read results back, and everything else that it uses or changes must
            stay at the same place in memory. It is run ``WARM_UP_RUNS`` times.
        inputs: examples with the shapes, dtypes and strides of all later inputs.

    Raises:
        RuntimeError: something in the function cannot be recorded.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = function(*self.inputs)

    def accepts(self, *inputs: Tensor) -> bool:
        """True if inputs have the shapes that were recorded; the last batch of an epoch may be smaller."""
        return all(recorded.shape == given.shape for recorded, given in zip(self.inputs, inputs, strict=True))

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The function's outputs; the next call overwrites them."""
        for recorded, given in zip(self.inputs, inputs, strict=True):
            recorded.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.outputs
