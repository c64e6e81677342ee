from __future__ import annotations

import numpy as np
import pytest
import timm
from PIL import Image
from random_images import random_image
from timm.data import create_transform

from headstart.data.preprocessing import Preprocessing, resize_and_crop


@pytest.mark.parametrize(
    ("crop_mode", "name"), [("center", "resnet18"), ("squash", "resnet18"), ("border", "resnet18")]
)
@pytest.mark.parametrize("size", [(500, 333), (224, 224), (90, 400), (257, 256)])
def test_pixels_equal_timms_own_evaluation_transform(crop_mode: str, name: str, size: tuple[int, int]) -> None:
    config = dict(timm.get_pretrained_cfg(name).to_dict())
    own = Preprocessing(
        height=224, width=224, crop_pct=0.875, crop_mode=crop_mode, mean=config["mean"], std=config["std"]
    )
    theirs = create_transform(
        (3, 224, 224),
        is_training=False,
        interpolation="bicubic",
        mean=own.mean,
        std=own.std,
        crop_pct=0.875,
        crop_mode=crop_mode,
        use_prefetcher=True,
    )
    image = random_image(7, size=size)
    expected = np.asarray(theirs(image))
    expected = expected.transpose(1, 2, 0) if expected.shape[0] == 3 else expected
    apart = np.abs(resize_and_crop(image, own).astype(int) - expected)
    tall = size[1] > 2 * size[0]  # from 13 on, Pillow resizes such images down before across
    assert apart.max() <= (1 if tall else 0)


def test_tall_images_are_resized_across_first_whatever_the_version_of_pillow() -> None:
    image = random_image(7, size=(90, 400))
    across = image.resize((60, 400), Image.Resampling.BICUBIC)
    expected = np.asarray(across.resize((60, 80), Image.Resampling.BICUBIC))
    assert np.array_equal(resize_and_crop(image, Preprocessing(80, 60, 1.0, crop_mode="squash")), expected)
