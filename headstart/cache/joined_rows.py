"""Rows that are concatenations of rows of several stores, which may be read and completed one by one as well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.cache.row_store import RowStore


class JoinedRows:
    """The rows of several stores side by side: part of the interface of ``RowStore``, with the same errors.

    Args:
        stores: of rows of one axis, in order.
    """

    def __init__(self, stores: Sequence[RowStore]) -> None:
        self.stores = tuple(stores)
        self.widths = [store.shape[0] for store in stores]
        self.shape = (sum(self.widths),)

    @property
    def folder(self) -> Path:
        """The folder that has the stores' folders."""
        return self.stores[0].folder.parent

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Positions in ``keys`` without a row in one of the stores; of equal keys only the first position."""
        return sorted({position for store in self.stores for position in store.missing(keys)})

    def append(self, keys: Sequence[bytes], rows: npt.NDArray[Any]) -> None:
        """Appends rows; each store skips those that it has.

        Args:
            keys: n content hashes.
            rows: (n, D).
        """
        ends = np.cumsum(self.widths)
        for store, part in zip(self.stores, np.split(rows, ends[:-1], axis=1), strict=True):
            store.append(keys, part)

    def read(self, keys: Sequence[bytes]) -> npt.NDArray[Any]:
        """Reads and verifies rows: (n, D), in the order of ``keys``."""
        return np.concatenate([store.read(keys) for store in self.stores], axis=1)

    def drop_damaged(self, keys: Sequence[bytes]) -> int:
        """Drops damaged rows of each store; returns how many."""
        return sum(store.drop_damaged(keys) for store in self.stores)

    def require_space(self, count: int) -> None:
        """Makes space for ``count`` more rows in each store."""
        for store in self.stores:
            store.require_space(count)
