"""Proof that frozen tensors stay bit-identical during training.

Tensors are hashed before the first step and after the last one, in the module that was trained, before anything is
restored or reloaded. Buffers are included, since BatchNorm's running statistics are buffers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from headstart.errors import TrainingError

Digests = dict[str, str]
"""Name of a tensor -> SHA-256 of its shape, dtype and bytes."""

NAMED_AT_MOST = 3
"""Maximum number of changed tensors that an error lists."""


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers of a module by name, including those that ``state_dict`` omits."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def digests_of(tensors: Mapping[str, Tensor], *, without: Collection[str] = ()) -> Digests:
    """Hashes tensors one by one.

    Args:
        tensors: on any device.
        without: names of tensors to skip, because they are trained.
    """
    skipped = set(without)
    return {name: _digest(tensor) for name, tensor in tensors.items() if name not in skipped}


def combined(digests: Digests) -> str:
    """SHA-256 over names and digests, sorted by name."""
    return hashlib.sha256("".join(f"{name} {digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()


def require_unchanged(before: Digests, after: Digests, *, where: str) -> None:
    """Compares the digests of frozen tensors.

    Args:
        before: of the tensors before training.
        after: of the same tensors after it.
        where: what was trained, for the error.

    Raises:
        TrainingError: a tensor changed, appeared or disappeared; the message names it.
    """
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        more = f" and {len(changed) - NAMED_AT_MOST:,} more" if len(changed) > NAMED_AT_MOST else ""
        raise TrainingError(
            f"{where}: {', '.join(changed[:NAMED_AT_MOST])}{more} changed during training although frozen, so the "
            "run was stopped without a result. Remove the code that changes the network during training (a hook, a "
            "listener), and train again."
        )


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tuple(data.shape)}|{data.dtype}|".encode())
    digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
