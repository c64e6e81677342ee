"""Data-parallel training: which images of a batch a process takes, and sums over all processes.

Every process, called a rank, trains the same weights. A batch is shared out among the ranks, their gradients are added,
and each rank makes the same step with the sum. The batches are those of a single process, so the number of ranks
changes results by rounding only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Rank:
    """One of the processes that train together.

    Attributes:
        number: of this process, from 0 on.
        count: of the processes; more than one have to be in a process group of ``torch.distributed``.
    """

    number: int = 0
    count: int = 1

    @property
    def is_alone(self) -> bool:
        """Whether a single process trains."""
        return self.count == 1

    def owned(self, count: int) -> npt.NDArray[np.int64]:
        """The images, of so many, whose activations are this rank's to compute and cache."""
        return np.arange(self.number, count, self.count)

    def places(self, images: npt.NDArray[np.int64]) -> list[int]:
        """Which places of a batch this rank takes.

        Ranks take equal numbers of images, or one more, and those that they own first.

        Args:
            images: of the batch.
        """
        if self.is_alone:
            return list(range(len(images)))
        return self._shared_out(images)[self.number]

    def _shared_out(self, images: npt.NDArray[np.int64]) -> list[list[int]]:
        room = [len(images) // self.count + (rank < len(images) % self.count) for rank in range(self.count)]
        taken: list[list[int]] = [[] for _ in room]
        left = []
        for place, owner in enumerate((images % self.count).tolist()):
            if len(taken[owner]) < room[owner]:
                taken[owner].append(place)
            else:
                left.append(place)
        for rank, places in enumerate(taken):
            while len(places) < room[rank]:
                places.append(left.pop(0))
        return [sorted(places) for places in taken]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors by their sums over all ranks, which have the same bits on each."""
        if self.is_alone or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def collected(self, rows: Tensor, count: int) -> Tensor:
        """(count, ...) rows of all images on every rank, from those of the images that each one owns."""
        if self.is_alone:
            return rows
        every = rows.new_zeros((count, *rows.shape[1:]))
        every[torch.from_numpy(self.owned(count))] = rows
        self.add_up([every])
        return every


ALONE = Rank()
