"""Cache of preprocessed pixels: the scan writes it, the frozen pass reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt

from headstart.cache.keys import content_key
from headstart.cache.row_store import DamagedRows, RowStore, warn_damaged
from headstart.data.decode import decode
from headstart.data.preprocessing import MIN_DECODED_SIDE, Preprocessing, Rgb, resize_and_crop
from headstart.data.sources.read import read_image
from headstart.errors import CacheError, DataError, UnreadableImage
from headstart.progress import Progress, SilentProgress


def pixel_store(preprocessing: Preprocessing, root: Path | None = None) -> RowStore:
    """The cache of pixels for one preprocessing: rows of (height, width, 3) uint8."""
    shape = (preprocessing.height, preprocessing.width, 3)
    return RowStore("pixels", preprocessing.pixel_key(), dtype=np.uint8, shape=shape, root=root)


@final
class PixelReader:
    """Reads preprocessed pixels from the cache. Damaged rows are decoded again, which is reported once.

    Args:
        preprocessing: see ``pixel_store``.
        sources: content hash of each image -> its file.
        cache: the cache folder; ``cache.entries.cache_root()`` if None.
        progress: receives the report.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        sources: Mapping[bytes, str],
        *,
        cache: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.store = pixel_store(preprocessing, cache)
        self._preprocessing, self._sources = preprocessing, sources
        self._progress = progress or SilentProgress()

    def read(self, keys: Sequence[bytes]) -> npt.NDArray[np.uint8]:
        """(n, height, width, 3) uint8 in the order of ``keys``.

        Raises:
            KeyError: a key has no row.
            DataError: the file of a damaged row is missing or has changed.
            CacheError: the cache cannot be read or written.
        """
        try:
            return self.store.read(keys)
        except DamagedRows as damaged:
            warn_damaged("pixels", self.store.folder, self._progress)
            self.store.append(damaged.keys, np.stack([self._decoded(key) for key in damaged.keys]))
        return self.store.read(keys)

    def _decoded(self, key: bytes) -> Rgb:
        path, preprocessing = self._sources.get(key), self._preprocessing
        if path is None:
            raise CacheError(
                "a damaged row of pixels was dropped. Run the same command again; it reads the image again."
            )
        side = max(MIN_DECODED_SIDE, preprocessing.decode_at_least)
        decoded = decode(read_unchanged(path, key), min_side=side, value_range=preprocessing.value_range)
        return resize_and_crop(decoded.image, preprocessing)


def read_unchanged(path: str, key: bytes) -> bytes:
    """Reads a file again that was hashed before, such as one whose cached row is damaged.

    Args:
        path: its address.
        key: its content hash when it was first read.

    Raises:
        DataError: it is missing or has changed.
    """
    try:
        data = read_image(path)
    except UnreadableImage as error:
        raise DataError(
            f"{path}: {error.reason}. It was readable earlier in this run; check the file and run the command again."
        ) from error
    if content_key(data) != key:
        raise DataError(f"{path}: has changed since this command first read it. Run the command again.")
    return data
