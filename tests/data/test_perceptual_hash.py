"""The perceptual hash: its bits are those of ImageHash, so that caches written before stay valid."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from random_images import random_image

from headstart.data.perceptual_hash import perceptual_hash

BITS = {
    "0": (random_image(0), "f1b939b43131c6cc"),
    "1": (random_image(1), "b30ec389bc1b43e6"),
    "2": (random_image(2), "998b63531653aaae"),
    "3": (random_image(3), "86060939fcebb716"),
    "a gradient": (Image.linear_gradient("L"), "8000800080008000"),
    "one colour": (Image.new("RGB", (50, 40), "teal"), "8000000000000000"),
    "a part": (Image.radial_gradient("L").crop((0, 0, 100, 200)), "ffaaaa55a8aa90d0"),
}
"""Image -> ``imagehash.phash`` of ImageHash 4.3.2."""


@pytest.mark.parametrize("name", BITS)
def test_the_bits_are_those_of_imagehash(name: str) -> None:
    image, expected = BITS[name]
    assert np.packbits(perceptual_hash(image)).tobytes().hex() == expected


def test_a_smaller_copy_has_nearly_the_same_bits_and_another_image_has_not() -> None:
    image = random_image(5).resize((400, 400), Image.Resampling.BICUBIC)
    smaller = image.resize((123, 123), Image.Resampling.BICUBIC)
    assert (perceptual_hash(image) != perceptual_hash(smaller)).sum() <= 4
    assert (perceptual_hash(image) != perceptual_hash(random_image(6))).sum() > 10
