"""What is trained at each stage of a run, layer group by layer group: said, and written into the log."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, final

from torch import nn

from headstart.backbone.layers import LayerGroup, groups_trained, layer_groups
from headstart.backbone.pixel_net import FeatureNet
from headstart.progress import Progress
from headstart.runs.log import RunLog


@final
class Stages:
    """The layer groups of a backbone, from stem to head.

    Args:
        net: the backbone; nothing is kept of it but names and numbers.
    """

    def __init__(self, net: FeatureNet) -> None:
        size = net.backbone.preprocessing
        self._module = net.backbone.module
        self._groups = layer_groups(self._module, input_shape=(3, size.height, size.width))
        self._used = set(net.state())

    def groups(self, trained: Collection[str]) -> list[LayerGroup]:
        """Those that play a part, with the number of weights that are trained of each.

        Args:
            trained: names of the parameters, and of BatchNorm's statistics where they are learnt.
        """
        return groups_trained(self._groups, self._module, trained=trained, used=self._used)

    def tell(
        self,
        stage: str,
        trained: Collection[str],
        head: nn.Module,
        log: RunLog,
        progress: Progress,
        *,
        head_frozen: int = 0,
        **more: Any,
    ) -> None:
        """Says, and writes down, what a stage trains.

        Args:
            stage: its name.
            trained: see ``groups``.
            head: behind the backbone.
            log: of the run.
            progress: told of it in a sentence.
            head_frozen: numbers of the head that stay as they are.
            **more: for the log.

        Raises:
            RunError: the log cannot be written.
        """
        groups = self.groups(trained)
        own = sum(p.numel() for p in head.parameters()) or sum(b.numel() for b in head.buffers())
        trained_head = own - head_frozen
        trainable = trained_head + sum(g.trainable for g in groups)
        total = own + sum(g.parameters for g in groups)
        statistics, learns = sum(g.statistics for g in groups), any(n.endswith("running_mean") for n in trained)
        behind = [g for g in groups if g.trainable]
        before = [g for g in groups if g.parameters and not g.trainable]
        text = (
            f"trains {_span(behind)} and the head"
            if behind
            else f"trains {'rows of the head' if head_frozen else 'the head'} alone"
        )
        text += f", {trainable:,} of {total:,} weights"
        text += f"; frozen: {_span(before)}" if before else "; nothing is frozen"
        if statistics:
            text += (
                f"; {statistics:,} BatchNorm statistics, {'learnt where they are trained' if learns else 'constant'}"
            )
        progress.say(f"Stage {stage}: {text}.")
        layers = [[g.name, g.parameters, g.trainable] for g in groups] + [["head", own, trained_head]]
        counts = {"trainable": trainable, "frozen": total - trainable, "statistics": statistics}
        log.event("stage", stage=stage, **counts, learns_statistics=learns, layers=layers, **more)


def _span(groups: Sequence[LayerGroup]) -> str:
    weighty = [g.name for g in groups if g.parameters]
    return weighty[0] if len(weighty) == 1 else f"{weighty[0]} to {weighty[-1]}"
