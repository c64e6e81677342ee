"""Which weights after a freeze boundary are trained: all weights, biases and norms, or low-rank updates (LoRA)."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import Tensor, fx, nn

from headstart.backbone.layers import BatchNorm
from headstart.backbone.split import SplittableBackbone
from headstart.training.lora import adaptable_weights, num_factors
from headstart.training.recipe import LORA_RANK

Method = Literal["full", "bias-norm", "lora"]

UNDECAYED = ("*.bias", "*bias_table", "*pos_emb*", "*rel_pos*", "*_token", "*_tokens")
"""Name patterns of parameters without weight decay, for any shape; timm lists them for most networks only."""


@dataclass(frozen=True)
class Tuning:
    """Which weights after a freeze boundary are trained.

    Attributes:
        method: "full": all. "bias-norm": biases, and scale and shift of normalisation layers (BitFit, Ben Zaken et al.,
            2022, arXiv 2106.10199, and the layers' weights beside). "lora": low-rank updates of linear layers.
        rank: of the low-rank updates.
        update_batchnorm: BatchNorm after the boundary normalises by each batch, and its statistics are estimated again
            after each epoch, as training from scratch needs; otherwise they are constants.
    """

    method: Method = "full"
    rank: int = LORA_RANK
    update_batchnorm: bool = False

    @property
    def is_merged(self) -> bool:
        """Whether what is trained is merged into the network's weights, which are frozen until then."""
        return self.method == "lora"

    def __str__(self) -> str:
        return {"full": "", "bias-norm": "biases and norms", "lora": f"LoRA of rank {self.rank}"}[self.method]


FULL = Tuning()


def trained_counts(split: SplittableBackbone, boundary: str, tuning: Tuning = FULL) -> dict[str, int]:
    """The parameters after a boundary that training changes.

    Args:
        split: the network.
        boundary: its name.
        tuning: which weights are trained.

    Returns:
        Name in the network -> number of weights that are trained for it: the parameter's, or its low-rank update's.
    """
    named = dict(split.module.named_parameters())
    names = [name for _, part in split.parts(boundary) for name in part]
    if tuning.method == "lora":
        suffix = split.suffix(boundary)
        found = adaptable_weights(suffix, split.module, tuning.rank) if isinstance(suffix, fx.GraphModule) else {}
        return {name: num_factors(found[name].shape, tuning.rank) for name in names if name in found}
    chosen = [name for name in names if tuning.method == "full" or is_bias_or_norm(name, named[name])]
    return {name: named[name].numel() for name in chosen}


def trained_by_boundary(split: SplittableBackbone, tuning: Tuning = FULL) -> dict[str, int]:
    """Name of each boundary -> number of weights that are trained after it, without those of the head."""
    counts = trained_counts(split, split.boundaries[0].name, tuning)
    return {
        boundary.name: sum(counts.get(name, 0) for _, part in split.parts(boundary.name) for name in part)
        for boundary in split.boundaries
    }


def trained_names(split: SplittableBackbone, boundary: str, tuning: Tuning = FULL) -> list[str]:
    """Names of the network's tensors that the steps of training change.

    These are parameters, and BatchNorm's statistics if they are learnt. Everything else is frozen, also the weights
    that low-rank updates are merged into afterwards.
    """
    names = [] if tuning.is_merged else list(trained_counts(split, boundary, tuning))
    return names + (list(running_statistics(split, split.suffix(boundary))) if tuning.update_batchnorm else [])


def changed_names(split: SplittableBackbone, boundary: str, tuning: Tuning = FULL) -> list[str]:
    """``trained_names``, and the names of the weights that low-rank updates are merged into afterwards."""
    merged = list(trained_counts(split, boundary, tuning)) if tuning.is_merged else []
    return merged + trained_names(split, boundary, tuning)


def is_bias_or_norm(name: str, parameter: Tensor) -> bool:
    """True for biases and for the scale of a normalisation layer: only such layers have a weight with one axis."""
    last = name.rpartition(".")[2]
    return parameter.ndim == 1 and (last == "weight" or last.endswith("bias"))


def undecayed_names(module: nn.Module) -> frozenset[str]:
    """Names of parameters without weight decay: vectors, position embeddings, tokens, and those that timm lists."""
    patterns = [*UNDECAYED, *_listed_by_timm(module)]
    return frozenset(
        name
        for name, parameter in module.named_parameters()
        if parameter.ndim <= 1 or any(fnmatchcase(name, pattern) for pattern in patterns)
    )


def _listed_by_timm(module: nn.Module) -> list[str]:
    """What ``no_weight_decay`` of a network and of layers inside it list, as names or patterns in the network."""
    found: list[str] = []
    for path, part in module.named_modules():
        listed: Any = getattr(part, "no_weight_decay", None)
        found += [f"{path}.{name}".lstrip(".") for name in listed()] if callable(listed) else []
    return found


def batch_norms_of(module: nn.Module) -> list[BatchNorm]:
    """All BatchNorm layers of a module."""
    return [part for part in module.modules() if isinstance(part, BatchNorm)]


def running_statistics(split: SplittableBackbone, suffix: nn.Module) -> dict[str, Tensor]:
    """BatchNorm's running means and variances in a suffix, by their names in the network."""
    norms = batch_norms_of(suffix)
    ids = {id(norm.running_mean) for norm in norms} | {id(norm.running_var) for norm in norms}
    return {name: buffer for name, buffer in split.module.named_buffers() if id(buffer) in ids}
