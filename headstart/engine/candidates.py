"""Engine candidates: which engines can compute a network on a device, in order of preference, and building them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import fx, nn

from headstart.backbone.pixel_net import PixelNet
from headstart.backbone.tracing import trace
from headstart.engine.agreement import difference
from headstart.engine.conv_bn_fusion import (
    Unit,
    UnitInput,
    can_fold_for_inference,
    find_units,
    fold_for_inference,
    has_fast_bfloat16,
    record_inputs,
)
from headstart.engine.interface import Engine, Features, Pixels
from headstart.engine.onnx_engine import OnnxEngine
from headstart.engine.plan import EnginePlan
from headstart.engine.streaming import run_in_batches
from headstart.engine.torch_engine import TorchEngine

ONNX_WEIGHT_LIMIT = 300_000_000
"""Bytes of weights from which on ONNX Runtime is not used: it holds several copies while it loads. Networks of this
size consist of matrix products, which PyTorch computes about as fast (VGG-16: 5 GB and 8 s for 1.2 times the speed)."""


def candidates(net: PixelNet, device: torch.device, *, exact: bool) -> Iterator[str]:
    """Names of the engines that may compute a network on a device, the preferred first; the last is plain PyTorch.

    The order follows the measurements in docs/results: with bfloat16 instructions, low precision is 1.3 to 1.8 times as
    fast as ONNX Runtime, which is 1.0 to 1.9 times as fast as folding.

    Args:
        net: the frozen network.
        device: where it runs.
        exact: only engines that compute in float32.
    """
    can_fold = can_fold_for_inference(device)
    if not exact and has_fast_bfloat16(device):
        yield from _low_precision_candidates(net, device, can_fold=can_fold and _has_foldable_units(net))
    if device.type == "cpu" and sum(tensor.nbytes for tensor in net.body.parameters()) < ONNX_WEIGHT_LIMIT:
        yield "onnxruntime"
    if can_fold and _has_foldable_units(net):
        yield "folded"
    yield "torch"


def _low_precision_candidates(net: PixelNet, device: torch.device, *, can_fold: bool) -> list[str]:
    names = ["mixed"] if can_fold else []
    linear, convolution = _weight_bytes(net, nn.Linear), _weight_bytes(net, nn.Conv2d)
    if device.type == "cuda" or linear:
        names.insert(0 if linear > convolution else len(names), "autocast")
    return names


def build_engine(name: str, plan: EnginePlan, net: PixelNet, device: torch.device) -> Engine:
    """Builds an engine by name, with the calibration of a plan."""
    if name == "torch":
        return TorchEngine(net, device)
    if name == "onnxruntime":
        return OnnxEngine(net)
    if name == "autocast":
        return TorchEngine(net, device, kind=name, precision=plan.precision_of(name))
    traced = _traced(net)
    units = find_units(traced)
    preprocessing = net.backbone.preprocessing
    blank = torch.zeros((1, preprocessing.height, preprocessing.width, 3), dtype=torch.uint8)
    inputs = record_inputs(traced, units, net.normalised(blank.to(device)))
    if name == "folded":
        return TorchEngine(net, device, body=fold_for_inference(traced, units, inputs), kind=name)
    means = [UnitInput(seen.shape, plan.means[unit]) for seen, unit in zip(inputs, _unit_names(units), strict=True)]
    body = fold_for_inference(traced, units, means, low_precision_from=plan.low_precision_from)
    return TorchEngine(net, device, body=body, kind=name, precision=plan.precision_of(name))


def calibrate_mixed(
    plan: EnginePlan, net: PixelNet, sample: Pixels, expected: Features, device: torch.device
) -> EnginePlan:
    """Finds the smallest number of leading convolutions to keep in float32 so that "mixed" agrees with plain PyTorch.

    Args:
        plan: the plan so far.
        net: the frozen network.
        sample: (n, H, W, 3) of the training images.
        expected: plain PyTorch's output on the sample.
        device: where it runs.

    Raises:
        ArithmeticError: no number is enough.
    """
    traced = _traced(net)
    units = find_units(traced)
    inputs = record_inputs(traced, units, net.normalised(torch.from_numpy(sample).to(device)))
    names = _unit_names(units)
    plan = replace(plan, means={name: seen.mean.cpu() for name, seen in zip(names, inputs, strict=True)})
    for first in [0, *_bottlenecks([seen.shape for seen in inputs])[:4]]:
        body = fold_for_inference(traced, units, inputs, low_precision_from=first)
        actual = run_in_batches(TorchEngine(net, device, body=body), sample)
        gap, allowed = difference(actual, expected, exact=False)
        if gap <= allowed / 2:  # the difference on other images may be larger than on the sample
            return replace(plan, low_precision_from=first)
    raise ArithmeticError(f"bfloat16 is not precise enough for this backbone (difference {gap:.1e})")


def _bottlenecks(shapes: Sequence[torch.Size]) -> list[int]:
    """Indices where a map is smaller than the maps before and after it; vectors (squeeze-and-excite) are ignored."""
    maps = [i for i, shape in enumerate(shapes) if shape[2:].numel() > 1]
    sizes = [shapes[i][1:].numel() for i in maps]
    return [maps[i] for i in range(1, len(maps) - 1) if sizes[i - 1] >= sizes[i] < sizes[i + 1]]


def _traced(net: PixelNet) -> fx.GraphModule:
    return net.body if isinstance(net.body, fx.GraphModule) else trace(net.body)


def _weight_bytes(net: PixelNet, kind: type[nn.Module]) -> int:
    """Bytes of the weights in layers of one kind."""
    layers = (module for module in net.body.modules() if isinstance(module, kind))
    return sum(tensor.nbytes for layer in layers for tensor in layer.parameters(recurse=False))


def _has_foldable_units(net: PixelNet) -> bool:
    """True if folding would save a step anywhere."""
    try:
        return any(unit.norm is not None or unit.activation is not None for unit in find_units(_traced(net)))
    except Exception:  # torch.fx raises whatever the network's own code raises when traced
        return False


def _unit_names(units: Sequence[Unit]) -> list[str]:
    """Names of the convolutions in the backbone, without those of wrappers."""
    return [str(unit.nodes[0].target).removeprefix("module.") for unit in units]
