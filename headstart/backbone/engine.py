"""Running the frozen pass: plain PyTorch, or ONNX Runtime where the number of images repays the export.

On the two-core machine that this was measured on (2026-11, EfficientNet-Lite0, 224 pixels, fp32), PyTorch runs about 40
images a second and ONNX Runtime about 170; the export takes about 8 seconds, so it pays from some 300 images on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, final

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from headstart.backbone.forward import FeatureNet
from headstart.backbone.weights import quiet
from headstart.errors import OptionError
from headstart.files import write_atomically
from headstart.progress import Progress, SilentProgress
from headstart.store import cache_root, describe_key

ENGINE_VERSION = 1
EXPORT_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
EXPORT_REPAYS_FROM = 300
"""Images from which on the export to ONNX Runtime saves time on a CPU."""

TOLERANCE = 1e-3
"""Largest difference of a feature from plain PyTorch's, over the largest feature, that an engine may show."""

Pixels = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]


class Engine(Protocol):
    """(N, H, W, 3) uint8 -> (N, D) float32.

    Attributes:
        name: "torch" or "onnxruntime", with the device.
        batch_size: images that are best given at once.
    """

    name: str
    batch_size: int

    def __call__(self, pixels: Pixels) -> Features:
        """Runs one batch."""


@final
class TorchEngine:
    """Plain PyTorch, float32, channels last."""

    def __init__(self, net: FeatureNet, device: torch.device) -> None:
        self.net = net.to(device).to(memory_format=torch.channels_last)
        self.device = device
        self.name = f"torch ({device})"
        self.batch_size = 32 if device.type == "cpu" else 128

    def __call__(self, pixels: Pixels) -> Features:
        """Runs one batch."""
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device)
            return self.net(batch).float().cpu().numpy()  # type: ignore[no-any-return]


@final
class OnnxEngine:
    """ONNX Runtime on the CPU, float32."""

    name = "onnxruntime (cpu)"
    batch_size = 32

    def __init__(self, file: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def __call__(self, pixels: Pixels) -> Features:
        """Runs one batch."""
        out: Features = self.session.run(None, {"pixels": pixels})[0]
        return out


def resolve_device(name: str = "auto") -> torch.device:
    """The device by its name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        OptionError: no such device on this machine.
    """
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if here[kind]))
    if name.split(":")[0] not in here:
        raise OptionError(f"device {name!r}: expected auto, cpu, cuda or mps.")
    if not here[name.split(":")[0]]:
        raise OptionError(f"device {name!r} is not available on this machine. Use --device auto.")
    return torch.device(name)


def choose_engine(
    net: FeatureNet,
    *,
    count: int,
    sample: Pixels,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Engine:
    """The fastest engine for so many images whose features agree with plain PyTorch's.

    Args:
        net: the frozen pass.
        count: images that it will run on.
        sample: (n, H, W, 3) of them, n >= 1, to compare the engines on.
        device: see ``resolve_device``.
        cache: where exported graphs are kept; the default cache where it is not given.
        progress: told of the choice and its reason.

    Raises:
        OptionError: no such device.
    """
    progress = progress or SilentProgress()
    plain = TorchEngine(net, resolve_device(device))
    if plain.device.type != "cpu" or count < EXPORT_REPAYS_FROM:
        return plain
    try:
        file = _exported(net, (cache or cache_root()) / "engines", progress)
        fast = OnnxEngine(file)
        expected = plain(sample)
        gap = float(np.abs(fast(sample) - expected).max() / max(1.0, float(np.abs(expected).max())))
    except Exception as error:  # the exporter and the runtime raise their own; the plain engine can do the work
        progress.say(f"ONNX Runtime cannot run this backbone ({_first_line(error)}); running plain PyTorch.")
        return plain
    if gap > TOLERANCE:
        file.unlink(missing_ok=True)
        progress.say(f"ONNX Runtime's features differ from PyTorch's by {gap:.1e}; running plain PyTorch.")
        return plain
    return fast


def run_in_batches(engine: Engine, pixels: Pixels) -> Features:
    """Runs any number of images, at least one.

    Args:
        engine: which one.
        pixels: (N, H, W, 3) uint8.

    Returns:
        (N, D) float32.
    """
    step = engine.batch_size
    return np.concatenate([engine(pixels[start : start + step]) for start in range(0, len(pixels), step)])


def _exported(net: FeatureNet, folder: Path, progress: Progress) -> Path:
    about = net.describe() | {
        "engine": ENGINE_VERSION,
        "input": [net.backbone.preprocessing.height, net.backbone.preprocessing.width],
        "torch": torch.__version__,
    }
    file = folder / f"{describe_key(about)}.onnx"
    if not file.exists():
        progress.say(f"Preparing {net.backbone.architecture} for ONNX Runtime; this is done once.")
        write_atomically(file, _export(net))
    return file


def _export(net: FeatureNet) -> bytes:
    shape = (2, net.backbone.preprocessing.height, net.backbone.preprocessing.width, 3)
    example = torch.zeros(shape, dtype=torch.uint8)
    with quiet(*EXPORT_LOGGERS), torch.no_grad():
        program = torch.onnx.export(
            net,
            (example,),
            dynamo=True,
            input_names=["pixels"],
            output_names=["features"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("images")}},
            verbose=False,
        )
    assert program is not None
    data: bytes = program.model_proto.SerializeToString()
    return data


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:120]
