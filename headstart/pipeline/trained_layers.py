"""Which layer groups each stage of a run trains: reported to the user and in the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import nn

from headstart.backbone.layers import LayerGroup, groups_trained, layer_groups
from headstart.backbone.pixel_net import FeatureNet
from headstart.backbone.side_by_side import network_of, networks
from headstart.backbone.split import SplittableBackbone
from headstart.runs.events import EventStream, StageBegun
from headstart.training.ladder import Rung
from headstart.training.tuning import FULL, Tuning, trained_counts


@final
class TrainedLayers:
    """The layer groups of a backbone, from stem to head, by name and number of weights.

    Args:
        net: the backbone.
    """

    def __init__(self, net: FeatureNet) -> None:
        size = net.backbone.preprocessing
        self._module = net.backbone.module
        self._groups = layer_groups(self._module, input_shape=(3, size.height, size.width))
        self._used = set(net.state())

    def groups(self, trained: Mapping[str, int]) -> list[LayerGroup]:
        """The groups that are used, with the number of trained weights of each.

        Args:
            trained: see ``tuning.trained_counts``.
        """
        return groups_trained(self._groups, self._module, trained=trained, used=self._used)

    def report_rung(
        self, rung: Rung, split: SplittableBackbone, head: nn.Module, events: EventStream, *, more: dict[str, Any]
    ) -> None:
        """Says, and logs, what a rung trains; arguments as ``report``."""
        tuning = rung.settings.tuning
        counts = trained_counts(split, rung.boundary.name, tuning)
        self.report(rung.name, counts, head, events, tuning=tuning, more=more)

    def report(
        self,
        stage: str,
        trained: Mapping[str, int],
        head: nn.Module,
        events: EventStream,
        *,
        tuning: Tuning = FULL,
        head_frozen: int = 0,
        more: dict[str, Any] | None = None,
    ) -> None:
        """Says, and logs, what a stage trains.

        Args:
            stage: its name.
            trained: see ``groups``.
            head: of the network.
            events: of the run.
            tuning: which weights are trained.
            head_frozen: number of weights of the head that are not trained.
            more: how activations are obtained, for the log.

        Raises:
            RunError: the log cannot be written.
        """
        groups = self.groups(trained)
        head_weights = sum(p.numel() for p in head.parameters()) or sum(b.numel() for b in head.buffers())
        trained_head = head_weights - head_frozen
        in_groups = sum(group.trainable for group in groups)
        total = head_weights + sum(group.parameters for group in groups)
        frozen = total - trained_head - (0 if tuning.is_merged else in_groups)
        statistics = sum(group.statistics for group in groups)
        text = f"trains {self._trained_text(groups, head_frozen, tuning)}, {trained_head + in_groups:,} "
        text += f"weights; frozen: all {frozen:,} others" if tuning.is_merged else f"of {total:,} weights"
        if not tuning.is_merged:
            text += self._frozen_text(groups, tuning)
        if statistics:
            state = "updated in the trained layers" if tuning.update_batchnorm else "constant"
            text += f"; {statistics:,} BatchNorm statistics, {state}"
        events.say(f"Stage {stage}: {text}.")
        layers: list[list[Any]] = [[group.name, group.parameters, group.trainable] for group in groups]
        layers.append(["head", head_weights, trained_head])
        trainable = trained_head + in_groups
        events.emit(StageBegun(stage, trainable, frozen, statistics, tuning.update_batchnorm, layers, more or {}))

    def _trained_text(self, groups: Sequence[LayerGroup], head_frozen: int, tuning: Tuning) -> str:
        trained = [group for group in groups if group.trainable]
        if trained:
            return f"{f'{tuning} in ' if tuning.method != 'full' else ''}{self._spans(trained)} and the head"
        return "only weights of the new classes in the head" if head_frozen else "only the head"

    def _frozen_text(self, groups: Sequence[LayerGroup], tuning: Tuning) -> str:
        if tuning.method == "bias-norm":
            return "; frozen: the other weights"
        fixed = [group for group in groups if group.parameters and not group.trainable]
        return f"; frozen: {self._spans(fixed)}" if fixed else "; nothing is frozen"

    def _spans(self, groups: Sequence[LayerGroup]) -> str:
        """First and last of the groups, in each network."""
        spans = []
        for network in networks(self._module):
            names = [g.name for g in groups if g.parameters and network_of(g.name, self._module) == network]
            spans += [names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"] if names else []
        return ", ".join(spans)
