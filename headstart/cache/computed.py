"""Arrays that follow from other arrays or from files, computed once and kept in the cache."""

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

    Args:
        kind: see ``computed_rows``; ``about`` and ``cache`` also.
        about: of the method.
        inputs: arrays that the result follows from.
        shape: of the result.
        compute: returns an array of this shape, a function of ``about`` and ``inputs`` alone.
        cache: the cache folder.
    """
    key = content_key(b"".join(_array_key(array) for array in inputs))
    (row,) = computed_rows(kind, about, [key], np.float64, shape, lambda _: [compute()], cache=cache)
    return np.asarray(row)


def computed_rows(
    kind: str,
    about: dict[str, Any],
    keys: Sequence[bytes],
    dtype: npt.DTypeLike,
    shape: tuple[int, ...],
    compute: Callable[[list[int]], Sequence[npt.NDArray[Any] | None]],
    *,
    cache: Path | None = None,
) -> list[npt.NDArray[Any] | None]:
    """One array per key, of which only those are computed that are missing in the cache or damaged there.

    A cache that is full or cannot be written costs the next run its time, and nothing else.

    Args:
        kind: folder of the cache.
        about: JSON-able description of the method: its parameters, its version, versions of the libraries it uses.
        keys: N content hashes of the inputs, which may repeat.
        dtype: of a row, see ``RowStore``.
        shape: of a row.
        compute: returns the rows at the given positions of ``keys``, each a function of ``about`` and its key alone;
            None for a key without a result, which is not kept.
        cache: the cache folder; default ``cache_root()``.
    """
    try:
        store = RowStore(kind, about, dtype=dtype, shape=shape, root=cache)
        rows = _undamaged(store, keys)
    except CacheError:
        return list(compute(list(range(len(keys)))))
    missing = list({key: position for position, key in enumerate(keys) if key not in rows}.values())
    computed = {keys[i]: row for i, row in zip(missing, compute(missing) if missing else [], strict=True)}
    new = {key: row for key, row in computed.items() if row is not None}
    if new:
        with suppress(CacheError):
            store.require_space(len(new))
            store.append(list(new), np.stack(list(new.values())))
    return [rows.get(key, computed.get(key)) for key in keys]


def _undamaged(store: RowStore, keys: Sequence[bytes]) -> dict[bytes, npt.NDArray[Any]]:
    """The rows that the store has; it drops damaged ones."""
    held = [key for key in dict.fromkeys(keys) if key in store]
    with suppress(DamagedRows):
        return dict(zip(held, store.read(held), strict=True))
    return _undamaged(store, keys)


def _array_key(array: npt.NDArray[Any]) -> bytes:
    """A hash of type, shape and values; arrays are hashed one by one, since features may be large."""
    layout = f"{array.dtype.str}{array.shape}".encode()
    return content_key(layout) + content_key(np.ascontiguousarray(array).tobytes())
