"""Environment of a run: weights, preprocessing, library versions, processor and device, on which its result depends.

A run can only be resumed in the environment in which it began.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from headstart.backbone.weights import Backbone
from headstart.engine.conv_bn_fusion import has_bfloat16
from headstart.engine.device import resolve_device
from headstart.engine.torch_internals import has_amx
from headstart.errors import RunError
from headstart.extras import version_of
from headstart.files import user_path
from headstart.model_file import MODEL_FILE
from headstart.training.recipe import PRETRAINED, Recipe

LIBRARIES = ("headstart", "torch", "timm", "onnxruntime", "scikit-learn", "numpy")

Conditions = dict[str, str]
"""Name for the user -> value."""


def conditions_of(recipe: Recipe, backbone: Backbone, device: str) -> Conditions:
    """The environment of a run in this process.

    Args:
        recipe: of the run.
        backbone: that it loaded.
        device: as it was asked for.
    """
    found: Conditions = {}
    if recipe.weights:
        found["weights file"] = _sha256(user_path(recipe.weights))
    if recipe.extend not in (None, PRETRAINED):
        found["model to extend"] = _sha256(user_path(recipe.extend))
    found["backbone"] = backbone.fingerprint
    found["preprocessing"] = backbone.preprocessing.sentence.rstrip(".")
    found |= {f"version of {name}": version_of(name) for name in LIBRARIES}
    return found | {"device": _device(device), "processor": _processor()}


def require_same(folder: Path, begun: Mapping[str, str], current: Mapping[str, str]) -> None:
    """Compares the environment of a resumed run with that in which it began.

    Raises:
        RunError: a condition differs; names it, both values, and what to do.
    """
    for name in dict.fromkeys([*begun, *current]):
        if begun.get(name) != current.get(name):
            was, current_value = (_short(conditions.get(name, "unknown")) for conditions in (begun, current))
            raise RunError(
                f"{folder}: cannot be resumed, because the {name} has changed: {was} when the run began, "
                f"{current_value} now. "
                "Restore it, or start a new run, which uses the cache."
            )


def _sha256(path: Path) -> str:
    """SHA-256 of a file, or of the model in a run folder; "" if there is none."""
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        return ""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _device(name: str) -> str:
    device = resolve_device(name)
    return f"cuda, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def _processor() -> str:
    """The instruction sets by which kernels are chosen; they decide how sums are rounded."""
    low = "bfloat16" if has_bfloat16(torch.device("cpu")) else "no bfloat16"
    return f"{torch.backends.cpu.get_cpu_capability()}, {low}, {'AMX' if has_amx() else 'no AMX'}"


def _short(value: str) -> str:
    return f"SHA-256 {value[:12]}..." if len(value) == 64 else value
