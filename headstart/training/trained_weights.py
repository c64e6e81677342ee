"""Trained weights: the live weights, their average, the best average so far, and the optimizer's moments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from headstart.training.ema import decay_at, update_average
from headstart.training.ranks import ALONE, Rank

TensorDict = dict[str, Tensor]

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class TrainedWeights:
    """The state of weights that AdamW trains and of their exponential moving average.

    On a GPU the learning rates and the share of the average are tensors, which a CUDA graph reads at every launch.

    Args:
        parameters: by name; trained in place.
        statistics: BatchNorm's running statistics, by name; kept with the best average.
        groups: parameter groups of the optimizer.
        device: device of parameters and statistics.

    Attributes:
        live: the parameters.
        average: their exponential moving average.
        best: copies of the best average and its statistics; empty before the first epoch ends.
        optimizer: AdamW.
        lr: learning rate of the first group.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        statistics: Mapping[str, Tensor],
        groups: list[dict[str, Any]],
        device: torch.device,
    ) -> None:
        self.parameters, self.statistics = dict(parameters), dict(statistics)
        self.live = list(self.parameters.values())
        self.average = [p.detach().clone() for p in self.live]
        self.best: list[Tensor] = []
        self.lr = 0.0
        self._full_lrs = [group["lr"] for group in groups]
        self._ema_share: float | Tensor = 0.0
        self._rates: Tensor | None = None
        is_cpu = device.type == "cpu"
        if not is_cpu:
            self._rates = torch.zeros(len(groups) + 1, device=device)
            self._ema_share = self._rates[-1]
            for group, lr in zip(groups, self._rates, strict=False):
                group["lr"] = lr
        self.optimizer = torch.optim.AdamW(groups, fused=True, capturable=not is_cpu)

    def set_rates(self, step: int, lr_factor: float, ema: float) -> None:
        """Sets the learning rates and the share of the average for a step."""
        lrs, share = [full * lr_factor for full in self._full_lrs], 1 - decay_at(step, ema)
        self.lr = lrs[0]
        if self._rates is None:
            self._ema_share = share
            for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr
        else:  # in place: a CUDA graph reads them from where they are
            self._rates.copy_(torch.tensor([*lrs, share]), non_blocking=True)

    def zero_rates(self) -> None:
        """Sets the learning rates of a GPU to 0, for steps that only warm up."""
        if self._rates is not None:
            self._rates.zero_()

    def step(self, loss: Tensor, clip: float, rank: Rank = ALONE) -> None:
        """One step of AdamW with a clipped gradient, and of the average.

        Args:
            loss: of the images of this rank.
            clip: largest norm of the gradient.
            rank: of this process; gradients are added over all ranks.
        """
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        rank.add_up([weight.grad for weight in self.live if weight.grad is not None])
        nn.utils.clip_grad_norm_(self.live, clip)
        self.optimizer.step()
        update_average(self.average, self.live, self._ema_share)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which the live weights are replaced by their average."""
        kept = [p.detach().clone() for p in self.live]
        copy_tensors(self.live, self.average)
        yield
        copy_tensors(self.live, kept)

    def keep_best(self) -> None:
        """Copies the average and the statistics to ``best``."""
        self.best = [tensor.clone() for tensor in (*self.average, *self.statistics.values())]

    def load_best(self) -> None:
        """Puts the best average and its statistics into the network, and ends training."""
        copy_tensors([*self.live, *self.statistics.values()], self.best)
        for parameter in self.live:
            parameter.requires_grad_(False)

    def snapshot(self) -> TensorDict:
        """Copies of all tensors that ``restore`` needs."""
        state: TensorDict = {}
        for index, (name, parameter) in enumerate(self.parameters.items()):
            state[f"live/{name}"] = parameter.detach().clone()
            state[f"average/{name}"] = self.average[index].clone()
            if self.best:
                state[f"best/{name}"] = self.best[index].clone()
            for moment, tensor in self.optimizer.state.get(parameter, {}).items():
                state[f"{moment}/{name}"] = tensor.clone()
        if self.best:
            for index, name in enumerate(self.statistics, start=len(self.live)):
                state[f"best/{name}"] = self.best[index].clone()
        return state

    def restore(self, state: TensorDict, *, has_best: bool) -> None:
        """Sets all tensors to those of ``snapshot``; ``has_best``: an epoch had ended."""
        for index, (name, parameter) in enumerate(self.parameters.items()):
            copy_tensors([parameter], [state[f"live/{name}"]])
            self.average[index] = state[f"average/{name}"].clone()
            self.optimizer.state[parameter] = {moment: state[f"{moment}/{name}"].clone() for moment in _MOMENTS}
        if has_best:
            self.best = [state[f"best/{name}"].clone() for name in (*self.parameters, *self.statistics)]

    def rewind(self, state: TensorDict) -> None:
        """Sets weights and moments to those of ``snapshot`` in place, as a CUDA graph needs; absent moments are 0."""
        for index, (name, parameter) in enumerate(self.parameters.items()):
            copy_tensors([parameter, self.average[index]], [state[f"live/{name}"], state[f"average/{name}"]])
            for moment, tensor in self.optimizer.state.get(parameter, {}).items():
                copy_tensors([tensor], [state.get(f"{moment}/{name}", torch.zeros_like(tensor))])


def copy_tensors(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copies values in place."""
    with torch.no_grad():
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
