"""Arrays that follow from other arrays, computed once and kept in the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.cache.keys import content_key
from headstart.cache.row_store import DamagedRows, RowStore
from headstart.errors import CacheError

Array = npt.NDArray[np.float64]


def computed_once(
    kind: str,
    about: dict[str, Any],
    inputs: Sequence[npt.NDArray[Any]],
    shape: tuple[int, ...],
    compute: Callable[[], Array],
    *,
    cache: Path | None = None,
) -> Array:
    """What ``compute`` returns, from the cache if it was computed from the same inputs before.

    A cache that is full or cannot be written costs the next run its time, and nothing else.

    Args:
        kind: folder of the cache.
        about: JSON-able description of the method: its parameters, its version, versions of the libraries it uses.
        inputs: arrays that the result follows from.
        shape: of the result.
        compute: returns an array of this shape, a function of ``about`` and ``inputs`` alone.
        cache: the cache folder; default ``cache_root()``.
    """
    try:
        store = RowStore(kind, about, dtype=np.float64, shape=shape, root=cache)
    except CacheError:
        return compute()
    key = content_key(b"".join(_array_key(array) for array in inputs))
    with suppress(DamagedRows):
        if not store.missing([key]):
            kept: Array = store.read([key])[0]
            return kept
    computed = compute()
    with suppress(CacheError):
        store.append([key], computed[None])
    return computed


def _array_key(array: npt.NDArray[Any]) -> bytes:
    """A hash of type, shape and values; arrays are hashed one by one, since features may be large."""
    layout = f"{array.dtype.str}{array.shape}".encode()
    return content_key(layout) + content_key(np.ascontiguousarray(array).tobytes())
