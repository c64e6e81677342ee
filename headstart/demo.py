"""Demo data set: scikit-learn's handwritten digits as a folder of PNG files, for a first run without a download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

MARGIN = 3
"""White margin around the 8x8 pixels, before enlargement; without it the centre crop would cut into the digit."""

SCALE = 8
"""Enlargement factor; bicubic, because pretrained backbones expect smooth edges, not square blocks."""


def write_digits(folder: Path) -> int:
    """Writes the 1,797 digits as ``folder/<digit>/<number>.png``, 112x112 pixels, dark on white.

    Args:
        folder: created if it does not exist; existing images of the same names are overwritten.

    Returns:
        Number of images written.

    Source: scikit-learn's ``load_digits``, from the UCI repository (Alpaydin and Kaynak, 1998).
    """
    digits = load_digits()
    for number, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(digit) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = (255 - image * (255 / 16)).round().astype(np.uint8)
        sheet = Image.fromarray(np.pad(grey, MARGIN, constant_values=255))
        sheet.resize((SCALE * sheet.width, SCALE * sheet.height), Image.Resampling.BICUBIC).save(path)
    return len(digits.target)
