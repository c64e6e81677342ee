from __future__ import annotations

from pathlib import Path

import pytest
from random_images import random_image

from headstart.data.pixel_cache import PixelReader, pixel_store
from headstart.data.preprocessing import Preprocessing
from headstart.data.scan import scan
from headstart.errors import CacheError, DataError


def test_damaged_pixels_whose_image_has_gone_are_a_named_error(tmp_path: Path) -> None:
    size, image = Preprocessing(height=32, width=32), tmp_path / "image.png"
    random_image(0).save(image)
    keys = scan([str(image)], preprocessing=size, cache=tmp_path / "cache").keys
    for change, error, message in (
        (lambda: image.write_bytes(b"x"), DataError, "image.png: has changed since"),
        (image.unlink, DataError, "image.png: no such file.*run the command again"),
    ):
        change()
        store = pixel_store(size, tmp_path / "cache")
        (store.folder / "rows.bin").write_bytes(bytes(store.row_bytes))
        with pytest.raises(error, match=message):
            PixelReader(size, {keys[0]: str(image)}, cache=tmp_path / "cache").read(keys)
    with pytest.raises(CacheError, match="Run the same command again"):
        PixelReader(size, {}, cache=tmp_path / "cache").read(keys)
