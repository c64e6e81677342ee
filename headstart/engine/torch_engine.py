"""PyTorch inference engine: the network's own layers, folded layers, or bfloat16 autocast, on the CPU or a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from headstart.backbone.pixel_net import PixelNet
from headstart.engine.device import exact_float32
from headstart.engine.interface import Engine, Features, Pixels, engine_identity

_TITLES = {
    "torch": "torch",
    "folded": "torch, folded",
    "mixed": "torch, folded, bfloat16",
    "autocast": "torch, bfloat16 autocast",
}


@final
class TorchEngine:
    """Computes a network in PyTorch, channels last, with the original layers or a rewritten body.

    Args:
        net: the frozen network.
        device: where it runs.
        body: replaces ``net.body``.
        kind: "torch", "folded", "mixed" or "autocast".
        precision: see ``Engine``.

    Attributes:
        output_dtype: float32, or float16 to convert on the GPU instead of the CPU.
    """

    def __init__(
        self,
        net: PixelNet,
        device: torch.device,
        *,
        body: nn.Module | None = None,
        kind: str = "torch",
        precision: str = "float32",
    ) -> None:
        self.net = net.to(device)
        self.body = (net.body if body is None else body).to(device).to(memory_format=torch.channels_last)
        self.device = device
        self.name = f"{_TITLES[kind]} ({device})"
        self.precision = precision
        self.identity = engine_identity(kind, precision, device)
        self.batch_size = 16 if device.type == "cpu" else 128
        self.autocast = kind == "autocast"
        self.output_dtype = torch.float32
        self._copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, pixels: Pixels) -> Features:
        """Computes one batch."""
        return self.start(pixels)()

    def start(self, pixels: Pixels) -> Callable[[], Features]:
        """Starts a batch and returns a function that waits for its output.

        On CUDA several batches may be in progress: the next one is copied while one is computed. On other devices the
        batch is complete when this returns.
        """
        batch = torch.from_numpy(np.ascontiguousarray(pixels))
        if self._copy_stream is None:
            out: Features = self._compute(batch.to(self.device)).cpu().numpy()
            return lambda: out
        source = batch if batch.is_pinned() else batch.pin_memory()
        with torch.cuda.stream(self._copy_stream):
            batch = source.to(self.device, non_blocking=True)
        stream = torch.cuda.current_stream(self.device)
        stream.wait_stream(self._copy_stream)
        batch.record_stream(stream)
        output = self._compute(batch)
        on_cpu, is_finite = (
            torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
            for tensor in (output, torch.isfinite(output).all())
        )
        done = stream.record_event()

        def wait(_source: Tensor = source) -> Features:  # the default keeps the source alive until it is copied
            done.synchronize()
            if self.output_dtype == torch.float16 and not is_finite:
                raise OverflowError("a value exceeds the range of half precision")
            features: Features = on_cpu.numpy()
            return features

        return wait

    def _compute(self, batch: Tensor) -> Tensor:
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)
        with torch.inference_mode(), exact_float32(self.device), autocast:
            return self.net.finish(self.body(self.net.normalised(batch))).to(self.output_dtype)


def is_asynchronous(engine: Engine) -> bool:
    """True if the engine computes on a GPU, so that the CPU can prepare the next batch in the meantime."""
    return isinstance(engine, TorchEngine) and engine.device.type == "cuda"
