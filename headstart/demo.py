"""Data for a first run without any network: scikit-learn's handwritten digits, as a folder of PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

MARGIN = 3
"""White around the 8x8 pixels, in their own size: the backbone's crop must not cut into the digit."""

SCALE = 8
"""Enlargement, smooth, as a scanner would give it: the backbone has never seen squares of eight pixels."""


def write_digits(folder: Path) -> int:
    """Writes the 1,797 digits as ``folder/<digit>/<number>.png``, 112x112 pixels, dark on white.

    Args:
        folder: made where it does not exist; pictures that are there already are written again.

    Returns:
        The number of pictures.

    Source: scikit-learn's ``load_digits``, from the UCI repository (Alpaydin and Kaynak, 1998).
    """
    digits = load_digits()
    for number, (picture, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(digit) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = (255 - picture * (255 / 16)).round().astype(np.uint8)
        sheet = Image.fromarray(np.pad(grey, MARGIN, constant_values=255))
        sheet.resize((SCALE * sheet.width, SCALE * sheet.height), Image.Resampling.BICUBIC).save(path)
    return len(digits.target)
