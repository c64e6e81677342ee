"""Evaluation of a suffix: features and logits of samples, in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from headstart.backbone.split import SplittableBackbone
from headstart.engine.conv_bn_fusion import fold_for_training
from headstart.engine.device import exact_float32
from headstart.features.prefetch import ActivationReader, activation_reader
from headstart.progress import Progress, SilentProgress
from headstart.training.sampling import Samples

CPU = torch.device("cpu")

EVALUATION_BATCH_SIZE = 64
"""Images per batch when nothing is trained; four times as many on a GPU."""


def logits_of(
    split: SplittableBackbone,
    boundary: str,
    samples: Samples,
    head: nn.Module,
    *,
    device: torch.device = CPU,
    progress: Progress | None = None,
) -> npt.NDArray[np.float64]:
    """(N, classes) logits of samples, computed in float32.

    Args:
        split: the network with its current weights.
        boundary: of the samples.
        samples: evaluated in their first view.
        head: features -> logits, on the CPU.
        device: where to compute.
        progress: receives the number of images done.
    """
    found = _outputs(split, boundary, samples, [copy.deepcopy(head)], device, progress)
    logits: npt.NDArray[np.float64] = found.double().numpy()
    return logits


def features_of(
    split: SplittableBackbone,
    boundary: str,
    samples: Samples,
    *,
    images: npt.NDArray[np.int64] | None = None,
    device: torch.device = CPU,
    progress: Progress | None = None,
) -> npt.NDArray[np.float32]:
    """(N, ...) features of samples, computed in float32.

    Args:
        split: the network with its current weights.
        boundary: of the samples.
        samples: evaluated in their first view.
        images: (M,) int64, the images to compute, in the order of the result; None for every image.
        device: where to compute.
        progress: receives the number of images done.
    """
    chosen = samples if images is None else samples.some(images)
    features: npt.NDArray[np.float32] = _outputs(split, boundary, chosen, [], device, progress).numpy()
    return features


def compute_in_batches(
    samples: Samples,
    reader: ActivationReader,
    compute: Callable[[Tensor], Tensor],
    device: torch.device,
    advance: Callable[[int], None] = lambda _count: None,
) -> Tensor:
    """(N, ...) outputs of the first views, on the CPU.

    Args:
        samples: N images.
        reader: of their activations.
        compute: (batch, *shape) activations -> (batch, ...).
        device: where the activations are.
        advance: called with the number of images of each batch.
    """
    count = len(samples.labels)
    step = EVALUATION_BATCH_SIZE if device == CPU else 4 * EVALUATION_BATCH_SIZE
    batches = [samples.rows(range(start, min(start + step, count)), 0) for start in range(0, count, step)]
    reader.expect(batches)
    outputs = []
    with torch.no_grad():
        for batch in batches:
            outputs.append(compute(reader.read(batch)))
            advance(len(batch))
        return torch.cat(outputs).cpu()


@contextmanager
def on_device(device: torch.device, module: nn.Module) -> Iterator[None]:
    """Context in which a network is on a device; afterwards it is on the CPU. Its parameters stay the same objects."""
    module.to(device)
    try:
        yield
    finally:
        module.to(CPU)


def _outputs(
    split: SplittableBackbone,
    boundary: str,
    samples: Samples,
    layers: list[nn.Module],
    device: torch.device,
    progress: Progress | None,
) -> Tensor:
    """Outputs of the suffix followed by more layers, on the CPU."""
    with on_device(device, split.module), exact_float32(device):
        suffix = split.suffix(boundary)
        suffix = fold_for_training(suffix, torch.float32) if isinstance(suffix, fx.GraphModule) else suffix
        network = nn.Sequential(suffix, *layers).to(device)
        reader = activation_reader(samples.activations, device, rows=0)
        with (progress or SilentProgress()).task("Judging", len(samples.labels)) as advance:
            return compute_in_batches(samples, reader, network, device, advance)
