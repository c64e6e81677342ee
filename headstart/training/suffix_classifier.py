"""The trainable part of a network: its suffix after a freeze boundary, and the head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from headstart.backbone.layers import BatchNorm
from headstart.backbone.split import SplittableBackbone
from headstart.engine.conv_bn_fusion import fold_for_training

UNDECAYED = ("*.bias", "*bias_table", "*pos_emb*", "*rel_pos*", "*_token", "*_tokens")
"""Name patterns of parameters without weight decay, for any shape; timm lists them for most networks only."""


class SuffixClassifier(nn.Module):
    """The suffix after a freeze boundary and a head: the activation at the boundary -> logits.

    It shares the network's parameters: training it trains the network. BatchNorm stays in inference mode, also after
    ``train()``, and is folded into the convolutions if possible, unless ``update_batchnorm``.

    Args:
        split: the network; what precedes the boundary is not touched.
        boundary: its name.
        head: (N, ...) features -> (N, classes) logits; not copied.
        dtype: in which the suffix computes: float32 or bfloat16.
        update_batchnorm: BatchNorm normalises by each batch inside ``learning_statistics``.

    Attributes:
        suffix: activation -> features.
        head: features -> logits.
        parts: (part, {name in the network: parameter}) from the boundary to the end, without the head.
        norms: BatchNorm layers whose statistics are learnt.
        statistics: their running means and variances, by name in the network.
        undecayed: names of the network's parameters without weight decay.
    """

    def __init__(
        self,
        split: SplittableBackbone,
        boundary: str,
        head: nn.Module,
        *,
        dtype: torch.dtype = torch.float32,
        update_batchnorm: bool = False,
    ) -> None:
        super().__init__()
        suffix = split.suffix(boundary)
        self.norms = batch_norms_of(suffix) if update_batchnorm else []
        self.statistics = running_statistics(split, suffix) if update_batchnorm else {}
        if isinstance(suffix, fx.GraphModule) and not update_batchnorm:
            suffix = fold_for_training(suffix, dtype)
        self.suffix, self.head = _AutocastSuffix(suffix, dtype), head
        named = dict(split.module.named_parameters())
        self.parts = [(part, {name: named[name] for name in names}) for part, names in split.parts(boundary)]
        self.undecayed = undecayed_names(split.module)
        self.eval()
        for parameter in self.trainable().values():
            parameter.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, *shape) float32 activations -> (N, classes) float32 logits."""
        logits: Tensor = self.head(self.suffix(x))
        return logits

    def train(self, mode: bool = True) -> Self:
        """Enables the head's dropout, and nothing else."""
        super().train(mode)
        self.suffix.eval()
        for part in self.head.modules():
            if isinstance(part, BatchNorm):
                part.eval()
        return self

    @contextmanager
    def learning_statistics(self, batch_size: int) -> Iterator[None]:
        """Context in which ``norms`` normalise by the batch; a single image has no statistics."""
        for norm in self.norms:
            norm.train(batch_size > 1)
        yield
        for norm in self.norms:
            norm.eval()

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trained parameters by their names in the model file: "head.0.weight", "backbone.blocks.6.0..."."""
        found = {f"head.{name}": weight for name, weight in self.head.named_parameters()}
        return found | {f"backbone.{name}": weight for _, part in self.parts for name, weight in part.items()}

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Trained parameters, for an optimizer."""
        return list(self.trainable().values())

    def parameter_groups(self, lr: float, *, decay: float = 1.0, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Parameter groups with layer-wise learning rates for an optimizer, the head first.

        Args:
            lr: learning rate of the head and the last part.
            decay: ratio of the learning rates of a part and the part after it; 0 < decay <= 1.
            weight_decay: of the network's matrices and filters; biases, norms, position embeddings, class tokens, and
                what timm's ``no_weight_decay`` lists for the architecture have none.
        """
        groups = [{"params": list(self.head.parameters()), "lr": lr, "weight_decay": 0.0}]
        for index, (_, weights) in enumerate(self.parts):
            part_lr = lr * decay ** (len(self.parts) - 1 - index)
            decayed = [p for name, p in weights.items() if name not in self.undecayed]
            others = [p for name, p in weights.items() if name in self.undecayed]
            groups += [
                {"params": params, "lr": part_lr, "weight_decay": value}
                for params, value in ((decayed, weight_decay), (others, 0.0))
                if params
            ]
        return groups


class _AutocastSuffix(nn.Module):
    """(N, *shape) activations -> (N, ...) float32 features, computed in bfloat16 where autocast considers it safe."""

    def __init__(self, suffix: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.suffix, self.autocast = suffix, dtype == torch.bfloat16

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.autocast, cache_enabled=kind == "cpu"):
            features: Tensor = self.suffix(x)
        return features.float()


def trained_names(split: SplittableBackbone, boundary: str, *, update_batchnorm: bool = False) -> list[str]:
    """Names of the parameters after a boundary, and with ``update_batchnorm`` of BatchNorm's statistics there."""
    names = [name for _, part in split.parts(boundary) for name in part]
    return names + (list(running_statistics(split, split.suffix(boundary))) if update_batchnorm else [])


def undecayed_names(module: nn.Module) -> frozenset[str]:
    """Names of parameters without weight decay: vectors, position embeddings, tokens, and those that timm lists."""
    listed: Any = getattr(module, "no_weight_decay", None)
    patterns = [*UNDECAYED, *(listed() if callable(listed) else ())]
    return frozenset(
        name
        for name, parameter in module.named_parameters()
        if parameter.ndim <= 1 or any(fnmatchcase(name, pattern) for pattern in patterns)
    )


def batch_norms_of(module: nn.Module) -> list[BatchNorm]:
    """All BatchNorm layers of a module."""
    return [part for part in module.modules() if isinstance(part, BatchNorm)]


def running_statistics(split: SplittableBackbone, suffix: nn.Module) -> dict[str, Tensor]:
    """BatchNorm's running means and variances in a suffix, by their names in the network."""
    norms = batch_norms_of(suffix)
    ids = {id(norm.running_mean) for norm in norms} | {id(norm.running_var) for norm in norms}
    return {name: buffer for name, buffer in split.module.named_buffers() if id(buffer) in ids}
