"""The trainable part of a network: its suffix after a freeze boundary, and the head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self, cast

import torch
from torch import Tensor, fx, nn

from headstart.backbone.layers import BatchNorm
from headstart.backbone.side_by_side import network_of
from headstart.backbone.split import SplittableBackbone
from headstart.engine.conv_bn_fusion import fold_for_training
from headstart.training.heads import is_linear
from headstart.training.lora import LowRankUpdate, with_low_rank_updates
from headstart.training.tuning import FULL, Tuning, batch_norms_of, running_statistics, trained_counts, undecayed_names


class SuffixClassifier(nn.Module):
    """The suffix after a freeze boundary and a head: the activation at the boundary -> logits.

    It shares the network's parameters: training it trains the network. BatchNorm stays in inference mode, also after
    ``train()``, and is folded into the convolutions if possible, unless its statistics are learnt.

    Of networks side by side each learns as if it were alone (``logits_by_network``): their mistakes then differ more
    than those of networks that learn together, and their mean is better.

    Args:
        split: the network; what precedes the boundary is not touched.
        boundary: its name.
        head: (N, ...) features -> (N, classes) logits; not copied.
        dtype: in which the suffix computes: float32 or bfloat16.
        tuning: which weights of the suffix are trained; the others are frozen. With ``update_batchnorm`` BatchNorm
            normalises by each batch inside ``learning_statistics``.
        seed: of the first factors of low-rank updates.

    Attributes:
        suffix: activation -> features.
        head: features -> logits.
        parts: (part, {name: trained parameter}) from the boundary to the end, without the head. A parameter has its
            name in the network; the factors of a low-rank update have the layer's name and "lora_a" or "lora_b".
        updates: name of a weight in the network -> its low-rank update, which is merged by ``merge``.
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
        tuning: Tuning = FULL,
        seed: int = 0,
    ) -> None:
        super().__init__()
        suffix = split.suffix(boundary)
        self.updates: dict[str, LowRankUpdate] = {}
        if isinstance(suffix, fx.GraphModule) and tuning.is_merged:
            suffix, self.updates = with_low_rank_updates(suffix, split.module, rank=tuning.rank, seed=seed)
        self.norms = batch_norms_of(suffix) if tuning.update_batchnorm else []
        self.statistics = running_statistics(split, suffix) if tuning.update_batchnorm else {}
        if isinstance(suffix, fx.GraphModule) and not tuning.update_batchnorm:
            suffix = fold_for_training(suffix, dtype)
        self.suffix, self.head = _AutocastSuffix(suffix, dtype), head
        self._widths = split.feature_widths if is_linear(head) else (sum(split.feature_widths),)
        named = dict(split.module.named_parameters())
        self._merged_into = {name: named[name] for name in self.updates}
        trained = trained_counts(split, boundary, tuning)
        self.owners = [network_of(part, split.module) for part, _ in split.parts(boundary)]
        self.parts = [
            (part, self._parameters_for({name: named[name] for name in names if name in trained}))
            for part, names in split.parts(boundary)
        ]
        self.undecayed = undecayed_names(split.module)
        self.eval()
        self.suffix.requires_grad_(False)
        for parameter in self.trainable().values():
            parameter.requires_grad_(True)

    def _parameters_for(self, weights: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """What is trained for weights of the network: these, or the factors of their low-rank updates."""
        if not self.updates:
            return weights
        return {
            f"{name.removesuffix('weight')}{factor}": parameter
            for name in weights
            for factor, parameter in self.updates[name].named_parameters()
        }

    def forward(self, x: Tensor) -> Tensor:
        """(N, *shape) float32 activations -> (N, classes) float32 logits."""
        logits: Tensor = self.head(self.suffix(x))
        return logits

    def logits_by_network(self, x: Tensor) -> Tensor:
        """The logits of each network with its part of a linear head, whose mean are those of ``forward``.

        Args:
            x: (N, *shape) float32 activations.

        Returns:
            (networks, N, classes) float32; of one network, or with a head that is not linear, the logits of all.
        """
        features = self.suffix(x)
        if len(self._widths) == 1:
            logits: Tensor = self.head(features)
            return logits[None]
        parts = torch.split(features, list(self._widths), 1)
        count = len(parts)
        alone = [
            torch.cat([count * part if place == own else torch.zeros_like(part) for place, part in enumerate(parts)], 1)
            for own in range(count)
        ]
        return torch.stack(self.head(torch.cat(alone)).chunk(count))

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

    @torch.no_grad()
    def estimate_statistics(self, batches: Iterable[Tensor]) -> None:
        """Estimates the statistics of ``norms`` for the current weights, as means over batches of activations.

        Running averages lag behind the weights, and those of averaged weights do not exist.

        Source: "PreciseBN" in Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021.
        """
        momenta = [norm.momentum for norm in self.norms]
        for norm in self.norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches
            norm.train()
        for x in batches:
            self(x)
        for norm, momentum in zip(self.norms, momenta, strict=True):
            norm.momentum = momentum
            cast(Tensor, norm.num_batches_tracked).zero_()
            norm.eval()

    def merge(self) -> None:
        """Merges low-rank updates into the network's weights; the logits stay the same except for rounding."""
        for name, update in self.updates.items():
            update.merge_into(self._merged_into[name])

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Context in which low-rank updates are merged; afterwards every tensor has its previous value."""
        held = [*self._merged_into.values(), *(update.lora_b for update in self.updates.values())]
        kept = [tensor.detach().clone() for tensor in held]
        self.merge()
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(held, kept, strict=True):
                    tensor.copy_(value)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name: "head.0.weight", "backbone.blocks.6.0...", see ``parts``."""
        found = {f"head.{name}": weight for name, weight in self.head.named_parameters()}
        return found | {f"backbone.{name}": weight for _, part in self.parts for name, weight in part.items()}

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Trained parameters, for an optimizer."""
        return list(self.trainable().values())

    def parameter_groups(self, lr: float, *, decay: float = 1.0, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Parameter groups with layer-wise learning rates for an optimizer, the head first.

        Args:
            lr: learning rate of the head and the last part of each network.
            decay: ratio of the learning rates of a part and the part after it in its network; 0 < decay <= 1.
            weight_decay: of the network's matrices and filters, and of low-rank factors; biases, norms, position
                embeddings, class tokens, and what timm's ``no_weight_decay`` lists for the architecture have none.
        """
        groups = [{"params": list(self.head.parameters()), "lr": lr, "weight_decay": 0.0}]
        for index, (_, weights) in enumerate(self.parts):
            part_lr = lr * decay ** self.owners[index + 1 :].count(self.owners[index])
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
