"""Engine plan: which engines compute a backbone on one machine, and the safetensors file that stores it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from headstart.cache.keys import describe_key
from headstart.cache.sealed_document import read_document, seal_document
from headstart.engine.device import resolve_device
from headstart.engine.interface import (
    ENGINE_VERSION,
    EXACT_ENGINES,
    LOW_PRECISION_ENGINES,
    Identity,
    engine_identity,
)
from headstart.files import write_atomically

DEFAULT_RATE = 20.0
"""Images per second that times are estimated with if nothing was measured."""


@dataclass(frozen=True)
class EnginePlan:
    """Which engines compute a backbone on one machine, for one set of training images.

    Attributes:
        exact: engine for reported results: "torch", "folded" or "onnxruntime".
        fast: engine for training features: "torch", "folded", "onnxruntime", "mixed" or "autocast".
        low_precision_from: index of the first convolution that "mixed" computes in bfloat16.
        rates: engine -> images per second, for time estimates; nothing else depends on them.
        errors: engine -> difference from plain PyTorch's output on the sample, see ``agreement``.
        means: name of a convolution -> (C,) float64, the mean of each input channel over the sample.
    """

    exact: str = "torch"
    fast: str = "torch"
    low_precision_from: int = 0
    rates: dict[str, float] = field(default_factory=dict, compare=False)
    errors: dict[str, float] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def rate(self) -> float:
        """Images per second of the fast engine; ``DEFAULT_RATE`` if it was not measured."""
        return self.rates.get(self.fast, DEFAULT_RATE)

    @property
    def training_rate(self) -> float:
        """Images per second of the fastest measured PyTorch engine; ONNX Runtime cannot train."""
        return max((rate for name, rate in self.rates.items() if name != "onnxruntime"), default=self.rate)

    @property
    def training_dtype(self) -> torch.dtype:
        """bfloat16 if training features are computed in low precision, else float32."""
        return torch.bfloat16 if self.fast in LOW_PRECISION_ENGINES else torch.float32

    def reason(self, *, exact: bool) -> str:
        """A clause for the user: the engine, its speed, and its difference from plain PyTorch."""
        chosen = self.exact if exact else self.fast
        if chosen not in self.rates:
            return f"{chosen} (not measured)"
        gap = f", {self.errors[chosen]:.1e} from plain float32" if self.errors.get(chosen) else ""
        return f"{chosen} ({self.rates[chosen]:.0f} images/s{gap})"

    def precision(self, exact: bool) -> str:
        """``Engine.precision`` of the exact or the fast engine."""
        return self.precision_of(self.exact if exact else self.fast)

    def precision_of(self, engine: str) -> str:
        """``Engine.precision`` of an engine by name."""
        if engine == "mixed":
            return f"mixed {self.fingerprint()}"
        return "autocast bfloat16" if engine == "autocast" else "float32"

    def identity(self, *, exact: bool, device: str = "auto") -> Identity:
        """``Engine.identity`` of the exact or the fast engine.

        Raises:
            OptionError: no such device.
        """
        return engine_identity(self.exact if exact else self.fast, self.precision(exact), resolve_device(device))

    def fingerprint(self) -> str:
        """Hash of everything that determines the bits of "mixed"."""
        means = {name: mean.tolist() for name, mean in self.means.items()}
        return describe_key({"from": self.low_precision_from, "means": means, "version": ENGINE_VERSION})


def write_plan(file: Path, plan: EnginePlan, about: dict[str, Any] | None = None) -> None:
    """Writes a plan, to be read by ``read_plan``.

    Args:
        file: a safetensors file with the means as tensors and everything else as JSON in its metadata.
        plan: the plan.
        about: machine, network and sample that it was determined for.
    """
    document = {name: value for name, value in vars(plan).items() if name != "means"}
    metadata = {"about": json.dumps(about or {}, sort_keys=True), "plan": json.dumps(document, sort_keys=True)}
    means = {name: mean.contiguous() for name, mean in plan.means.items()}
    write_atomically(file, save(means, metadata | {"digest": seal_document(save(means, metadata))}))


def read_plan(file: Path, about: dict[str, Any] | None = None) -> EnginePlan | None:
    """Reads a plan.

    Args:
        file: as written by ``write_plan``.
        about: what it must have been determined for.

    Returns:
        None if the file does not exist, is damaged, or was determined for something else.
    """
    metadata = read_document(file)
    if metadata.get("about") != json.dumps(about or {}, sort_keys=True):
        return None
    try:
        plan = EnginePlan(**json.loads(metadata["plan"]), means=load(file.read_bytes()))
        return plan if _is_valid(plan) else None
    except (OSError, SafetensorError, LookupError, ValueError, TypeError, AttributeError, RuntimeError):
        return None


def _is_valid(plan: EnginePlan) -> bool:
    """True if all values have the right types and ranges; a run's folder may come from anywhere."""
    figures = [*plan.rates.items(), *plan.errors.items()]
    engines = (*EXACT_ENGINES, *LOW_PRECISION_ENGINES)
    return (
        plan.exact in EXACT_ENGINES
        and plan.fast in engines
        and type(plan.low_precision_from) is int
        and all(name in engines and math.isfinite(value) for name, value in figures)
        and all(rate > 0 for rate in plan.rates.values())
        and all(mean.ndim == 1 and mean.dtype == torch.float64 for mean in plan.means.values())
    )
