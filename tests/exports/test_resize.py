"""The resize inside exported files is Pillow's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.data.preprocessing import Preprocessing, resize_and_crop
from headstart.errors import ExportError
from headstart.exports.resize import FILTERS, ResizeAndCrop

SIZES = [(333, 251), (97, 61), (120, 500), (1, 1), (1, 7), (2, 3), (64, 64), (73, 73), (32, 32), (31, 900), (700, 23)]
SIZES += [(126, 128), (128, 122), (122, 128), (100, 33)]  # padded by 1, 3 and 43 pixels of 64


def noisy(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def apart(preprocessing: Preprocessing, size: tuple[int, int]) -> np.ndarray:
    pixels = noisy(*size)
    given = ResizeAndCrop(preprocessing)(torch.from_numpy(pixels)[None])[0].permute(1, 2, 0).numpy()
    return np.abs(given - resize_and_crop(Image.fromarray(pixels), preprocessing))


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", sorted(FILTERS))
def test_pixels_of_any_size_become_what_fit_to_gives(interpolation: str, mode: str) -> None:
    for crop, sides in ((0.875, (64, 64)), (1.0, (40, 72))):
        own = Preprocessing(*sides, crop, crop_mode=mode, interpolation=interpolation)
        for size in SIZES:
            gap = apart(own, size)
            if interpolation == "hamming":  # its cosines differ in the last bit
                assert gap.max() <= 1, size
                assert (gap > 0).mean() < 1e-3, size
            else:
                assert not gap.any(), size


def test_a_batch_is_what_its_images_are() -> None:
    pixels = np.stack([noisy(50, 90), noisy(90, 50).transpose(1, 0, 2)])
    fit = ResizeAndCrop(Preprocessing(32, 32))
    both = fit(torch.from_numpy(pixels))
    assert both.shape == (2, 3, 32, 32)
    for one, own in zip(both, pixels, strict=True):
        assert torch.equal(one, fit(torch.from_numpy(own)[None])[0])


def test_an_interpolation_without_a_filter_is_refused_by_name() -> None:
    with pytest.raises(ExportError, match="'nearest' cannot be exported"):
        ResizeAndCrop(Preprocessing(32, 32, interpolation="nearest"))
